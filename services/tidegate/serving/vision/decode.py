"""From an image as it was sent to the pixels that a model takes.

JPEG is decoded by libjpeg-turbo at the smallest of its scales that still covers the model's input
(a 12-megapixel photograph is never held in full), strictly, so a cut file is refused instead of
being half grey. Every other format, and the JPEGs that are rare (CMYK), go through Pillow. The
header is read before anything is decoded, so a small file that would unfold to gigabytes is refused
for its size alone. All heavy calls release the GIL.
"""

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from tidegate.serving.repository import ImageClassifier, Interpolation
from tidegate.serving.vision import exif
from tidegate.serving.vision.errors import InvalidImageError

__all__ = ["Geometry", "decode", "fit"]

Pixels = npt.NDArray[np.uint8]

_INTERPOLATION = {
    Interpolation.NEAREST: cv2.INTER_NEAREST,
    Interpolation.BILINEAR: cv2.INTER_LINEAR,
    Interpolation.BICUBIC: cv2.INTER_CUBIC,
    Interpolation.AREA: cv2.INTER_AREA,
}
_FORMATS = ("PNG", "WEBP", "JPEG")
# The limit is a server's own (`Geometry.max_pixels`), and is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of what is odd in a file, with texts out of the file; Python keeps each for good.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Images are spread over the workers; a pool inside OpenCV would only fight with them for cores.
cv2.setNumThreads(1)

_SOI = b"\xff\xd8\xff"
# The APP1 segment that holds EXIF data begins within the first few segments of the file.
_EXIF_WINDOW_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image is brought to the model's size.

    Attributes:
        height: rows of the model's input.
        width: columns of the model's input.
        shortest_side: pixels that the image's shortest side is brought to before the centre is cut
            out; ``None`` stretches the whole image instead.
        interpolation: OpenCV's number for the way to resample.
        max_pixels: images with more pixels are refused.
    """

    height: int
    width: int
    shortest_side: int | None
    interpolation: int
    max_pixels: int

    @classmethod
    def of(cls, model: ImageClassifier, max_pixels: int) -> "Geometry":
        """Reads it from a model's metadata."""
        return cls(
            height=model.input.height,
            width=model.input.width,
            shortest_side=model.preprocessing.resize_shortest_side,
            interpolation=_INTERPOLATION[model.preprocessing.interpolation],
            max_pixels=max_pixels,
        )


def decode(data: bytes, geometry: Geometry) -> Pixels:
    """Decodes an encoded image and brings it to the model's size.

    Args:
        data: a whole JPEG, PNG or WebP file.
        geometry: the model's size.

    Returns:
        uint8 RGB, height × width × 3.

    Raises:
        InvalidImageError: the bytes are empty, not an image, cut short, or too large an image.
    """
    if not data:
        raise InvalidImageError("is empty; send the bytes of a JPEG, PNG or WebP file")
    try:
        pixels = _jpeg(data, geometry) if data.startswith(_SOI) else None
        if pixels is None:
            pixels = _other(data, geometry)
    # Decoders of hostile bytes raise whatever they meet: what is wrong is always the image.
    except (ValueError, OSError, SyntaxError, EOFError, IndexError, OverflowError) as error:
        raise InvalidImageError(
            f"is damaged or cut short ({error}); send the whole file"
        ) from error
    return fit(pixels, geometry)


def fit(pixels: Pixels, geometry: Geometry) -> Pixels:
    """Resizes so that the shortest side fits, and cuts out the centre.

    The part that survives the crop is cut first and resized alone, which gives the same picture for
    less work.

    Args:
        pixels: uint8 RGB, any height × any width × 3.
        geometry: the model's size.

    Returns:
        uint8 RGB, height × width × 3, contiguous.
    """
    rows, columns = pixels.shape[:2]
    height, width = geometry.height, geometry.width
    if geometry.shortest_side is not None:
        scale = min(rows, columns) / geometry.shortest_side
        crop_rows = min(rows, max(1, round(height * scale)))
        crop_columns = min(columns, max(1, round(width * scale)))
        top, left = (rows - crop_rows) // 2, (columns - crop_columns) // 2
        pixels = pixels[top : top + crop_rows, left : left + crop_columns]
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    resized = cv2.resize(pixels, (width, height), interpolation=geometry.interpolation)
    return np.asarray(resized, dtype=np.uint8)


def _jpeg(data: bytes, geometry: Geometry) -> Pixels | None:
    """Decodes a JPEG, scaled down where that still covers the input; None for a rare kind."""
    rows, columns, colours, _ = simplejpeg.decode_jpeg_header(data)
    _refuse_large(rows, columns, geometry)
    if colours in {"CMYK", "YCCK"}:
        return None
    # Only powers of two: libjpeg has no fast transform for its other scales, which cost more than
    # they save.
    need = geometry.shortest_side or max(geometry.height, geometry.width)
    reduction = next((each for each in (8, 4, 2) if min(rows, columns) >= each * need), 1)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_height=-(-rows // reduction), min_width=-(-columns // reduction)
    )
    start = data.find(exif.HEADER, 0, _EXIF_WINDOW_BYTES)
    if start < 0:
        return pixels
    return _upright(pixels, exif.orientation(data[start : start + _EXIF_WINDOW_BYTES]))


def _other(data: bytes, geometry: Geometry) -> Pixels:
    """Decodes through Pillow: PNG, WebP and CMYK JPEG, of any depth and palette."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise InvalidImageError("is not a JPEG, PNG or WebP file; convert it to one") from error
    with image:
        _refuse_large(image.height, image.width, geometry)
        if image.mode in {"I", "I;16", "I;16B", "I;16L"}:
            # Pillow clips 16-bit grey to 255 instead of scaling it.
            grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
        elif image.mode == "P" and "transparency" in image.info:
            pixels = np.asarray(image.convert("RGBA").convert("RGB"))
        else:
            pixels = np.asarray(image.convert("RGB"))
        # In a PNG it may come after the pixels.
        orientation = exif.orientation(image.info.get("exif", b""))
    return _upright(pixels, orientation)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes the rotation and mirroring that an EXIF orientation (1 to 8) describes."""
    match orientation:
        case 2:
            turned = pixels[:, ::-1]
        case 3:
            turned = pixels[::-1, ::-1]
        case 4:
            turned = pixels[::-1]
        case 5:
            turned = pixels.transpose(1, 0, 2)
        case 6:
            turned = pixels.transpose(1, 0, 2)[:, ::-1]
        case 7:
            turned = pixels.transpose(1, 0, 2)[::-1, ::-1]
        case 8:
            turned = pixels.transpose(1, 0, 2)[::-1]
        case _:
            return pixels
    return np.ascontiguousarray(turned)


def _refuse_large(rows: int, columns: int, geometry: Geometry) -> None:
    if rows * columns > geometry.max_pixels:
        raise InvalidImageError(
            f"is too large: {columns}×{rows} exceeds {geometry.max_pixels} pixels; scale it down"
        )
