"""Reads the image orientation from EXIF data.

Only this one value is needed, so only it is read. Many files have damaged EXIF data; their pixels
are usable all the same, and without a readable orientation they count as upright.
"""

import struct

__all__ = ["HEADER", "orientation"]

HEADER = b"Exif\0\0"
"""The bytes before the EXIF data in a JPEG, and in some files of other formats."""

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION_TAG = 0x0112
_ENTRY_BYTES = 12
_TYPES = {3: "H", 4: "I"}


def orientation(data: bytes) -> int:
    """Reads the orientation, 1 to 8; 1 (upright) if it is missing or unreadable.

    Args:
        data: EXIF data, that is a TIFF header and its directories (TIFF 6.0, section 2), with or
            without :data:`HEADER`. Further bytes may follow.
    """
    data = data.removeprefix(HEADER)
    order = _ORDERS.get(data[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, directory)
        for entry in range(directory + 2, directory + 2 + entries * _ENTRY_BYTES, _ENTRY_BYTES):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            if tag == _ORIENTATION_TAG and kind in _TYPES:
                (value,) = struct.unpack_from(order + _TYPES[kind], data, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        # The directory is cut short.
        return 1
    return 1
