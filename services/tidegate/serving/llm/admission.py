"""Limits the requests that the server holds: those that the engine runs, and a bounded queue.

Each answer that a request asks for is a request of its own to the engine, so it counts as one here.

The server refuses a request beyond the limit at once. So memory is bounded, and accepted requests
do not wait behind requests whose clients will have given up. A request counts from the start of its
work to the end, whether it runs or waits, because only the engine knows which.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidegate.chassis.errors import ResourceExhausted
from tidegate.chassis.orca import LoadReport
from tidegate.serving.llm import telemetry

__all__ = ["Admission"]

_SHORTEST_RETRY_S: Final = 0.05
_LONGEST_RETRY_S: Final = 30.0
_WEIGHT_OF_NEWEST: Final = 0.1


class Admission:
    """Counts requests and refuses those beyond the limit. Use it on the event loop only.

    Args:
        running: Requests that the engine runs at once.
        waiting: Requests that may wait beyond those.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._running = running
        self._waiting = waiting
        self._held = 0
        self._mean_s = 0.0

    @property
    def capacity(self) -> int:
        """The requests that the server holds at most."""
        return self._running + self._waiting

    @contextmanager
    def slots(self, count: int = 1) -> Iterator[None]:
        """Counts a request with this many answers while the context is open.

        Raises:
            ResourceExhausted: The queue is full; the error says when to try again.
        """
        if self._held + count > self.capacity:
            telemetry.REFUSED.inc()
            raise ResourceExhausted(
                f"the queue is full: {self._waiting} requests wait",
                retry_after_s=self._retry_after_s(),
                reason="QUEUE_FULL",
            )
        self._held += count
        telemetry.IN_FLIGHT.inc(count)
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._held -= count
            telemetry.IN_FLIGHT.dec(count)
            took_s = time.monotonic() - began_s
            self._mean_s += (took_s - self._mean_s) * (_WEIGHT_OF_NEWEST if self._mean_s else 1)

    def load(self) -> LoadReport:
        """Reports the share of the engine's capacity that is in use."""
        return LoadReport(
            application_utilization=self._held / self._running,
            named_metrics={"waiting": float(max(self._held - self._running, 0))},
        )

    def _retry_after_s(self) -> float:
        """Estimates when half of the queue will have run (Little's law with the mean duration)."""
        ahead = max(self._waiting / 2, 1)
        return min(max(self._mean_s * ahead / self._running, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
