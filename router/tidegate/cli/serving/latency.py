"""Latencies of many calls in the figures that people compare."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["LatencySummary", "summarise"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """What many calls took; latencies are in milliseconds, as the client saw them.

    Attributes:
        count: calls that were answered.
        failed: calls that were not.
        seconds: from the first to the last.
        per_second: answered calls a second.
        min_ms: the fastest.
        p50_ms: half were at most this slow.
        p90_ms: nine in ten were at most this slow.
        p95_ms: nineteen in twenty were at most this slow.
        p99_ms: ninety-nine in a hundred were at most this slow.
        max_ms: the slowest.
    """

    count: int
    failed: int
    seconds: float
    per_second: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


def summarise(latencies_s: Sequence[float], *, failed: int, seconds: float) -> LatencySummary:
    """Summarises latencies by the nearest-rank method.

    Args:
        latencies_s: one for each answered call, in seconds; at least one.
        failed: calls that were not answered.
        seconds: how long all of it took.
    """
    ordered = sorted(latencies_s)

    def at(percent: int) -> float:
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] * 1000

    return LatencySummary(
        count=len(ordered),
        failed=failed,
        seconds=seconds,
        per_second=len(ordered) / seconds if seconds > 0 else 0.0,
        min_ms=ordered[0] * 1000,
        p50_ms=at(50),
        p90_ms=at(90),
        p95_ms=at(95),
        p99_ms=at(99),
        max_ms=ordered[-1] * 1000,
    )
