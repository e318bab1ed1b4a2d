"""What a ModelInferRequest asks for, checked field by field before anything is queued."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.chassis.errors import InvalidArgument
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.vision.engine import ModelTensors
from tidegate.serving.vision.image_requests import Limits
from tidegate.serving.vision.tickets import Encoded, Image, Tensor

__all__ = ["IMAGE_INPUT", "InferCall", "check_infer"]

IMAGE_INPUT = "image"
"""The input that takes encoded images in place of the model's tensor."""

_InputTensor = oip.ModelInferRequest.InferInputTensor


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request that was read.

    Attributes:
        images: what to run.
        top_k: give so many best classes as texts; 0 gives the tensor.
    """

    images: list[Image]
    top_k: int


def check_infer(request: oip.ModelInferRequest, tensors: ModelTensors, limits: Limits) -> InferCall:
    """Reads a request.

    Args:
        request: as it was sent.
        tensors: the input and output of the model that it names.
        limits: what it may ask for.

    Raises:
        InvalidArgument: naming the field that is wrong.
    """
    names = [each.name for each in request.inputs]
    if len(names) != 1 or names[0] not in {tensors.input_name, IMAGE_INPUT}:
        raise InvalidArgument.of(
            "inputs",
            f"has {names or 'nothing'}; send one input, {tensors.input_name!r} or {IMAGE_INPUT!r}",
        )
    given = request.inputs[0]
    raw = request.raw_input_contents
    if len(raw) not in {0, 1}:
        raise InvalidArgument.of(
            "raw_input_contents", f"has {len(raw)} entries for 1 input; send one entry for each"
        )
    if raw and given.HasField("contents"):
        raise InvalidArgument.of(
            "inputs[0].contents", "is set beside raw_input_contents; use one of the two"
        )
    data = raw[0] if raw else None
    images: list[Image]
    if given.name == IMAGE_INPUT:
        images = [Encoded(each) for each in _encoded(given, data, limits)]
    else:
        images = [Tensor(each) for each in _float32(given, data, tensors.input_shape, limits)]
    return InferCall(images, _top_k(request, tensors))


def _top_k(request: oip.ModelInferRequest, tensors: ModelTensors) -> int:
    names = [each.name for each in request.outputs]
    if not names:
        return 0
    if names != [tensors.output_name]:
        raise InvalidArgument.of(
            "outputs", f"asks for {names}; the model has one output, {tensors.output_name!r}"
        )
    parameters = request.outputs[0].parameters
    for key in parameters:
        if key not in {"classification", "binary_data"}:
            raise InvalidArgument.of(
                f"outputs[0].parameters[{key!r}]", "is not known; use 'classification'"
            )
    if "classification" not in parameters:
        return 0
    count = parameters["classification"].int64_param
    if not 1 <= count <= tensors.classes:
        raise InvalidArgument.of(
            "outputs[0].parameters['classification']",
            f"is {count}; it must be an integer from 1 to {tensors.classes}",
        )
    return count


def _float32(
    given: _InputTensor, data: bytes | None, shape: Sequence[int], limits: Limits
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Reads the model's own tensor: images × its shape."""
    if given.datatype != "FP32":
        raise InvalidArgument.of(
            "inputs[0].datatype", f"is {given.datatype!r}; the model takes 'FP32'"
        )
    count = given.shape[0] if given.shape else 0
    if list(given.shape[1:]) != list(shape) or not 1 <= count <= limits.images:
        wanted = ", ".join(map(str, (f"1…{limits.images}", *shape)))
        raise InvalidArgument.of(
            "inputs[0].shape", f"is {list(given.shape)}; the model takes [{wanted}]"
        )
    elements = math.prod(given.shape)
    if data is not None:
        if len(data) != elements * 4:
            raise InvalidArgument.of(
                "raw_input_contents[0]",
                f"has {len(data)} bytes; FP32 of {list(given.shape)} needs {elements * 4}",
            )
        array = np.frombuffer(data, dtype="<f4")
    else:
        values = given.contents.fp32_contents
        if len(values) != elements:
            raise InvalidArgument.of(
                "inputs[0].contents.fp32_contents",
                f"has {len(values)} elements; {list(given.shape)} needs {elements}",
            )
        array = np.fromiter(values, dtype=np.float32, count=elements)
    if not np.isfinite(array).all():
        raise InvalidArgument.of("inputs[0]", "has a value that is not finite")
    return array.reshape(given.shape)


def _encoded(given: _InputTensor, data: bytes | None, limits: Limits) -> list[bytes]:
    """Reads encoded images."""
    if given.datatype != "BYTES":
        raise InvalidArgument.of(
            "inputs[0].datatype", f"is {given.datatype!r}; {IMAGE_INPUT!r} takes 'BYTES'"
        )
    shape = list(given.shape)
    if len(shape) not in {1, 2} or shape[1:] not in ([], [1]) or not 1 <= shape[0] <= limits.images:
        raise InvalidArgument.of(
            "inputs[0].shape", f"is {shape}; {IMAGE_INPUT!r} takes [1…{limits.images}]"
        )
    if data is None:
        field, elements = "inputs[0].contents.bytes_contents", list(given.contents.bytes_contents)
    else:
        field, elements = "raw_input_contents[0]", _split(data)
    if len(elements) != shape[0]:
        raise InvalidArgument.of(field, f"has {len(elements)} elements; the shape says {shape[0]}")
    return elements


def _split(data: bytes) -> list[bytes]:
    """Splits raw BYTES: each element follows its length, four bytes little-endian."""
    elements: list[bytes] = []
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise InvalidArgument.of("raw_input_contents[0]", "ends inside an element's length")
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + length > len(data):
            raise InvalidArgument.of(
                "raw_input_contents[0]",
                f"element {len(elements)} has {len(data) - offset} of its {length} bytes",
            )
        elements.append(data[offset : offset + length])
        offset += length
    return elements
