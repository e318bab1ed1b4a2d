"""Exemplars: a few traced calls of each version that stand for what a rollout has counted.

Of each version the last calls are kept in which an objective's bad event happened, and the slowest
ones since the weights changed. They say what a decision was about; the decision itself is made of
counts. The memory is bounded, whatever the traffic is.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final

from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.router.sources.counting import event_of
from tidegate.router.sources.request import FinishedRequest
from tidegate.router.sources.source import Exemplar

__all__ = ["MAX_BAD", "MAX_SLOW", "Exemplars"]

MAX_BAD: Final = 4
"""How many bad calls of a version are kept."""

MAX_SLOW: Final = 2
"""How many slow calls of a version are kept."""


class Exemplars:
    """The exemplars of one rollout.

    Args:
        measures: What the rollout counts.
    """

    def __init__(self, measures: Sequence[Measure]) -> None:
        self._rates = [each for each in measures if each.kind is MeasureKind.RATE]
        self._bad: dict[str, deque[Exemplar]] = {}
        # Heaps of duration, number of the call, and call.
        self._slow: dict[str, list[tuple[float, int, Exemplar]]] = {}
        self._seen = 0

    def begin_epoch(self) -> None:
        """Forgets slow calls: other weights, other times."""
        self._slow.clear()

    def add(self, request: FinishedRequest) -> None:
        """Notes a call that counts."""
        if not request.trace_id:
            return
        self._seen += 1
        for measure in self._rates:
            if event_of(measure, request):
                kept = self._bad.setdefault(request.version, deque(maxlen=MAX_BAD))
                kept.append(_exemplar(request, _why(measure, request)))
                return
        slow = self._slow.setdefault(request.version, [])
        if len(slow) == MAX_SLOW and request.duration_s <= slow[0][0]:
            return
        why = f"latency {request.duration_s:.3g} s"
        entry = request.duration_s, self._seen, _exemplar(request, why)
        if len(slow) < MAX_SLOW:
            heapq.heappush(slow, entry)
        else:
            heapq.heapreplace(slow, entry)

    def all(self) -> tuple[Exemplar, ...]:
        """Returns the exemplars of each version: bad calls first, then slow ones."""
        bad = [each for kept in self._bad.values() for each in kept]
        slow = [each for kept in self._slow.values() for _, _, each in sorted(kept, reverse=True)]
        return (*bad, *slow)


def _exemplar(request: FinishedRequest, why: str) -> Exemplar:
    return Exemplar(
        version=request.version,
        trace_id=request.trace_id,
        span_id=request.span_id,
        start_s=request.start_s,
        why=why,
    )


def _why(measure: Measure, request: FinishedRequest) -> str:
    return f"{measure.metric}: {request.code or 'HTTP'} in {request.duration_s:.3g} s"
