"""Reads and validates a ModelInferRequest, field by field, before anything is queued."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from tidegate.chassis.errors import InvalidArgument
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.vision.api import infer_parameters as parameters
from tidegate.serving.vision.api.classify_requests import RequestLimits
from tidegate.serving.vision.batching.fair_queue import DEFAULT_PRIORITY, LOWEST_PRIORITY
from tidegate.serving.vision.batching.inference_request import (
    EncodedImage,
    ImageContent,
    PixelImage,
    TensorImage,
)
from tidegate.serving.vision.engines.engine import ModelTensors

__all__ = ["IMAGE_INPUT", "ParsedInferRequest", "check_infer"]

IMAGE_INPUT: Final = "image"
"""The input for images that the server preprocesses, in place of the model's tensor."""

_InputTensor = oip.ModelInferRequest.InferInputTensor
_LARGEST_UINT8: Final = 255
# How image files begin; a WebP is a RIFF file.
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")


@dataclass(frozen=True, slots=True)
class ParsedInferRequest:
    """A validated request.

    Attributes:
        images: The images to run.
        top_k: How many best classes to return as text; 0 returns the tensor.
        timeout_s: How long it may wait for its run; ``None`` means until the call's deadline.
        priority: 1 runs first; see :class:`FairQueue`.
    """

    images: list[ImageContent]
    top_k: int
    timeout_s: float | None = None
    priority: int = DEFAULT_PRIORITY


def check_infer(
    request: oip.ModelInferRequest, tensors: ModelTensors, limits: RequestLimits
) -> ParsedInferRequest:
    """Reads and validates a request.

    Args:
        request: The request.
        tensors: The input and output of the model that it names.
        limits: The limits of one request.

    Raises:
        InvalidArgument: A field is wrong; the error names it.
    """
    asked = parameters.read(request.parameters, parameters.REQUEST)
    timeout_us = int(asked.get("timeout", 0))
    if timeout_us < 0:
        raise InvalidArgument.of(
            "parameters['timeout']", f"is {timeout_us}; it must be microseconds, or 0 for none"
        )
    names = [each.name for each in request.inputs]
    if len(names) != 1 or names[0] not in {tensors.input_name, IMAGE_INPUT}:
        raise InvalidArgument.of(
            "inputs",
            f"has {names or 'nothing'}; send one input, {tensors.input_name!r} or {IMAGE_INPUT!r}",
        )
    given = request.inputs[0]
    parameters.read(given.parameters, parameters.INPUT, "inputs[0].parameters")
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
    images: list[ImageContent]
    if given.name != IMAGE_INPUT:
        images = [TensorImage(each) for each in _float32(given, data, tensors.input_shape, limits)]
    elif given.datatype == "UINT8":
        images = [PixelImage(each) for each in _pixels(given, data, limits)]
    else:
        images = [EncodedImage(each) for each in _encoded(given, data, limits)]
    return ParsedInferRequest(
        images,
        _top_k(request, tensors),
        timeout_us / 1e6 if timeout_us else None,
        _priority(int(asked.get("priority", 0))),
    )


def _priority(asked: int) -> int:
    """Returns the priority level; as in Triton, an unknown level means the default."""
    if asked < 0:
        raise InvalidArgument.of(
            "parameters['priority']",
            f"is {asked}; it must be from 1, which runs first, to {LOWEST_PRIORITY}, or 0 for "
            f"the default, {DEFAULT_PRIORITY}",
        )
    return asked if 1 <= asked <= LOWEST_PRIORITY else DEFAULT_PRIORITY


def _top_k(request: oip.ModelInferRequest, tensors: ModelTensors) -> int:
    names = [each.name for each in request.outputs]
    if not names:
        return 0
    if names != [tensors.output_name]:
        raise InvalidArgument.of(
            "outputs", f"asks for {names}; the model has one output, {tensors.output_name!r}"
        )
    asked = parameters.read(
        request.outputs[0].parameters, parameters.OUTPUT, "outputs[0].parameters"
    )
    if "classification" not in asked:
        return 0
    count = int(asked["classification"])
    if count < 1:
        raise InvalidArgument.of(
            "outputs[0].parameters['classification']", f"is {count}; it must be at least 1"
        )
    # As in Triton, a number above that of the classes returns all of them.
    return min(count, tensors.classes)


def _float32(
    given: _InputTensor, data: bytes | None, shape: Sequence[int], limits: RequestLimits
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Reads the model's own tensor: images × its shape."""
    if given.datatype != "FP32":
        raise InvalidArgument.of(
            "inputs[0].datatype",
            f"is {given.datatype!r}; {given.name!r} takes 'FP32', the model's own input. To have "
            f"pixels preprocessed, send {IMAGE_INPUT!r} of 'UINT8'",
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


def _pixels(
    given: _InputTensor, data: bytes | None, limits: RequestLimits
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Reads pixels: images × height × width × RGB."""
    shape = list(given.shape)
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or shape[0] > limits.images:
        raise InvalidArgument.of(
            "inputs[0].shape",
            f"is {shape}; {IMAGE_INPUT!r} of 'UINT8' takes [1…{limits.images}, height, width, 3]",
        )
    count, height, width, _ = shape
    if height * width > limits.pixels:
        raise InvalidArgument.of(
            "inputs[0].shape",
            f"has {width}×{height} pixels; the limit is {limits.pixels}, scale it down",
        )
    elements = count * height * width * 3
    if data is not None:
        field, found, unit = "raw_input_contents[0]", len(data), "bytes"
    else:
        values = given.contents.uint_contents
        field, found, unit = "inputs[0].contents.uint_contents", len(values), "elements"
    if found != elements:
        raise InvalidArgument.of(
            field, f"has {found} {unit}; {count}×{height}×{width}×3 uint8 RGB needs {elements}"
        )
    if data is not None:
        return np.frombuffer(data, dtype=np.uint8).reshape(shape)
    wide = np.fromiter(values, dtype=np.uint32, count=elements)
    if wide.max() > _LARGEST_UINT8:
        raise InvalidArgument.of(field, f"has the value {wide.max()}; UINT8 ends at 255")
    return wide.astype(np.uint8).reshape(shape)


def _encoded(given: _InputTensor, data: bytes | None, limits: RequestLimits) -> list[bytes]:
    """Reads encoded images."""
    if given.datatype != "BYTES":
        raise InvalidArgument.of(
            "inputs[0].datatype",
            f"is {given.datatype!r}; {IMAGE_INPUT!r} takes 'BYTES' (files) or 'UINT8' (pixels)",
        )
    shape = list(given.shape)
    if len(shape) not in {1, 2} or shape[1:] not in ([], [1]) or not 1 <= shape[0] <= limits.images:
        raise InvalidArgument.of(
            "inputs[0].shape", f"is {shape}; {IMAGE_INPUT!r} of 'BYTES' takes [1…{limits.images}]"
        )
    if data is None:
        field, elements = "inputs[0].contents.bytes_contents", list(given.contents.bytes_contents)
    else:
        field, elements = "raw_input_contents[0]", _split(data)
    if len(elements) != shape[0]:
        raise InvalidArgument.of(field, f"has {len(elements)} elements; the shape says {shape[0]}")
    return elements


def _split(data: bytes) -> list[bytes]:
    """Splits raw BYTES: four bytes of length, little-endian, precede each element."""
    elements: list[bytes] = []
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise InvalidArgument.of(
                "raw_input_contents[0]",
                f"ends inside the length of element {len(elements)}; each element of BYTES follows "
                "its length, four bytes little-endian",
            )
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + length > len(data):
            # Checked last: the length bytes FF D8 FF 00 (16,767,231) look like a JPEG file.
            if not elements and data.startswith(_MAGIC):
                raise _without_length("begins with an image file")
            raise _without_length(
                f"element {len(elements)} has {len(data) - offset} of its {length} bytes"
            )
        elements.append(data[offset : offset + length])
        offset += length
    return elements


def _without_length(what: str) -> InvalidArgument:
    return InvalidArgument.of(
        "raw_input_contents[0]",
        f"{what}; each element of BYTES must follow its length, four bytes little-endian: "
        "these length bytes are missing or wrong",
    )
