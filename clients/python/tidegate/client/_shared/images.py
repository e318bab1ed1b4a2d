"""Images as requests carry them: encoded files, pixels, or tensors.

The client recognises arrays by their members (``shape``, ``dtype``, ``tobytes``). So arrays of
NumPy and of similar libraries work, and NumPy need not be installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from tidegate.client._shared.errors import InvalidInputError
from tidegate.vision.v1 import vision_pb2

__all__ = ["ArrayLike", "ImageInput", "image_message", "images_of"]


@runtime_checkable
class ArrayLike(Protocol):
    """An array as NumPy has it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of its dimensions, outermost first."""

    @property
    def dtype(self) -> object:
        """Type of its values, whose text is for example ``uint8``."""

    def tobytes(self) -> bytes:
        """Its values without gaps, in row-major order."""


ImageInput = bytes | bytearray | memoryview | Path | ArrayLike
"""An image: the bytes of a JPEG, PNG or WebP file, the path of one, an RGB array of ``uint8`` of
shape (height, width, 3), or a ``float32`` array that is already the model's input for one image."""


def images_of(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """Gives one image or several as a sequence."""
    if isinstance(images, list | tuple):
        return images
    return (images,)  # type: ignore[return-value]  # the one Sequence that is left is bytes


def image_message(image: object) -> vision_pb2.Image:
    """Makes the message for an image.

    Raises:
        InvalidInputError: The value is no image, or the client cannot read its file.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return vision_pb2.Image(encoded=bytes(image))
    if isinstance(image, Path):
        try:
            return vision_pb2.Image(encoded=image.read_bytes())
        except OSError as error:
            raise InvalidInputError(f"cannot read {image}: {error.strerror}") from error
    # Programs do not always pass what the types promise; paths as text are common.
    if not isinstance(image, ArrayLike):
        hint = "; wrap a path in pathlib.Path" if isinstance(image, str) else ""
        raise InvalidInputError(
            f"{type(image).__name__} is not an image: pass bytes, a pathlib.Path or an array{hint}"
        )
    return _array(image)


def _array(image: ArrayLike) -> vision_pb2.Image:
    shape = tuple(int(length) for length in image.shape)
    dtype = str(image.dtype)
    if dtype == "float32":
        return vision_pb2.Image(
            tensor=vision_pb2.FloatTensor(data=image.tobytes(), shape=list(shape))
        )
    if dtype != "uint8" or len(shape) != 3 or shape[2] != 3:
        raise InvalidInputError(
            f"an array of {dtype} and shape {shape} is not an image: pass uint8 of shape (height, "
            "width, 3) in RGB order, or float32 as the model itself takes it"
        )
    return vision_pb2.Image(
        raw=vision_pb2.RawImage(data=image.tobytes(), height=shape[0], width=shape[1])
    )
