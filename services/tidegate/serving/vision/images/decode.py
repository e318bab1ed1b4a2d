"""Decodes an image file to the pixels that a model takes.

The first bytes of the file tell the format. The size is read before anything is decoded, so a small
file that would decompress to gigabytes is refused for its size alone. libjpeg-turbo decodes JPEG
and scales it down where enough pixels remain, so a 12-megapixel photograph is never held in full.
Pillow decodes PNG and WebP. Transparent pixels show the model's background. All heavy calls release
the GIL.

Only pixels decide whether a file is accepted: a file with missing pixels is refused, and errors in
profiles, comments and other metadata change nothing.
"""

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

# Imported at start, so that the first image of each format does not wait for the import.
from PIL import Image, PngImagePlugin, WebPImagePlugin

from tidegate.image_files import InvalidImageError
from tidegate.image_files.headers import (
    JPEG_START,
    PNG_SIGNATURE,
    is_webp,
    read_jpeg_header,
)
from tidegate.serving.vision.images import jpeg, png, webp
from tidegate.serving.vision.images.resize import Geometry, fit, reduction

__all__ = ["Geometry", "decode", "fit"]

Pixels = npt.NDArray[np.uint8]

# The server has its own limit (`Geometry.max_pixels`) and checks it before it decodes anything.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns about odd files and quotes them; Python keeps every different warning for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Decoders raise any of these for hostile bytes; the cause is always the image.
_DECODER_ERRORS = (
    *(ValueError, OSError, SyntaxError, EOFError, LookupError),
    *(ArithmeticError, AssertionError, struct.error, zlib.error),
)
# Each image needs a few buffers of about a megabyte. glibc returns such buffers to the kernel when
# they are freed, and to allocate them again takes as long as resizing an image. Once a larger
# buffer has been freed, glibc keeps smaller ones (mallopt(3), M_MMAP_THRESHOLD).
_KEPT_BYTES = 16 << 20
bytearray(_KEPT_BYTES)


def decode(data: bytes, geometry: Geometry) -> Pixels:
    """Decodes an encoded image and brings it to the model's size.

    Args:
        data: A whole JPEG, PNG or WebP file.
        geometry: The model's size.

    Returns:
        uint8 RGB, height × width × 3.

    Raises:
        InvalidImageError: The file is empty, cut short, not an image, or has too many pixels.
    """
    if not data:
        raise InvalidImageError("is empty; send the bytes of a JPEG, PNG or WebP file")
    try:
        if data.startswith(JPEG_START):
            return _jpeg(data, geometry)
        if data.startswith(PNG_SIGNATURE):
            return _png(data, geometry)
        if is_webp(data):
            return _webp(data, geometry)
    except _DECODER_ERRORS as error:
        raise InvalidImageError(
            f"is damaged or cut short ({error}); send the whole file"
        ) from error
    raise InvalidImageError("is not a JPEG, PNG or WebP file; convert it to one")


def _jpeg(data: bytes, geometry: Geometry) -> Pixels:
    header = read_jpeg_header(data)
    width, height, orientation = header.width, header.height, header.orientation
    _refuse_large(height, width, geometry)
    largest = reduction(width, height, orientation, geometry)
    pixels, scale = jpeg.decode_jpeg(data, header, largest)
    return fit(pixels, geometry, orientation=orientation, size=(width, height), reduced=scale)


def _png(data: bytes, geometry: Geometry) -> Pixels:
    file = png.read_png(data)
    _refuse_large(file.height, file.width, geometry)
    with PngImagePlugin.PngImageFile(io.BytesIO(file.data)) as image:
        image.load()
        opaque = _opaque(image, file, geometry.background)
    return fit(np.asarray(opaque), geometry, orientation=file.orientation)


def _webp(data: bytes, geometry: Geometry) -> Pixels:
    file = webp.read_webp(data)
    with WebPImagePlugin.WebPImageFile(io.BytesIO(file.data)) as image:
        _refuse_large(image.height, image.width, geometry)
        opaque = _composed(image, geometry.background)
    return fit(np.asarray(opaque), geometry, orientation=file.orientation)


def _opaque(image: Image.Image, file: png.Png, background: tuple[int, int, int]) -> Image.Image:
    """Converts a PNG to 8-bit RGB, on the background."""
    key = file.transparent
    samples: npt.NDArray[np.generic] | None = None
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 instead of scaling it.
        samples = np.asarray(image)
        image = Image.fromarray((samples.astype(np.uint32) >> 8).astype(np.uint8))
    if key is None:
        return _composed(image, background)
    image = image.convert("RGB") if len(key) == 3 else image.convert("L")
    if samples is None:
        # Pillow has scaled the samples to 8 bits, from fewer or from 16.
        samples = np.asarray(image)
        key = tuple(
            each >> 8 if file.depth == 16 else each * 255 // ((1 << file.depth) - 1) for each in key
        )
    clear: Any = samples == np.array(key if len(key) == 3 else key[0])
    if len(key) == 3:
        clear = clear.all(axis=2)
    rgb = np.array(image.convert("RGB"))
    rgb[clear] = background
    return Image.fromarray(rgb)


def _composed(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Converts an image to RGB, with the background where it is transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    coloured = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(coloured, mask=coloured.getchannel("A"))
    return canvas


def _refuse_large(rows: int, columns: int, geometry: Geometry) -> None:
    if rows * columns > geometry.max_pixels:
        raise InvalidImageError(
            f"is too large: {columns}×{rows} exceeds {geometry.max_pixels} pixels; scale it down"
        )
