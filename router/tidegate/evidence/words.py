"""The sentences of an assessment: what was measured, in plain words with the numbers."""

import math

__all__ = ["amount", "count", "interval", "number", "percent", "share_interval", "times"]


def percent(rate: float) -> str:
    """Returns a share as files have it: ``5.1%``, ``0.012%``."""
    return f"{number(rate * 100)}%"


def number(value: float) -> str:
    """Returns a number with three digits: ``5.14``, ``0.0123``, ``3,708``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def amount(value: float, *, is_duration: bool) -> str:
    """Returns a measured number, a duration with its unit: ``46.2ms``, ``4.7s``."""
    if not is_duration:
        return number(value)
    return f"{number(value)}s" if value >= 1 else f"{number(value * 1000)}ms"


def count(value: float) -> str:
    """Returns a count: ``3,708``."""
    return f"{value:,.0f}"


def times(ratio: float) -> str:
    """Returns a ratio: ``46 times``."""
    return f"{number(ratio)} times"


def interval(low: float | None, high: float | None) -> str:
    """Returns an interval: ``(21 to 98)``, ``(at least 21)``, or nothing if it is not known."""
    if low is None and high is None:
        return ""
    if high is None:
        return f" (at least {number(low or 0.0)})"
    if low is None:
        return f" (at most {number(high)})"
    return f" ({number(low)} to {number(high)})"


def share_interval(low: float | None, high: float | None) -> str:
    """Returns an interval of shares: ``(3% to 9%)``, or nothing if it is not known."""
    if low is None and high is None:
        return ""
    if high is None:
        return f" (at least {percent(low or 0.0)})"
    return f" ({percent(low or 0.0)} to {percent(high)})"
