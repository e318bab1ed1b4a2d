"""Reads and validates a ClassifyRequest, field by field, before anything is queued."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidegate.chassis.errors import FieldViolation, InvalidArgument
from tidegate.serving.vision.batching.inference_request import (
    EncodedImage,
    ImageContent,
    PixelImage,
    TensorImage,
)
from tidegate.serving.vision.engines.engine import ModelTensors
from tidegate.vision.v1 import vision_pb2

__all__ = ["DEFAULT_TOP_K", "RequestLimits", "check_classify"]

DEFAULT_TOP_K = 5
# The most violations that one error lists.
_MAX_VIOLATIONS = 16


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The limits of one request.

    Attributes:
        images: Images that it may have.
        pixels: Pixels that one image may have.
    """

    images: int
    pixels: int


def check_classify(
    request: vision_pb2.ClassifyRequest, tensors: ModelTensors, limits: RequestLimits
) -> tuple[list[ImageContent], int]:
    """Reads and validates a request.

    Args:
        request: The request.
        tensors: The input and output of the model that it names.
        limits: The limits of one request.

    Returns:
        The images, and how many labels to return for each.

    Raises:
        InvalidArgument: A field is wrong; the error lists every wrong field.
    """
    violations: list[FieldViolation] = []
    count = len(request.images)
    if not 1 <= count <= limits.images:
        violations.append(
            FieldViolation("images", f"has {count} images; send from 1 to {limits.images}")
        )
    top_k = request.top_k or min(DEFAULT_TOP_K, tensors.classes)
    if top_k > tensors.classes:
        violations.append(
            FieldViolation("top_k", f"is {top_k}; the model has {tensors.classes} classes")
        )
    images: list[ImageContent] = []
    for index, image in enumerate(request.images[: limits.images]):
        read = _read(image, f"images[{index}]", tensors, limits)
        if isinstance(read, FieldViolation):
            violations.append(read)
        else:
            images.append(read)
        if len(violations) >= _MAX_VIOLATIONS:
            break
    if violations:
        raise InvalidArgument(violations)
    return images, top_k


def _read(
    image: vision_pb2.Image, field: str, tensors: ModelTensors, limits: RequestLimits
) -> ImageContent | FieldViolation:
    # Each access to a bytes field copies it.
    match image.WhichOneof("content"):
        case "encoded":
            data = image.encoded
            if not data:
                return FieldViolation(
                    f"{field}.encoded", "is empty; send the bytes of a JPEG, PNG or WebP file"
                )
            return EncodedImage(data)
        case "raw":
            return _read_raw(image.raw, f"{field}.raw", limits)
        case "tensor":
            return _read_tensor(image.tensor, f"{field}.tensor", tensors.input_shape)
        case _:
            return FieldViolation(field, "has no content; set encoded, raw or tensor")


def _read_raw(
    raw: vision_pb2.RawImage, field: str, limits: RequestLimits
) -> ImageContent | FieldViolation:
    height, width = raw.height, raw.width
    if not height or not width:
        return FieldViolation(
            f"{field}.{'width' if height else 'height'}", "is 0; it must be at least 1"
        )
    if height * width > limits.pixels:
        return FieldViolation(
            field, f"has {width}×{height} pixels; the limit is {limits.pixels}, scale it down"
        )
    expected = height * width * 3
    data = raw.data
    if len(data) != expected:
        return FieldViolation(
            f"{field}.data",
            f"has {len(data)} bytes; {height}×{width}×3 uint8 RGB needs {expected}",
        )
    return PixelImage(np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3))


def _read_tensor(
    tensor: vision_pb2.FloatTensor, field: str, shape: Sequence[int]
) -> ImageContent | FieldViolation:
    if list(tensor.shape) != list(shape):
        return FieldViolation(
            f"{field}.shape", f"is {list(tensor.shape)}; the model takes {list(shape)}"
        )
    expected = math.prod(shape) * 4
    data = tensor.data
    if len(data) != expected:
        return FieldViolation(
            f"{field}.data",
            f"has {len(data)} bytes; float32 of {list(shape)} needs {expected}",
        )
    array = np.frombuffer(data, dtype="<f4").reshape(shape)
    if not np.isfinite(array).all():
        return FieldViolation(f"{field}.data", "has a value that is not finite")
    return TensorImage(array)
