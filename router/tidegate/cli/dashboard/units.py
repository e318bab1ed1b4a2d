"""Numbers with their units, as Grafana's panels write them: ``46.2 ms``, ``5.1%``, ``29 req/s``."""

import math
from collections.abc import Callable
from typing import Final

__all__ = ["text_of"]

_TIMES: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BINARY: Final = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_DECIMAL: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def text_of(value: float, unit: str = "short") -> str:
    """Writes a number in a unit of Grafana; an unknown unit is left out.

    Args:
        value: The number.
        unit: Grafana's name of the unit.
    """
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    return _WRITERS.get(unit, _short)(value)


def _plain(value: float) -> str:
    """A number with three digits, and without an exponent where people read it."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else f"{value:,.0f}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _short(value: float) -> str:
    for size, name in _DECIMAL:
        if abs(value) >= size:
            return f"{_plain(value / size)}{name}"
    return _plain(value)


def _seconds(value: float) -> str:
    if value == 0:
        return "0 s"
    for size, name in _TIMES:
        if abs(value) >= size:
            return f"{_plain(value / size)} {name}"
    return f"{_plain(value)} s"


def _bytes(value: float) -> str:
    for size, name in _BINARY:
        if abs(value) >= size:
            return f"{_plain(value / size)} {name}"
    return f"{_plain(value)} B"


_WRITERS: Final[dict[str, Callable[[float], str]]] = {
    "none": _plain,
    "short": _short,
    "s": _seconds,
    "bytes": _bytes,
    "decmbytes": lambda value: f"{_plain(value)} MB",
    "percent": lambda value: f"{_plain(value)}%",
    "percentunit": lambda value: f"{_plain(100 * value)}%",
    "reqps": lambda value: f"{_short(value)} req/s",
    "cps": lambda value: f"{_short(value)}/s",
}
