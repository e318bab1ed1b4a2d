"""The access log as a source of evidence: counts the records that the mesh's controller sends.

The source watches each host that a rollout needs. `MeshService.WatchRequests` sends a record of
every request when it ends. After a break the source watches again, and waits twice as long after
each failure. What ended meanwhile is lost: its number is estimated from the rate before the break,
and goes into the next window with the records that the controller dropped.

Gauges of the signal ``promql`` come from a Prometheus, if the rollout has such objectives.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
import grpc

from tidegate.evidence.window import TrafficWindow
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.rollout.measures import MeasureKind
from tidegate.router.sources.epochs import RolloutCounts
from tidegate.router.sources.gauges import read_gauges, with_gauges
from tidegate.router.sources.prometheus_api import PrometheusApi
from tidegate.router.sources.request import StreamingMethods, read_request
from tidegate.router.sources.source import Epoch, UnsupportedError, Watched
from tidegate.runtime.logging import get_logger

__all__ = ["AccessLogSource"]

_log = get_logger(__name__)

_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
_RATE_OVER_S: Final = 30.0


class AccessLogSource:
    """Counts traffic from the records of the mesh's controller.

    Args:
        stub: The controller's service.
    """

    def __init__(self, stub: "mesh_pb2_grpc.MeshServiceAsyncStub") -> None:
        self._stub = stub
        self._rollouts: dict[str, RolloutCounts] = {}
        self._hosts: dict[str, _WatchedHost] = {}
        self._gauge_problems: dict[str, tuple[str, ...]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Reads records while the context is open."""
        async with aiohttp.ClientSession() as self._session, asyncio.TaskGroup() as self._tasks:
            for host in self._hosts.values():
                host.start(self._tasks)
            try:
                yield self
            finally:
                for host in self._hosts.values():
                    host.stop()
        self._tasks = self._session = None

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
            host = self._hosts[watched.host] = _WatchedHost(watched.host, self._stub)
            if self._tasks is not None:
                host.start(self._tasks)
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
        if not any(each.kind is MeasureKind.GAUGE for each in watched.measures):
            return windows
        assert self._session is not None, "not running"  # noqa: S101 - a fault of the caller
        gauges = await read_gauges(PrometheusApi(self._session, watched.url), watched, now_s)
        if gauges.problems and gauges.problems != self._gauge_problems.get(key):
            _log.warning("no gauges from Prometheus", rollout=key, problems=gauges.problems)
        self._gauge_problems[key] = gauges.problems
        return with_gauges(windows, gauges, counts.lasting, now_s)

    def problem(self, key: str) -> str:
        """Says why evidence is missing now; empty if nothing is known to be missing."""
        counts = self._rollouts[key]
        host = self._hosts[counts.watched.host]
        problems = (host.problem, counts.problem, *self._gauge_problems.get(key, ()))
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
            host.stop()
            del self._hosts[counts.watched.host]

    async def watching(self, host: str) -> None:
        """Waits until records of a watched host arrive; for tests, which send requests then."""
        await self._hosts[host].connected.wait()


class _WatchedHost:
    """Reads the records of a host for the rollouts on it.

    Attributes:
        rollouts: The counts of the rollouts.
        connected: Set while records arrive.
        problem: Why no records arrive; empty while they do.
    """

    def __init__(self, name: str, stub: "mesh_pb2_grpc.MeshServiceAsyncStub") -> None:
        self.rollouts: dict[str, RolloutCounts] = {}
        self.connected = asyncio.Event()
        self.problem = "the records of requests are not watched yet"
        self._name = name
        self._stub = stub
        self._task: asyncio.Task[None] | None = None
        self._rate = _Rate()
        self._methods = StreamingMethods()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._task = tasks.create_task(self._read(), name=f"watch requests of {self._name}")

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _read(self) -> None:
        wait_s = _FIRST_WAIT_S
        broke_s = time.monotonic()
        while True:
            try:
                await self._read_stream(broke_s)
                reason = "the controller ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
            except Exception as error:  # noqa: BLE001 - it must not end the other rollouts
                reason = f"fault while records were counted: {error!r}"
                _log.exception("fault while records were counted", host=self._name)
            self.problem = f"no records of requests arrive: {reason}"
            if self.connected.is_set():
                self.connected.clear()
                wait_s, broke_s = _FIRST_WAIT_S, time.monotonic()
            _log.warning("watches no requests", host=self._name, reason=reason, retry_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def _read_stream(self, broke_s: float) -> None:
        request = mesh_pb2.WatchRequestsRequest(host=self._name, include_mirrored=True)
        call = self._stub.WatchRequests(request)
        try:
            await call.initial_metadata()
            self._lose(self._rate.expected(time.monotonic() - broke_s))
            self.connected.set()
            self.problem = ""
            _log.info("watches requests", host=self._name)
            lost = 0
            async for message in call:
                self._lose(message.lost - lost)
                lost = message.lost
                self._rate.add(len(message.records), time.monotonic())
                self._count(message)
        finally:
            call.cancel()

    def _count(self, message: mesh_pb2.WatchRequestsResponse) -> None:
        for counts in self.rollouts.values():
            sticky, mirrored = counts.watched.sticky, counts.watched.mirrored
            for record in message.records:
                counts.add(read_request(record, self._methods, sticky, mirrored=mirrored))

    def _lose(self, count: int) -> None:
        if count:
            for counts in self.rollouts.values():
                counts.lose(count)


class _Rate:
    """The rate of records over the last half minute or so, to estimate what a break cost."""

    def __init__(self) -> None:
        self._since_s = 0.0
        self._count = 0
        self._per_s = 0.0

    def add(self, count: int, now_s: float) -> None:
        if not self._since_s:
            self._since_s = now_s
        self._count += count
        span_s = now_s - self._since_s
        if span_s >= 1.0:
            self._per_s = self._count / span_s
        if span_s >= _RATE_OVER_S:
            # Halve both, so that old records matter ever less.
            self._count //= 2
            self._since_s = now_s - span_s / 2

    def expected(self, span_s: float) -> int:
        return math.ceil(self._per_s * span_s)
