"""Parts of image files: segments, chunks, and harmless oddities."""

import re
import struct
import zlib

import pytest

from tidegate.image_files import InvalidImageError
from tidegate.serving.repository import Interpolation
from tidegate.serving.vision.images.decode import Geometry, decode

SMALL = Geometry(48, 64, None, Interpolation.BILINEAR, True, (255, 255, 255), 1 << 24)


def segment(marker, body):
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2) + body


def chunk(kind, body, checksum=None):
    if checksum is None:
        checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def after_start(jpeg, *segments):
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def orientation_data(value, order="<"):
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHxx", 8, 1, 0x0112, 3, 1, value) + bytes(4)


def exif_segment(value, order="<"):
    return segment(0xE1, b"Exif\0\0" + orientation_data(value, order))


def restarts_of(jpeg):
    return [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", jpeg)]


def refusal(data):
    with pytest.raises(InvalidImageError) as refused:
        decode(data, SMALL)
    return str(refused.value)


JPEGS = ("baseline", "grey", "restarts", "many restarts", "progressive", "cmyk")


def with_scan_parameters(jpeg, parameters):
    """A baseline JPEG as some phones write it: its progressive scan parameters are not 0, 63, 0."""
    at = jpeg.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return jpeg[: end - 3] + parameters + jpeg[end:]


def stray_between_segments(jpeg, count=3):
    at = jpeg.index(b"\xff\xdb")
    return jpeg[:at] + bytes(range(1, count + 1)) + jpeg[at:]


def stray_before(jpeg, at, count=5):
    return jpeg[:at] + bytes(range(1, count + 1)) + jpeg[at:]


HARMLESS = {
    "scan parameters": lambda jpeg: with_scan_parameters(jpeg, b"\x00\x00\x00"),
    "stray bytes between segments": stray_between_segments,
    "stray bytes before the end": lambda jpeg: stray_before(jpeg, len(jpeg) - 2),
    "an unknown JFIF version": lambda jpeg: after_start(
        jpeg, segment(0xE0, b"JFIF\0\x07\x01" + bytes(7))
    ),
    "bytes after the end": lambda jpeg: jpeg + b"and more" * 9,
    "no end": lambda jpeg: jpeg[:-2],
    "an unknown Adobe colour": lambda jpeg: after_start(
        jpeg, segment(0xEE, b"Adobe" + bytes(6) + b"\x09")
    ),
    "a broken profile": lambda jpeg: after_start(
        jpeg, segment(0xE2, b"ICC_PROFILE\0\7\2" + bytes(40))
    ),
}
SEQUENTIAL = ("baseline", "grey", "restarts", "many restarts", "cmyk")
