"""How many requests are held: as many as the engine runs at once, and a bounded number that wait.

What comes beyond that is refused at once, so that memory is bounded and that those who were taken
do not wait behind those who will have given up. A request counts from its first byte of work to its
last, whether it then runs or waits, since only the engine knows which.
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
    """Counts requests and refuses those beyond the limit. For the event loop only.

    Args:
        running: Requests that the engine works on at once.
        waiting: Requests held beyond those.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._running = running
        self._waiting = waiting
        self._held = 0
        self._mean_s = 0.0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Holds one request for as long as the context lasts.

        Raises:
            ResourceExhausted: There is no room; it says when to try again.
        """
        if self._held >= self._running + self._waiting:
            telemetry.REFUSED.inc()
            raise ResourceExhausted(
                f"{self._waiting} requests wait already, the most this server holds",
                retry_after_s=self._retry_after_s(),
                reason="QUEUE_FULL",
            )
        self._held += 1
        telemetry.IN_FLIGHT.inc()
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._held -= 1
            telemetry.IN_FLIGHT.dec()
            took_s = time.monotonic() - began_s
            self._mean_s += (took_s - self._mean_s) * (_WEIGHT_OF_NEWEST if self._mean_s else 1)

    def load(self) -> LoadReport:
        """Reports how much of what the engine can run is taken."""
        return LoadReport(
            application_utilization=self._held / self._running,
            named_metrics={"waiting": float(max(self._held - self._running, 0))},
        )

    def _retry_after_s(self) -> float:
        """Estimates when half of those who wait will run (Little's law with the mean duration)."""
        ahead = max(self._waiting / 2, 1)
        return min(max(self._mean_s * ahead / self._running, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
