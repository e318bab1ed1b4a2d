"""The access log as a source of evidence: counts the records of finished requests.

The source listens to each host that a rollout needs. Records that are lost go into the next window
as a number: see `tidegate.router.sources.record_streams`.

**After a crash.** A process that goes on where another one vanished asks the receivers for what
they keep. What the other one had received itself is gone with it. So the source compares what it
gets with the host's rate before, and the difference counts as lost. That is an estimate.

Gauges of the signal ``promql`` come from a Prometheus, if the rollout has such objectives.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import aiohttp
from prometheus_client import Counter

from tidegate.evidence.window import TrafficWindow
from tidegate.mesh.v1 import mesh_pb2
from tidegate.prometheus import PrometheusApi
from tidegate.rollout.measures import MeasureKind
from tidegate.router.sources.epochs import RolloutCounts
from tidegate.router.sources.exemplars import Exemplars
from tidegate.router.sources.gauges import read_gauges, with_gauges
from tidegate.router.sources.record_streams import RecordStreams
from tidegate.router.sources.request import StreamingMethods, read_request
from tidegate.router.sources.source import Epoch, Exemplar, UnsupportedError, Watched
from tidegate.runtime import tracing
from tidegate.runtime.logging import get_logger

__all__ = ["AccessLogSource"]

_log = get_logger(__name__)

_LOST = Counter(
    "tidegate_rollout_records_lost",
    "Records of requests that were lost before a rollout counted them, by the best estimate.",
)

# How long receivers and proxies have after a crash to send the records of requests before it.
_GAP_CLOSES_S: Final = 5.0


class AccessLogSource:
    """Counts traffic from the records of finished requests.

    Args:
        streams: Reads the records; whoever made them runs them.
    """

    def __init__(self, streams: RecordStreams) -> None:
        self._streams = streams
        self._rollouts: dict[str, RolloutCounts] = {}
        self._hosts: dict[str, _WatchedHost] = {}
        self._gauge_problems: dict[str, tuple[str, ...]] = {}
        self._resumed: dict[str, _Gap] = {}
        self._session: aiohttp.ClientSession | None = None
        self._after_crash = False

    @asynccontextmanager
    async def running(self, *, after_crash: bool = False) -> AsyncIterator[Self]:
        """Asks Prometheus for gauges while the context is open.

        Args:
            after_crash: Whether the process that counted before has vanished.
        """
        self._after_crash = after_crash
        async with aiohttp.ClientSession() as self._session:
            yield self
        self._session = None

    def check(self, watched: Watched) -> None:
        """Makes sure that the source can count what a rollout asks for.

        Raises:
            UnsupportedError: The rollout has gauges and no Prometheus to ask.
        """
        gauges = [each for each in watched.measures if each.kind is MeasureKind.GAUGE]
        if gauges and not watched.url:
            raise UnsupportedError(
                f"{gauges[0].metric} needs a Prometheus; set evidence.url, or --prometheus-url of "
                "the router"
            )

    def watch(self, key: str, watched: Watched) -> None:
        """Counts for a rollout from now on; replaces what was watched under its key.

        Raises:
            UnsupportedError: The rollout has gauges and no Prometheus to ask.
        """
        self.check(watched)
        before = self._rollouts.get(key)
        if before is not None and before.watched.host != watched.host:
            self.forget(key)
        self._gauge_problems.pop(key, None)
        # Without tracing of its own the router has no use for them.
        exemplars = Exemplars(watched.measures) if tracing.is_on() else None
        counts = self._rollouts[key] = RolloutCounts(watched, exemplars)
        host = self._hosts.get(watched.host)
        if host is None:
            gap = self._resumed.pop(watched.host, None)
            host = self._hosts[watched.host] = _WatchedHost(gap if self._after_crash else None)
            self._streams.listen(watched.host, host, None if gap is None else gap.since_s)
        host.rollouts[key] = counts

    def begin_change(self, key: str, now_s: float) -> None:
        """Says that the weights are about to change: the current epoch ends at `now_s`."""
        self._rollouts[key].begin_change(now_s)

    def begin_epoch(self, key: str, epoch: Epoch) -> None:
        """Says that new weights are in force."""
        self._rollouts[key].begin_epoch(epoch)

    async def take(self, key: str, now_s: float) -> tuple[TrafficWindow, ...]:
        """Returns what was counted since the last call, one window for each epoch with traffic."""
        counts = self._rollouts[key]
        self._hosts[counts.watched.host].close_gap(now_s)
        windows = counts.take(now_s)
        watched = counts.watched
        if not counts.has_gauges:
            return windows
        assert self._session is not None, "not running"  # noqa: S101 - a fault of the caller
        gauges = await read_gauges(PrometheusApi(self._session, watched.url), watched, now_s)
        if gauges.problems and gauges.problems != self._gauge_problems.get(key):
            _log.warning("no gauges from Prometheus", rollout=key, problems=gauges.problems)
        self._gauge_problems[key] = gauges.problems
        return with_gauges(windows, gauges, counts.lasting, now_s)

    def has_news(self, key: str) -> bool:
        """Whether `take` may return a window, or `problem` another answer than an empty one."""
        counts = self._rollouts[key]
        has_gap = self._hosts[counts.watched.host].has_gap
        return counts.has_news or counts.has_gauges or has_gap or bool(self.problem(key))

    def problem(self, key: str) -> str:
        """Says why evidence is missing now; empty if nothing is known to be missing."""
        counts = self._rollouts[key]
        of_streams = self._streams.problem(counts.watched.host)
        problems = (of_streams, counts.problem, *self._gauge_problems.get(key, ()))
        return "; ".join(filter(None, problems))

    def exemplars(self, key: str) -> tuple[Exemplar, ...]:
        """Returns some traced calls that stand for what was counted; none without tracing."""
        exemplars = self._rollouts[key].exemplars
        return () if exemplars is None else exemplars.all()

    def forget(self, key: str) -> None:
        """Counts no longer for a rollout."""
        self._gauge_problems.pop(key, None)
        counts = self._rollouts.pop(key, None)
        if counts is None:
            return
        host = self._hosts[counts.watched.host]
        del host.rollouts[key]
        if not host.rollouts:
            self._streams.leave(counts.watched.host, host)
            del self._hosts[counts.watched.host]

    def resume(self, host: str, since_s: float, requests_per_s: float) -> bool:
        """Has requests counted that another process did not count; see `TrafficSource`.

        It can, if the receivers keep records for so long and nobody watches the host yet.
        """
        now_s = time.time()
        if host in self._hosts or now_s - since_s > self._streams.kept_s:
            return False
        self._resumed[host] = _Gap(since_s, now_s, requests_per_s)
        return True

    async def watching(self, host: str) -> None:
        """Waits until records of a watched host arrive; for tests, which send requests then."""
        await self._streams.watching(host)


@dataclass(slots=True)
class _Gap:
    """The time between what another process counted and what this one receives.

    Attributes:
        since_s: Its begin, in seconds since the epoch.
        until_s: Its end.
        requests_per_s: The host's requests per second before.
        got: How many requests that started in it are known.
    """

    since_s: float
    until_s: float
    requests_per_s: float
    got: int = 0

    def note(self, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        starts = (each.start.seconds + each.start.nanos / 1e9 for each in records)
        self.got += sum(self.since_s <= each < self.until_s for each in starts)

    @property
    def missing(self) -> int:
        """How many requests are not known, by the rate before."""
        expected = self.requests_per_s * (self.until_s - self.since_s)
        return max(0, round(expected) - self.got)


class _WatchedHost:
    """Counts the records of a host for the rollouts on it.

    Args:
        gap: What another process that vanished has not counted; None if none has.

    Attributes:
        rollouts: The counts of the rollouts.
    """

    def __init__(self, gap: _Gap | None) -> None:
        self.rollouts: dict[str, RolloutCounts] = {}
        self._methods = StreamingMethods()
        self._gap = gap

    @property
    def has_gap(self) -> bool:
        """Whether it is not known yet what is missing."""
        return self._gap is not None

    def close_gap(self, now_s: float) -> None:
        """Counts what is missing as lost, once the receivers have sent what they keep."""
        gap = self._gap
        if gap is not None and now_s >= gap.until_s + _GAP_CLOSES_S:
            self._gap = None
            self.lose(gap.missing)

    def receive(self, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        if self._gap is not None:
            self._gap.note(records)
        for counts in self.rollouts.values():
            sticky, mirrored = counts.watched.sticky, counts.watched.mirrored
            for record in records:
                counts.add(read_request(record, self._methods, sticky, mirrored=mirrored))

    def lose(self, count: int) -> None:
        _LOST.inc(count)
        for counts in self.rollouts.values():
            counts.lose(count)
