"""The access log as a source of evidence: counts the records of finished requests.

The source listens to each host that a rollout needs. Records that are lost go into the next window
as a number: see `tidegate.router.sources.record_streams`.

Gauges of the signal ``promql`` come from a Prometheus, if the rollout has such objectives.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

import aiohttp

from tidegate.evidence.window import TrafficWindow
from tidegate.mesh.v1 import mesh_pb2
from tidegate.rollout.measures import MeasureKind
from tidegate.router.sources.epochs import RolloutCounts
from tidegate.router.sources.gauges import read_gauges, with_gauges
from tidegate.router.sources.prometheus_api import PrometheusApi
from tidegate.router.sources.record_streams import RecordStreams
from tidegate.router.sources.request import StreamingMethods, read_request
from tidegate.router.sources.source import Epoch, UnsupportedError, Watched
from tidegate.runtime.logging import get_logger

__all__ = ["AccessLogSource"]

_log = get_logger(__name__)


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
        self._resumed: dict[str, float] = {}
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Asks Prometheus for gauges while the context is open."""
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
        counts = self._rollouts[key] = RolloutCounts(watched)
        host = self._hosts.get(watched.host)
        if host is None:
            host = self._hosts[watched.host] = _WatchedHost()
            self._streams.listen(watched.host, host, self._resumed.pop(watched.host, None))
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
        return counts.has_news or counts.has_gauges or bool(self.problem(key))

    def problem(self, key: str) -> str:
        """Says why evidence is missing now; empty if nothing is known to be missing."""
        counts = self._rollouts[key]
        of_streams = self._streams.problem(counts.watched.host)
        problems = (of_streams, counts.problem, *self._gauge_problems.get(key, ()))
        return "; ".join(filter(None, problems))

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

    def resume(self, host: str, since_s: float) -> bool:
        """Has requests counted that another process did not count; see `TrafficSource`.

        It can, if the receivers keep records for so long and nobody watches the host yet.
        """
        if host in self._hosts or time.time() - since_s > self._streams.kept_s:
            return False
        self._resumed[host] = since_s
        return True

    async def watching(self, host: str) -> None:
        """Waits until records of a watched host arrive; for tests, which send requests then."""
        await self._streams.watching(host)


class _WatchedHost:
    """Counts the records of a host for the rollouts on it.

    Attributes:
        rollouts: The counts of the rollouts.
    """

    def __init__(self) -> None:
        self.rollouts: dict[str, RolloutCounts] = {}
        self._methods = StreamingMethods()

    def receive(self, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        for counts in self.rollouts.values():
            sticky, mirrored = counts.watched.sticky, counts.watched.mirrored
            for record in records:
                counts.add(read_request(record, self._methods, sticky, mirrored=mirrored))

    def lose(self, count: int) -> None:
        for counts in self.rollouts.values():
            counts.lose(count)
