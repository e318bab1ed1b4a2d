"""Increases of counters between raw samples: pure.

PromQL's `increase` extrapolates, so it gives fractions of requests and cannot be cut at the moment
at which weights changed. Here each pair of samples that follow each other gives the exact increase
between their times, and whoever adds them up leaves out those that span a change.

A counter that falls was reset, and counts from zero. A series that appears counts from zero too, if
its target was scraped before: a counter of a rare code appears with its first event. The first
sample of a target counts nothing, because nobody knows since when it counts. A series that was away
goes on from its last value.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from tidegate.prometheus import Series

__all__ = ["CounterReader", "Increase"]

_MAX_SERIES: Final = 100_000


class Increase(msgspec.Struct, frozen=True, gc=False):
    """By how much a counter rose between two samples.

    Attributes:
        labels: The labels of the counter.
        from_s: The time of the earlier sample.
        to_s: The time of the later sample.
        by: The increase, above 0.
    """

    labels: dict[str, str]
    from_s: float
    to_s: float
    by: float


class CounterReader:
    """Follows the counters of one selector.

    Attributes:
        read_s: The time of the last sample that was read; None before the first.
    """

    def __init__(self) -> None:
        self.read_s: float | None = None
        # The last sample of each series, by its labels, and the last of each target.
        self._last: dict[frozenset[tuple[str, str]], tuple[float, float]] = {}
        self._scraped_s: dict[tuple[str, str], float] = {}

    def read(self, found: Iterable[Series]) -> list[Increase]:
        """Reads samples; returns the increases since those that were read before.

        Samples that were read before are passed over, so ranges may overlap.
        """
        by_target: dict[tuple[str, str], list[Series]] = {}
        for series in found:
            target = (series.labels.get("job", ""), series.labels.get("instance", ""))
            by_target.setdefault(target, []).append(series)
        increases: list[Increase] = []
        latest_s = self.read_s
        for target, several in by_target.items():
            times = sorted({at_s for each in several for at_s, _ in each.samples})
            if not times:
                continue
            if target in self._scraped_s:
                times.insert(0, self._scraped_s[target])
            for series in several:
                increases += self._increases(series, sorted(times))
            self._scraped_s[target] = max(times)
            latest_s = max(times) if latest_s is None else max(latest_s, *times)
        self.read_s = latest_s
        return increases

    def _increases(self, series: Series, times: list[float]) -> Iterator[Increase]:
        key = frozenset(series.labels.items())
        last = self._last.get(key)
        for at_s, value in series.samples:
            if last is not None and at_s <= last[0]:
                continue
            before = last
            last = (at_s, value)
            if before is None:
                place = bisect_left(times, at_s)
                if place == 0:
                    continue
                before = (times[place - 1], 0.0)
            by = value - before[1] if value >= before[1] else value
            if by > 0:
                yield Increase(series.labels, before[0], at_s, by)
        if last is not None and (key in self._last or len(self._last) < _MAX_SERIES):
            self._last[key] = last
