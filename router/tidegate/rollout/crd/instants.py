"""Times as Kubernetes writes them: RFC 3339 in UTC."""

import datetime as dt

__all__ = ["instant_of", "instant_text"]


def instant_text(time_s: float, decimals: int = 6) -> str:
    """Returns a time as text, such as ``2026-05-01T12:00:00.250000Z``.

    Args:
        time_s: The time, in seconds since the epoch.
        decimals: 6 for microseconds, 0 for seconds.
    """
    moment = dt.datetime.fromtimestamp(time_s, dt.UTC)
    kind = "microseconds" if decimals else "seconds"
    return moment.replace(tzinfo=None).isoformat(timespec=kind) + "Z"


def instant_of(text: str) -> float:
    """Returns the time of a text in seconds since the epoch.

    Raises:
        ValueError: The text is no time.
    """
    return dt.datetime.fromisoformat(text).timestamp()
