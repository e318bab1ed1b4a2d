"""Reads all traces of a service in a period, from a server that returns only some at a time.

A search has a limit, and servers disagree about which traces they return beyond it. So the period
is read in parts, the newest first, each so short that all of its traces come. How many came of one
part tells how long the next one may be.
"""

import statistics
from collections.abc import Iterator
from typing import Final

from tidegate.cli.traces.jaeger_client import JaegerClient
from tidegate.trace_analysis.spans import Trace

__all__ = ["read_period"]

_PAGE: Final = 500
# A part is to have so many of the traces that fit, as their number varies.
_AIM: Final = 0.6
_FASTEST_GROWTH: Final = 8


def read_period(
    client: JaegerClient, service: str, start_us: int, end_us: int, most: int
) -> Iterator[Trace]:
    """Yields traces in which a span of a service began in a period.

    Args:
        client: The client of the server.
        service: The service.
        start_us: Start of the period, in microseconds since 1970.
        end_us: Its end, which belongs to it.
        most: Most traces to yield; the newest, but for some of the same moment.

    Raises:
        TracesUnreachableError: No server answers.
        TracesError: The server refuses the request, or its response cannot be parsed.
    """
    seen: set[str] = set()
    page = min(_PAGE, most)
    high, width = end_us, end_us - start_us
    while high >= start_us:
        low = max(high - width, start_us)
        found = client.whole_traces(service, low, high, page)
        if len(found) == page < most and low < high:
            width = _shorter(found, low, high)
            continue
        for trace in sorted(found, key=lambda each: -each.start_us):
            # A trace may have spans in two parts.
            if trace.trace_id not in seen:
                seen.add(trace.trace_id)
                yield trace
                if len(seen) == most:
                    return
        high = low - 1
        growth = _AIM * page / max(len(found), 1)
        width = max(int(width * min(growth, _FASTEST_GROWTH)), 1)


def _shorter(found: tuple[Trace, ...], low: int, high: int) -> int:
    """Returns a shorter width of a part, in which a page has room to spare.

    Most servers return the newest traces, and these then tell how dense they are.
    """
    median = statistics.median_low(trace.start_us for trace in found)
    return high - median if low < median <= high else (high - low) // 2
