"""What of a WebP makes the picture: the rest is taken out before Pillow sees it.

libwebp refuses a file whose chunks do not add up, even if it is a profile or EXIF data that is too
long for the file. Those do not change the picture, so they are left out (RFC 9649, section 2.7).
"""

from dataclasses import dataclass

from tidegate.serving.vision.errors import InvalidImageError
from tidegate.serving.vision.images import exif

__all__ = ["WebP", "is_webp", "read_webp"]

_RIFF_BYTES, _CHUNK_BYTES = 12, 8
_PICTURE = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
# The bits of an extended header that say which metadata follow: profile, EXIF, XMP.
_METADATA_FLAGS = 0x20 | 0x08 | 0x04


@dataclass(frozen=True, slots=True)
class WebP:
    """A WebP without what does not make the picture.

    Attributes:
        orientation: EXIF's, 1 to 8.
        data: the file.
    """

    orientation: int
    data: bytes


def is_webp(data: bytes) -> bool:
    """Whether a file says that it is a WebP."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> WebP:
    """Takes a WebP apart, and puts together what makes the picture.

    Args:
        data: a file that :func:`is_webp`.

    Raises:
        InvalidImageError: the file is shorter than it says.
    """
    orientation = 1
    parts: list[bytes] = []
    # Other programs may have put bytes behind the file.
    size = _CHUNK_BYTES + int.from_bytes(data[4:8], "little")
    # Some programs leave out the byte that makes the length even.
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
            # As it is, even where it is cut: the sizes then say that bytes are missing.
            parts.append(data[at : min(end, size)])
            missing = max(missing, end - size)
        elif kind == b"EXIF":
            orientation = exif.orientation(data[at + 8 : at + 8 + length])
        at = end
    body = b"".join(parts)
    riff = b"RIFF" + (4 + len(body) + missing & 0xFFFFFFFF).to_bytes(4, "little") + b"WEBP"
    return WebP(orientation, riff + body)
