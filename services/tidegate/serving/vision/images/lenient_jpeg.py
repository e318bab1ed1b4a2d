"""Decodes the JPEGs that libjpeg warns about, if no pixel is missing.

Browsers show a JPEG whatever libjpeg warns about. Most warnings are harmless: an odd number in a
header, bytes that belong to no segment. A few mean that pixels are missing and decode as grey.
libjpeg reports only the first warning, so this module removes the causes of harmless ones until
libjpeg is silent:

1. It omits what belongs to no picture (profiles, comments, previews, bytes between segments), and
   corrects numbers that only a strict reader minds.
2. Extra bytes at the end of the pixel data look like the data before them. If they are the only
   warning of a part that is decoded alone, no pixel of that part is missing. The parts are the
   scans of a file with many scans, and the stretches between restart markers.
"""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simplejpeg

from tidegate.image_files.headers import MOST_SEGMENTS, InvalidImageError, too_many_segments

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

__all__ = ["MOST_SCANS", "decode", "refuse_many_scans"]

MOST_SCANS = 100
"""A file with more is refused: even a scan of a few bytes takes a pass over the whole picture."""

_HARMLESS_AT_THE_END = re.compile(r"(\d+) extraneous bytes before marker")
_CUT_SHORT = re.compile(r"premature end of", re.IGNORECASE)
_LOST = re.compile(r"corrupt jpeg data", re.IGNORECASE)
# The end of the data of a scan: any marker but a restart.
_AFTER_DATA = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_RESTART = re.compile(rb"\xff+[\xd0-\xd7]")

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
_RESTART_INTERVAL, _SCAN = 0xDD, 0xDA
_JFIF, _ADOBE = b"JFIF\0", b"Adobe"
# How colours may be stored, in Adobe's numbers, the usual one first. libjpeg warns about others.
_TRANSFORMS = {"RGB": (1, 0), "CMYK": (2, 0)}
_LARGEST_SIDE = 65_500
# Cameras and programs write about ten scans. A file that needs more trials is refused.
_MOST_TRIALS, _MOST_SCANS_TRIED = 300, 16
_NOT_FILL = re.compile(rb"[^\xff]")


@dataclass(slots=True)
class _Scan:
    """One pass over the picture: the tables that it needs, its header, and its data."""

    tables: bytes
    header: bytes
    data: bytes


@dataclass(slots=True)
class _Jpeg:
    """The parts of a file that make the picture."""

    frame_marker: int = 0
    frame: bytes = b""
    scans: list[_Scan] = field(default_factory=list)
    interval: int = 0
    ended: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return int.from_bytes(self.frame[3:5]), int.from_bytes(self.frame[1:3])

    @property
    def sequential(self) -> bool:
        return self.frame_marker in _SEQUENTIAL

    def file(self, scans: "Sequence[_Scan] | None" = None) -> bytes:
        """Builds a file of all scans, or of the given ones."""
        parts = [_SOI]
        for scan in self.scans if scans is None else scans:
            parts += (scan.tables, scan.header, scan.data)
        return b"".join([*parts, _EOI])


def decode(
    data: bytes,
    warning: str,
    colours: str,
    height: int,
    width: int,
    *,
    size: tuple[int, int],
) -> "npt.NDArray[np.uint8]":
    """Decodes a file that libjpeg warns about, or refuses it.

    Args:
        data: The file.
        warning: The first warning of libjpeg.
        colours: The colour space to decode to, as simplejpeg names it.
        height: The least number of rows to decode.
        width: The least number of columns to decode.
        size: Columns and rows of the file, which are within the limit.

    Raises:
        InvalidImageError: Pixels are missing, or libjpeg does not support this kind of JPEG.
    """
    jpeg = _parsed(data, _TRANSFORMS[colours])
    if jpeg.size != size:
        # The other reader skipped bytes that this one reads, and they hold another size.
        raise InvalidImageError(f"is damaged ({warning}); send the file as it was written")
    if not jpeg.ended and not _whole_without_end(jpeg):
        raise InvalidImageError(f"is cut short ({warning}); send the whole file")
    clean = jpeg.file()
    pixels: npt.NDArray[np.uint8]
    try:
        pixels = simplejpeg.decode_jpeg(clean, colours, min_height=height, min_width=width)
    except ValueError as error:
        warning = str(error)
    else:
        return pixels
    if not _HARMLESS_AT_THE_END.search(warning):
        raise _refusal(warning, ended=jpeg.ended)
    try:
        complete = _Trials().complete(jpeg)
    except ValueError:
        complete = False
    if not complete:
        raise InvalidImageError(
            f"is damaged: pixels are missing ({warning}); send the file as it was written"
        )
    pixels = simplejpeg.decode_jpeg(
        clean, colours, min_height=height, min_width=width, strict=False
    )
    return pixels


def refuse_many_scans(data: bytes) -> None:
    """Refuses a file of more than :data:`MOST_SCANS` scans.

    Raises:
        InvalidImageError: The file has more.
    """
    _parsed(data, _TRANSFORMS["RGB"])


def _refusal(warning: str, *, ended: bool) -> InvalidImageError:
    if _CUT_SHORT.search(warning):
        cause = "is damaged" if ended else "is cut short"
        return InvalidImageError(f"{cause}: pixels are missing ({warning}); send the whole file")
    if _LOST.search(warning):
        return InvalidImageError(f"is damaged ({warning}); send the file as it was written")
    return InvalidImageError(
        f"is a JPEG that cannot be decoded ({warning}); convert it to a baseline JPEG or a PNG"
    )


def _parsed(data: bytes, transforms: tuple[int, ...]) -> _Jpeg:
    """Splits a file into its parts, and corrects what only a strict reader minds."""
    jpeg = _Jpeg()
    tables: list[bytes] = []
    at, segments = _next_marker(data, 2), 0
    while 0 <= at < len(data):
        segments += 1
        if segments > MOST_SEGMENTS:
            raise too_many_segments()
        marker = data[at]
        if marker == _EOI[1]:
            jpeg.ended = True
            break
        at += 1
        if marker >= 0xC0 and not 0xD0 <= marker <= 0xD8:
            length = int.from_bytes(data[at : at + 2])
            if length < 2 or at + length > len(data):
                break
            body = data[at + 2 : at + length]
            at += length
            if marker == _SCAN:
                if len(jpeg.scans) == MOST_SCANS:
                    raise InvalidImageError(
                        f"is a JPEG of more than {MOST_SCANS} scans; convert it to a baseline JPEG"
                    )
                end = _data_end(data, at)
                jpeg.scans.append(_Scan(b"".join(tables), _scan_header(jpeg, body), data[at:end]))
                tables.clear()
                at = end
            elif table := _table(jpeg, marker, body, transforms):
                tables.append(table)
        at = _next_marker(data, at)
    return jpeg


def _next_marker(data: bytes, at: int) -> int:
    """Finds the code of the next marker, behind any bytes that belong to no segment."""
    at = data.find(b"\xff", at)
    found = _NOT_FILL.search(data, at) if at >= 0 else None
    return found.start() if found else -1


def _data_end(data: bytes, at: int) -> int:
    found = _AFTER_DATA.search(data, at)
    return found.start() if found else len(data)


def _scan_header(jpeg: _Jpeg, body: bytes) -> bytes:
    if jpeg.sequential:
        # Only progressive scans use these three numbers; some cameras write arbitrary ones.
        body = body[:-3] + b"\x00\x3f\x00"
    return _segment(_SCAN, body)


def _table(jpeg: _Jpeg, marker: int, body: bytes, transforms: tuple[int, ...]) -> bytes:
    """The segment, if decoding needs it; else nothing."""
    if marker in _FRAMES:
        jpeg.frame_marker, jpeg.frame = marker, body
    elif marker == _RESTART_INTERVAL and not jpeg.scans:
        jpeg.interval = int.from_bytes(body[:2])
    elif marker == 0xE0 and body.startswith(_JFIF) and len(body) >= 14:
        # libjpeg warns about an unknown JFIF version, which nothing uses.
        body = body[:5] + b"\x01\x01" + body[7:]
    elif marker == 0xEE and body.startswith(_ADOBE) and len(body) >= 12:
        # An unknown colour transform counts as the usual one, as in libjpeg.
        known = body[11] if body[11] in transforms else transforms[0]
        body = body[:11] + bytes([known]) + body[12:]
    elif marker not in _TABLES:
        return b""
    return _segment(marker, body)


def _segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + (len(body) + 2).to_bytes(2) + body


def _whole_without_end(jpeg: _Jpeg) -> bool:
    """Whether a file without its end marker can be whole: its one scan has all components.

    libjpeg finds out whether the scan itself is whole.
    """
    if not jpeg.sequential or len(jpeg.scans) != 1:
        return False
    return len(jpeg.frame) > 5 and jpeg.scans[0].header[4:5] == jpeg.frame[5:6]


class _Trials:
    """Looks for missing pixels: decodes parts of a file alone."""

    def __init__(self) -> None:
        self._left = _MOST_TRIALS

    def complete(self, jpeg: _Jpeg) -> bool:
        """Whether a file with extra bytes has all its pixels."""
        if len(jpeg.scans) == 1:
            if not jpeg.interval:
                # The first warning concerns the end of the data, and nothing follows it.
                return True
            return jpeg.sequential and self._stretches(jpeg)
        return self._passes(jpeg)

    def _warning(self, data: bytes) -> str:
        """Returns libjpeg's first warning of a file; empty if there is none."""
        self._left -= 1
        if self._left < 0:
            raise ValueError
        try:
            simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1)
        except ValueError as error:
            return str(error) or "unknown"
        return ""

    def _passes(self, jpeg: _Jpeg) -> bool:
        """Decodes the first scan, the first two, and so on; removes the extra bytes of each."""
        scans: list[_Scan] = []
        if len(jpeg.scans) > _MOST_SCANS_TRIED:
            return False
        for scan in jpeg.scans:
            scans.append(scan)
            warning = self._warning(jpeg.file(scans))
            if not warning:
                continue
            too_many = _HARMLESS_AT_THE_END.search(warning)
            if too_many is None:
                return False
            shorter = scan.data[: len(scan.data) - int(too_many[1])]
            scans[-1] = _Scan(scan.tables, scan.header, shorter)
            if self._warning(jpeg.file(scans)):
                return False
        return True

    def _stretches(self, jpeg: _Jpeg) -> bool:
        """Decodes each stretch between restart markers as a picture of its own."""
        (scan,) = jpeg.scans
        shape = _Shape.of(jpeg)
        count = -(-shape.units // jpeg.interval)
        # With a limit: a file may hold any number of markers.
        stretches = _RESTART.split(scan.data, maxsplit=count)
        if len(stretches) != count:
            return False
        numbers = [found[-1] & 7 for found in _RESTART.findall(scan.data)]
        if numbers != [index % 8 for index in range(len(numbers))]:
            return False
        *full, last = stretches
        remaining = shape.units - len(full) * jpeg.interval
        return self._fine(jpeg, shape, full, jpeg.interval) and self._fine(
            jpeg, shape, [last], remaining
        )

    def _fine(self, jpeg: _Jpeg, shape: "_Shape", stretches: list[bytes], units: int) -> bool:
        if not stretches:
            return True
        picture = shape.picture(jpeg, stretches, units)
        if picture is None:
            return len(stretches) > 1 and self._halves(jpeg, shape, stretches, units)
        warning = self._warning(picture)
        if not warning:
            return True
        if len(stretches) > 1:
            return self._halves(jpeg, shape, stretches, units)
        return _HARMLESS_AT_THE_END.search(warning) is not None

    def _halves(self, jpeg: _Jpeg, shape: "_Shape", stretches: list[bytes], units: int) -> bool:
        middle = len(stretches) // 2
        return self._fine(jpeg, shape, stretches[:middle], units) and self._fine(
            jpeg, shape, stretches[middle:], units
        )


@dataclass(frozen=True, slots=True)
class _Shape:
    """How a picture divides into the units (MCUs) that the restart interval counts.

    Attributes:
        across: Units side by side.
        units: Units of the picture.
        width: Columns of a unit.
        height: Rows of a unit.
    """

    across: int
    units: int
    width: int
    height: int

    @classmethod
    def of(cls, jpeg: _Jpeg) -> "_Shape":
        frame = jpeg.frame
        rows, columns, count = (
            int.from_bytes(frame[1:3]),
            int.from_bytes(frame[3:5]),
            frame[5],
        )
        factors = [frame[7 + 3 * index] for index in range(count)]
        # A scan of one component ignores its sampling factors.
        width = 8 * max(each >> 4 for each in factors) if count > 1 else 8
        height = 8 * max(each & 15 for each in factors) if count > 1 else 8
        across = -(-columns // width)
        return cls(across, across * -(-rows // height), width, height)

    def picture(self, jpeg: _Jpeg, stretches: list[bytes], units: int) -> bytes | None:
        """Builds a file of stretches of ``units`` units each; None if no picture has that shape."""
        across, down = (self.across, units // self.across)
        if units % self.across:
            across, down = units, 1
        width, height = across * self.width, down * len(stretches) * self.height
        if width > _LARGEST_SIDE or height > _LARGEST_SIDE:
            return None
        size = height.to_bytes(2) + width.to_bytes(2)
        (scan,) = jpeg.scans
        frame = jpeg.frame[:1] + size + jpeg.frame[5:]
        marker = jpeg.frame_marker
        tables = scan.tables.replace(_segment(marker, jpeg.frame), _segment(marker, frame))
        interval = _segment(_RESTART_INTERVAL, units.to_bytes(2))
        data = b"".join(
            (b"\xff" + bytes([0xD0 + (index - 1) % 8]) if index else b"") + stretch
            for index, stretch in enumerate(stretches)
        )
        return b"".join((_SOI, tables, interval, scan.header, data, _EOI))
