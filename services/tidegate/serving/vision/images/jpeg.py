"""Decodes JPEG with libjpeg-turbo, at the smallest of its scales that keeps enough pixels.

It first reads the segments before the pixels: the size, to refuse a large image before decoding it,
and the EXIF orientation, in whichever segment it is. Then libjpeg decodes strictly: its first
warning ends the decoding. Few files have one. :mod:`.lenient_jpeg` distinguishes harmless warnings
from those that mean missing pixels.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from tidegate.serving.vision.errors import InvalidImageError
from tidegate.serving.vision.images import exif, lenient_jpeg

__all__ = ["START", "JpegHeader", "decode_jpeg", "read_header"]

Pixels = npt.NDArray[np.uint8]

START = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_EXIF, _END, _SCAN = 0xE1, 0xD9, 0xDA
_NOT_FILL = re.compile(rb"[^\xff]")
# libjpeg has no fast transform for its other scales, so they cost more than they save.
_SCALES = (8, 4, 2)
_CMYK_COMPONENTS = 4


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The facts that a JPEG states before its pixels.

    Attributes:
        width: Columns as stored.
        height: Rows as stored.
        components: 1 for grey, 3 for colour, 4 for CMYK.
        orientation: The EXIF orientation, 1 to 8.
    """

    width: int
    height: int
    components: int
    orientation: int


def read_header(data: bytes) -> JpegHeader:
    """Reads the segments before the pixels.

    Like libjpeg, it skips bytes that belong to no segment.

    Args:
        data: A file that begins with :data:`START`.

    Raises:
        InvalidImageError: The file ends before its pixels, or states no size.
    """
    frame: tuple[int, int, int] | None = None
    orientation = 1
    exif_seen = False
    at, size = 2, len(data)
    for _ in range(lenient_jpeg.MOST_SEGMENTS):
        at = data.find(b"\xff", at)
        found = _NOT_FILL.search(data, at) if at >= 0 else None
        at = found.start() if found else size
        if at >= size - 2:
            raise InvalidImageError(
                "is cut short: the JPEG ends before its pixels; send the whole file"
            )
        marker = data[at]
        at += 1
        if marker in _ALONE:
            continue
        if marker in {_SCAN, _END}:
            break
        length = int.from_bytes(data[at : at + 2])
        if marker in _FRAMES and frame is None:
            frame = (
                int.from_bytes(data[at + 5 : at + 7]),
                int.from_bytes(data[at + 3 : at + 5]),
                data[at + 7] if at + 7 < size else 0,
            )
        elif marker == _EXIF and not exif_seen and data.startswith(exif.HEADER, at + 2):
            exif_seen = True
            orientation = exif.orientation(data[at + 2 : at + length])
        at += max(2, length)
    else:
        raise lenient_jpeg.too_many_segments()
    if frame is None or marker == _END or not frame[0] or not frame[1]:
        raise InvalidImageError(
            "is damaged: the JPEG does not state its size before its pixels; "
            "send the file as the camera or program wrote it"
        )
    return JpegHeader(*frame, orientation)


def decode_jpeg(data: bytes, header: JpegHeader, largest_reduction: float) -> tuple[Pixels, int]:
    """Decodes grey, colour and CMYK.

    Args:
        data: The file.
        header: The result of :func:`read_header`.
        largest_reduction: The largest factor by which the image may be scaled down.

    Returns:
        uint8 RGB in the stored orientation, and the factor by which it was scaled down.

    Raises:
        InvalidImageError: Pixels are missing, or libjpeg does not support this kind of JPEG.
    """
    scale = next((each for each in _SCALES if each <= largest_reduction), 1)
    width, height = -(-header.width // scale), -(-header.height // scale)
    if data.count(b"\xff\xda") > lenient_jpeg.MOST_SCANS:
        # Only perhaps too many: metadata may look like scans.
        lenient_jpeg.refuse_many_scans(data)
    colours = "CMYK" if header.components == _CMYK_COMPONENTS else "RGB"
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width)
    except ValueError as error:
        size = header.width, header.height
        pixels = lenient_jpeg.decode(data, str(error), colours, height, width, size=size)
    if colours == "CMYK":
        # All programs but the oldest store CMYK inverted, as Adobe does.
        pixels = np.asarray(Image.fromarray(255 - pixels, "CMYK").convert("RGB"))
    return pixels, scale
