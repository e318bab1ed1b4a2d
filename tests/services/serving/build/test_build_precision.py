"""A precision rewrites the graph: other types inside, fp32 outside, the same function."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tidegate.serving.build.errors import BuildError
from tidegate.serving.build.precision import quantized, retyped, with_signed_activations

IMAGES = np.random.default_rng(4).normal(size=(4, 3, 16, 16)).astype(np.float32)


def small_network(weights_scale=1.0):
    """A convolution, a ReLU, a mean and a dense layer."""
    random = np.random.default_rng(3)
    constants = {
        "kernel": random.normal(size=(8, 3, 3, 3)) * weights_scale,
        "bias": random.normal(size=8),
        "dense": random.normal(size=(8, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["input", "kernel", "bias"], ["features"], name="conv"),
        helper.make_node("Relu", ["features"], ["active"], name="relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"], name="dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [
            numpy_helper.from_array(values.astype(np.float32), name)
            for name, values in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model, images):
    return ReferenceEvaluator(model).run(None, {"input": images})[0]


def io_types(model):
    return [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]


@pytest.mark.parametrize(
    ("precision", "element", "tolerance"),
    [("bf16", TensorProto.BFLOAT16, 5e-2), ("fp16", TensorProto.FLOAT16, 5e-3)],
)
def test_a_retyped_network_computes_in_the_new_type(precision, element, tolerance):
    model = small_network()
    narrow = retyped(model, precision)
    assert {weights.data_type for weights in narrow.graph.initializer} == {element}
    assert io_types(narrow) == [TensorProto.FLOAT, TensorProto.FLOAT]
    inferred = onnx.shape_inference.infer_shapes(narrow, strict_mode=True)
    inner = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    assert {inner[name] for name in ("features", "active", "pooled", "flat")} == {element}
    if precision == "fp16":  # The reference evaluator has no bfloat16 convolution.
        np.testing.assert_allclose(
            run(narrow, IMAGES), run(model, IMAGES), atol=tolerance, rtol=tolerance
        )


def test_retyping_does_not_change_the_original():
    model = small_network()
    before = model.SerializeToString(deterministic=True)
    retyped(model, "bf16")
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_weight_that_does_not_fit_fp16_is_refused_and_fits_bf16():
    model = small_network(weights_scale=1e6)
    with pytest.raises(BuildError, match="kernel does not fit fp16"):
        retyped(model, "fp16")
    assert retyped(model, "bf16").graph.initializer


def with_activation_pair(zero_point):
    model = small_network()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(0.02), "step"))
    graph.initializer.append(numpy_helper.from_array(zero_point, "zero"))
    relu = next(node for node in graph.node if node.name == "relu")
    relu.output[0] = "real"
    position = list(graph.node).index(relu) + 1
    pair = [
        helper.make_node("QuantizeLinear", ["real", "step", "zero"], ["whole"], name="q"),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["active"], name="dq"),
    ]
    for offset, node in enumerate(pair):
        graph.node.insert(position + offset, node)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_signed_activations_cover_the_range_that_the_unsigned_ones_did():
    unsigned = with_activation_pair(np.uint8(0))
    signed = with_signed_activations(unsigned)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in signed.graph.initializer}
    assert constants["zero"].dtype == np.int8
    assert constants["zero"] == 0
    assert constants["step"] * 127 == pytest.approx(0.02 * 255)
    np.testing.assert_allclose(run(signed, IMAGES), run(unsigned, IMAGES), atol=0.1)


def test_a_zero_point_other_than_zero_is_refused():
    with pytest.raises(BuildError, match="q has a zero point other than 0"):
        with_signed_activations(with_activation_pair(np.uint8(7)))


def test_a_quantized_network_is_signed_throughout_and_close():
    model = small_network()
    eight_bit = quantized(model, [image[np.newaxis] for image in IMAGES])
    kinds = {node.op_type for node in eight_bit.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    constants = {tensor.name: tensor for tensor in eight_bit.graph.initializer}
    zeros = [
        numpy_helper.to_array(constants[node.input[2]])
        for node in eight_bit.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if constants[node.input[2]].data_type != TensorProto.INT32
    ]
    assert zeros
    assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    expected = run(model, IMAGES)
    assert np.linalg.norm(run(eight_bit, IMAGES) - expected) < 0.1 * np.linalg.norm(expected)
