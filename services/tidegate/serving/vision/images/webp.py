"""Extracts from a WebP the chunks that make the picture, so that Pillow never sees the others.

libwebp refuses a file whose chunk lengths do not add up, even if the chunk that is too long is a
profile or EXIF data. Such chunks do not change the picture, so they are omitted (RFC 9649, section
2.7).
"""

from dataclasses import dataclass

from tidegate.image_files import InvalidImageError, exif

__all__ = ["WebP", "read_webp"]

_RIFF_BYTES, _CHUNK_BYTES = 12, 8
_PICTURE = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
# The bits of an extended header that announce metadata: profile, EXIF, XMP.
_METADATA_FLAGS = 0x20 | 0x08 | 0x04


@dataclass(frozen=True, slots=True)
class WebP:
    """A WebP reduced to the chunks that make the picture.

    Attributes:
        orientation: The EXIF orientation, 1 to 8.
        data: The reduced file.
    """

    orientation: int
    data: bytes


def read_webp(data: bytes) -> WebP:
    """Reduces a WebP to the chunks that make the picture.

    Args:
        data: A file for which :func:`~tidegate.image_files.headers.is_webp` holds.

    Raises:
        InvalidImageError: The file is shorter than its header states.
    """
    orientation = 1
    parts: list[bytes] = []
    # Other programs may have appended bytes to the file.
    size = _CHUNK_BYTES + int.from_bytes(data[4:8], "little")
    # Some programs omit the byte that makes the length even.
    if len(data) < size - 1:
        raise InvalidImageError(
            f"is cut short: the WebP has {len(data)} of {size} bytes; send the whole file"
        )
    missing = 0
    at = _RIFF_BYTES
    while at + _CHUNK_BYTES <= size:
        kind = data[at : at + 4]
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + _CHUNK_BYTES + length + length % 2
        if kind == b"VP8X" and length >= 10:
            flags = bytes([data[at + 8] & ~_METADATA_FLAGS])
            parts.append(data[at : at + 8] + flags + data[at + 9 : end])
        elif kind in _PICTURE:
            # Unchanged even if it is cut: the sizes then show that bytes are missing.
            parts.append(data[at : min(end, size)])
            missing = max(missing, end - size)
        elif kind == b"EXIF":
            orientation = exif.orientation(data[at + 8 : at + 8 + length])
        at = end
    body = b"".join(parts)
    riff = b"RIFF" + (4 + len(body) + missing & 0xFFFFFFFF).to_bytes(4, "little") + b"WEBP"
    return WebP(orientation, riff + body)
