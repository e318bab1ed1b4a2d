"""The interface of a source of evidence.

A rollout tells a source what to watch, and each time that the weights have changed. It takes the
windows that have come together since it asked last. A window never spans a change of weights.
"""

from typing import Protocol

import msgspec

from tidegate.errors import TidegateError
from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.measures import Measure
from tidegate.rollout.traffic import Sticky

__all__ = ["Epoch", "Exemplar", "TrafficSource", "UnsupportedError", "Watched"]


class UnsupportedError(TidegateError):
    """A source cannot count what a rollout asks for."""


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    """What to count.

    Attributes:
        host: The host's full name.
        baseline: The subset that is trusted.
        candidates: The subsets that are judged.
        measures: What to count of each request.
        sticky: What names the user, if users count and not requests; None counts requests.
        mirrored: Whether the candidates get copies of requests, which only their proxy's upstream
            log has.
        url: The address of Prometheus, for a source or a measure that asks it; empty otherwise.
    """

    host: str
    baseline: str
    candidates: tuple[str, ...]
    measures: tuple[Measure, ...]
    sticky: Sticky | None = None
    mirrored: bool = False
    url: str = ""


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """A time of unchanged weights.

    Attributes:
        shares: The intended share of each version, from 0 to 1; of a mirrored version the share of
            requests that are copied.
        requested_s: When the change to these weights was begun. Requests that started from then
            until `since_s` count in no epoch.
        since_s: Since when the weights are in force.
    """

    shares: dict[str, float]
    requested_s: float
    since_s: float


class Exemplar(msgspec.Struct, frozen=True, kw_only=True):
    """A traced call that stands for others: one that failed an objective, or a slow one.

    Attributes:
        version: The subset that it went to.
        trace_id: Its trace, in hexadecimal digits.
        span_id: A span of it; empty if none is known.
        start_s: When it began, in seconds since the epoch.
        why: Why it was chosen: ``UNAVAILABLE``, ``latency 1.20 s``.
    """

    version: str
    trace_id: str
    span_id: str
    start_s: float
    why: str


class TrafficSource(Protocol):
    """Counts the traffic of hosts."""

    def check(self, watched: Watched) -> None:
        """Makes sure that the source can count what a rollout asks for.

        Raises:
            UnsupportedError: It cannot; the message says what to write instead.
        """
        ...

    def watch(self, key: str, watched: Watched) -> None:
        """Counts for a rollout from now on; replaces what was watched under its key.

        Raises:
            UnsupportedError: The source cannot count what the rollout asks for.
        """
        ...

    def resume(self, host: str, since_s: float, requests_per_s: float) -> bool:
        """Has requests of a host counted that another process did not count any more.

        Call it before the first rollout of the host is watched, and begin the epoch then.

        Args:
            host: The host.
            since_s: Since when requests that began are to be counted, also if they have ended.
            requests_per_s: How many there were, as far as the other process knew. If it vanished,
                those that are missing count as lost.

        Returns:
            Whether the source can do that.
        """
        ...

    def begin_change(self, key: str, now_s: float) -> None:
        """Says that the weights are about to change: the current epoch ends at `now_s`."""
        ...

    def begin_epoch(self, key: str, epoch: Epoch) -> None:
        """Says that new weights are in force."""
        ...

    async def take(self, key: str, now_s: float) -> tuple[TrafficWindow, ...]:
        """Returns what can be compared since the last call, one window for each epoch with traffic.

        A request counts in the epoch in which it started, also when it ends later. No data is no
        window, or a window without the measure; `problem` then says why.
        """
        ...

    def has_news(self, key: str) -> bool:
        """Whether `take` may return a window, or `problem` another answer than an empty one.

        Whoever cannot tell without looking answers yes.
        """
        ...

    def problem(self, key: str) -> str:
        """Says why evidence is missing now; empty if nothing is known to be missing."""
        ...

    def exemplars(self, key: str) -> "tuple[Exemplar, ...]":
        """Returns some traced calls that stand for what was counted; none without tracing."""
        ...

    def forget(self, key: str) -> None:
        """Counts no longer for a rollout."""
        ...
