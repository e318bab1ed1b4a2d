"""Puts the precision of a network into the ONNX graph itself.

TensorRT 11 builds only strongly typed networks: it computes each tensor in its type in the graph.
OpenVINO accepts the same graphs and computes them as fast as with a precision hint. So the exported
fp32 graph is rewritten once for each precision, at build time, and every engine obeys the graph:

- ``bf16`` and ``fp16``: the weights change type, and a cast at either end keeps input and output
  fp32. Convolution accepts bf16 from opset 22 on, so the bf16 graph is converted to it.
- ``int8``: NNCF's post-training quantization places Q/DQ pairs: weights symmetric per channel with
  half of their range, activations symmetric per tensor. NNCF makes activations that are never
  negative unsigned. TensorRT reads those as signed without an error, which halves their range. So
  they are made signed here, with twice the step. That costs OpenVINO about a seventh of its int8
  speed and, on photographs, no measurable accuracy.
"""

from typing import TYPE_CHECKING, Any

from tidegate.serving.build.errors import BuildError
from tidegate.serving.build.libraries import quietly, required

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto

__all__ = ["quantized", "retyped", "with_signed_activations"]

_BF16_OPSET = 22


def retyped(model: "ModelProto", precision: str) -> "ModelProto":
    """Converts all weights and arithmetic of a network to another float type.

    Args:
        model: An fp32 network with one input and one output; it is not changed.
        precision: ``bf16`` or ``fp16``.

    Returns:
        A network with the same fp32 input and output, cast to and from ``precision`` inside.

    Raises:
        MissingPackageError: A package is not installed.
        BuildError: A weight does not fit the type's range.
    """
    onnx = required("onnx")
    numpy_helper = required("onnx.numpy_helper", "onnx")
    np = required("numpy")
    element = {"bf16": onnx.TensorProto.BFLOAT16, "fp16": onnx.TensorProto.FLOAT16}[precision]
    narrow = onnx.helper.tensor_dtype_to_np_dtype(element)
    result: ModelProto = onnx.ModelProto()
    result.CopyFrom(model)
    if precision == "bf16":
        converter = required("onnx.version_converter", "onnx")
        result = converter.convert_version(result, _BF16_OPSET)
    graph = result.graph
    for weights in graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT:
            values = numpy_helper.to_array(weights).astype(narrow)
            if not np.isfinite(values.astype(np.float32)).all():
                raise BuildError(f"{weights.name} does not fit {precision}; build bf16 or fp32")
            weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    # The inferred types of intermediate tensors are those of the old graph.
    del graph.value_info[:]
    source, sink = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = [f"{name}_{precision}" if name == source else name for name in node.input]
        node.output[:] = [f"{name}_{precision}" if name == sink else name for name in node.output]
    cast_in = onnx.helper.make_node(
        "Cast", [source], [f"{source}_{precision}"], name=f"{source}_to_{precision}", to=element
    )
    cast_out = onnx.helper.make_node(
        "Cast",
        [f"{sink}_{precision}"],
        [sink],
        name=f"{sink}_to_fp32",
        to=onnx.TensorProto.FLOAT,
    )
    graph.node.insert(0, cast_in)
    graph.node.append(cast_out)
    onnx.checker.check_model(result, full_check=True)
    return result


def quantized(model: "ModelProto", samples: "Iterable[npt.NDArray[np.float32]]") -> "ModelProto":
    """Quantizes a network to 8-bit integers, as Q/DQ pairs with every zero point at 0.

    Args:
        model: An fp32 network with one input; it is not changed.
        samples: Calibration inputs, each of the input's shape with a batch of one.

    Returns:
        The network with the same fp32 input and output.

    Raises:
        MissingPackageError: NNCF or another package is not installed.
        BuildError: A zero point is not 0.
    """
    onnx = required("onnx")
    nncf = required("nncf")
    calibration = list(samples)
    tensor = model.graph.input[0].name
    with quietly():
        result = nncf.quantize(
            model,
            nncf.Dataset(calibration, lambda sample: {tensor: sample}),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(calibration),
            # The exact bias correction takes half a minute longer and stays closer to the fp32
            # network.
            fast_bias_correction=False,
            # Weights use half of their range. CPUs without VNNI add two 8-bit products in 16 bits;
            # with larger weights that sum saturates and the result is wrong.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
            ),
        )
    signed = with_signed_activations(result)
    onnx.checker.check_model(signed, full_check=True)
    return signed


def with_signed_activations(model: "ModelProto") -> "ModelProto":
    """Makes the unsigned Q/DQ pairs of a network signed, over the same range of real values.

    An unsigned pair with zero point 0 and step ``s`` covers 0 to 255·s. A signed pair with step
    ``s·255/127`` covers the same range above zero, with half as many levels.

    Args:
        model: A network with Q/DQ pairs; it is not changed.

    Raises:
        MissingPackageError: The package onnx is not installed.
        BuildError: A zero point is not 0, so TensorRT would refuse the network.
    """
    onnx = required("onnx")
    numpy_helper = required("onnx.numpy_helper", "onnx")
    np = required("numpy")
    result: ModelProto = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    constants: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    unsigned: set[tuple[str, str]] = set()
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        _, step, zero = node.input
        if np.any(numpy_helper.to_array(constants[zero])):
            raise BuildError(f"{node.name} has a zero point other than 0, which TensorRT refuses")
        if constants[zero].data_type == onnx.TensorProto.UINT8:
            unsigned.add((step, zero))
    for step, zero in unsigned:
        steps = numpy_helper.to_array(constants[step])
        zeros = np.zeros(numpy_helper.to_array(constants[zero]).shape, dtype=np.int8)
        constants[step].CopyFrom(numpy_helper.from_array(steps * np.float32(255 / 127), step))
        constants[zero].CopyFrom(numpy_helper.from_array(zeros, zero))
    del graph.value_info[:]
    return result
