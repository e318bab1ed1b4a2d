"""Reads the headers of JPEG, PNG and WebP files.

The size is what matters most: a file of a few bytes can decompress to gigabytes, so its size is
checked before anything is decoded or sent on.
"""

import re
import struct
from dataclasses import dataclass

from tidegate.errors import TidegateError
from tidegate.image_files import exif

__all__ = [
    "JPEG_START",
    "MOST_SEGMENTS",
    "PNG_SIGNATURE",
    "ImageSize",
    "InvalidImageError",
    "JpegHeader",
    "PngHeader",
    "is_webp",
    "read_jpeg_header",
    "read_png_header",
    "read_size",
    "read_webp_size",
    "too_many_segments",
]

JPEG_START = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""The first bytes of every PNG."""

MOST_SEGMENTS = 1 << 16
"""A JPEG with more is refused. The largest metadata, in segments of 64 KiB, are about a thousand;
bytes that belong to no segment may look like many more."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_EXIF, _END, _SCAN = 0xE1, 0xD9, 0xDA
_NOT_FILL = re.compile(rb"[^\xff]")

_RIFF_BYTES, _CHUNK_BYTES = 12, 8
# The size comes first, after metadata at most. More chunks would only take time to skip.
_MOST_CHUNKS = 1024
_VP8_START, _VP8L_START = b"\x9d\x01\x2a", b"\x2f"


class InvalidImageError(TidegateError):
    """An image cannot be used; the message names the cause and the fix."""


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The size of a picture, as stored.

    Attributes:
        width: Columns.
        height: Rows.
    """

    width: int
    height: int


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


@dataclass(frozen=True, slots=True)
class PngHeader:
    """The facts that a PNG states before its pixels.

    Attributes:
        width: Columns as stored.
        height: Rows as stored.
        depth: Bits of a sample.
        colour: The colour type: 0 grey, 2 colour, 3 palette, 4 and 6 with an alpha channel.
    """

    width: int
    height: int
    depth: int
    colour: int


def read_size(data: bytes) -> ImageSize:
    """Reads the size that an image file states.

    Args:
        data: A JPEG, PNG or WebP file.

    Raises:
        InvalidImageError: The file is empty, has another format, or states no size.
    """
    if not data:
        raise InvalidImageError("is empty; send the bytes of a JPEG, PNG or WebP file")
    if data.startswith(JPEG_START):
        jpeg = read_jpeg_header(data)
        return ImageSize(jpeg.width, jpeg.height)
    if data.startswith(PNG_SIGNATURE):
        png = read_png_header(data)
        return ImageSize(png.width, png.height)
    if is_webp(data):
        return read_webp_size(data)
    raise InvalidImageError("is not a JPEG, PNG or WebP file; convert it to one")


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Reads the segments before the pixels (ITU-T T.81, annex B).

    Like libjpeg, it skips bytes that belong to no segment.

    Args:
        data: A file that begins with :data:`JPEG_START`.

    Raises:
        InvalidImageError: The file ends before its pixels, or states no size.
    """
    frame: tuple[int, int, int] | None = None
    orientation = 1
    exif_seen = False
    at, size = 2, len(data)
    for _ in range(MOST_SEGMENTS):
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
        raise too_many_segments()
    if frame is None or marker == _END or not frame[0] or not frame[1]:
        raise InvalidImageError(
            "is damaged: the JPEG does not state its size before its pixels; "
            "send the file as the camera or program wrote it"
        )
    return JpegHeader(*frame, orientation)


def too_many_segments() -> InvalidImageError:
    """The error for a JPEG of more than :data:`MOST_SEGMENTS` segments."""
    return InvalidImageError(
        f"has more than {MOST_SEGMENTS} segments; send the file as the camera or program wrote it"
    )


def read_png_header(data: bytes) -> PngHeader:
    """Reads the header chunk (PNG specification, third edition, section 11.2.1).

    Args:
        data: A file that begins with :data:`PNG_SIGNATURE`.

    Raises:
        InvalidImageError: The header is missing.
    """
    header = data[8:33]
    if len(header) < 25 or header[4:8] != b"IHDR":
        raise InvalidImageError(
            "is cut short or damaged: the PNG has no header; send the whole file"
        )
    return PngHeader(*struct.unpack_from(">IIBB", header, 8))


def is_webp(data: bytes) -> bool:
    """Whether a file has the signature of a WebP."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def read_webp_size(data: bytes) -> ImageSize:
    """Reads the size from the first chunk that states one (RFC 9649, sections 2.5 to 2.7).

    Args:
        data: A file for which :func:`is_webp` holds.

    Raises:
        InvalidImageError: No chunk states a size.
    """
    at = _RIFF_BYTES
    for _ in range(_MOST_CHUNKS):
        kind = data[at : at + 4]
        body = data[at + _CHUNK_BYTES : at + _CHUNK_BYTES + 10]
        if kind == b"VP8X" and len(body) == 10:
            width, height = int.from_bytes(body[4:7], "little"), int.from_bytes(body[7:], "little")
            return ImageSize(width + 1, height + 1)
        if kind == b"VP8L" and body.startswith(_VP8L_START) and len(body) >= 5:
            bits = int.from_bytes(body[1:5], "little")
            return ImageSize((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        if kind == b"VP8 " and body[3:6] == _VP8_START and len(body) == 10:
            width, height = struct.unpack_from("<HH", body, 6)
            return ImageSize(width & 0x3FFF, height & 0x3FFF)
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += _CHUNK_BYTES + length + length % 2
    raise InvalidImageError(
        "is cut short or damaged: the WebP does not state its size; send the whole file"
    )
