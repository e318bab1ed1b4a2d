"""Extracts from a PNG the chunks that make the picture, so that Pillow never sees the others.

Pillow refuses a file for errors beside its pixels: a text or a profile that decompresses to more
than a megabyte, a wrong checksum of a chunk that nobody needs. Such chunks do not change the
picture, so they are omitted (PNG specification, third edition, chapter 11). In grey and colour
images, one colour may be transparent; it is read here, because Pillow compares it with pixels that
it has already scaled.
"""

import struct
import zlib
from dataclasses import dataclass

from tidegate.image_files import InvalidImageError, exif
from tidegate.image_files.headers import PNG_SIGNATURE, read_png_header

__all__ = ["Png", "read_png"]

_GREY, _COLOUR, _PALETTE = 0, 2, 3
_FRAMING_BYTES = 12
_PICTURE = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


@dataclass(frozen=True, slots=True)
class Png:
    """A PNG reduced to the chunks that make the picture.

    Attributes:
        width: Columns as stored.
        height: Rows as stored.
        depth: Bits of a sample.
        orientation: The EXIF orientation, 1 to 8.
        transparent: The sample or samples of the one transparent colour, of ``depth`` bits each;
            None if there is none, and for palettes and alpha channels, which Pillow handles.
        data: The reduced file.
    """

    width: int
    height: int
    depth: int
    orientation: int
    transparent: tuple[int, ...] | None
    data: bytes


def read_png(data: bytes) -> Png:
    """Reduces a PNG to the chunks that make the picture.

    Args:
        data: A file that begins with :data:`~tidegate.image_files.headers.PNG_SIGNATURE`.

    Raises:
        InvalidImageError: Its header or its palette is missing.
    """
    header = read_png_header(data)
    colour = header.colour
    orientation = 1
    transparent: tuple[int, ...] | None = None
    parts = [PNG_SIGNATURE]
    at, size = len(PNG_SIGNATURE), len(data)
    while at < size:
        length = int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        end = at + _FRAMING_BYTES + length
        if kind == b"IHDR" and at > len(PNG_SIGNATURE):
            # Omitted: Pillow would use the size of the last header, which is not checked.
            pass
        elif kind in _PICTURE:
            # Unchanged even if it is cut: Pillow then reports that rows are missing.
            parts.append(data[at:end])
        elif kind == b"tRNS":
            body = data[at + 8 : at + 8 + length]
            if colour == _PALETTE:
                parts.append(_chunk(kind, body))
            elif colour in {_GREY, _COLOUR}:
                samples = 1 if colour == _GREY else 3
                if len(body) >= 2 * samples:
                    transparent = struct.unpack_from(f">{samples}H", body)
        elif kind == b"eXIf":
            orientation = exif.orientation(data[at + 8 : at + 8 + length])
        if kind == b"IEND":
            break
        at = end
    if colour == _PALETTE and not any(part.startswith(b"PLTE", 4) for part in parts):
        # Without a palette Pillow invents one, or fails.
        raise InvalidImageError(
            "is damaged: the PNG has no palette; send the file as it was written"
        )
    return Png(header.width, header.height, header.depth, orientation, transparent, b"".join(parts))


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(kind + body).to_bytes(4)
    return len(body).to_bytes(4) + kind + body + checksum
