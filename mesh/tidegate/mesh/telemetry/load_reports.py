"""How many requests are running where, told by the proxies themselves (LRS).

Whoever wants to take endpoints away watches their clusters first; only while somebody does are
proxies asked, and only for those clusters, so that a large mesh at rest costs nothing. A proxy
keeps its stream open for that.

What is sure, tried with Envoy 1.40 (see ``tests/mesh/telemetry``) and grpcio 1.85:

* Envoy counts a stream from its begin to its end, and tells endpoints apart; also those that are
  DRAINING. It forgets an endpoint that has left its cluster and a cluster that has left it, though
  their streams go on: look before you remove.
* A cluster that a proxy does not name has no requests there: it has had no traffic, or the proxy
  has no such cluster.
* grpcio tells of clusters, not endpoints, once a second, and is silent while all stays at zero.
  It reports clusters whose resource has ``lrs_server { self {} }``.
* After the controller has been away, an Envoy takes some five seconds to open its stream again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from envoy.config.endpoint.v3.load_report_pb2 import ClusterStats
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest, LoadStatsResponse
from envoy.service.load_stats.v3.lrs_pb2_grpc import add_LoadReportingServiceServicer_to_server
from prometheus_client import Gauge

from tidegate.chassis.calls import ResponseWriter, ServicerContext
from tidegate.mesh.telemetry.record import address_text

__all__ = ["InProgress", "LoadReportingServicer", "LoadReports"]

_log = structlog.stdlib.get_logger(__name__)

_STREAMS: Final = Gauge("tidegate_mesh_load_report_streams", "Proxies that can report their load.")

_INTERVAL_S: Final = 0.2
# While nobody watches: as good as never.
_REST_S: Final = 3600.0
# How long a report may have been under way: less than the interval, so as not to miss the answer.
_UNDER_WAY_S: Final = 0.15
_STEPS: Final = 3


@dataclass(frozen=True, slots=True)
class InProgress:
    """The requests of one cluster that are running in one proxy.

    Attributes:
        requests: how many; None while the proxy has not answered since the cluster is watched.
        endpoints: how many at each ``address:port`` that has any; empty where the proxy does not
            tell endpoints apart.
        age_s: how long ago the proxy said so, None while it has not. A gRPC client that has
            nothing running does not repeat itself.
    """

    requests: int | None
    endpoints: Mapping[str, int]
    age_s: float | None

    def at(self, address: str) -> int | None:
        """How many are running at one endpoint; of all endpoints where they are not told apart."""
        return self.endpoints.get(address, 0) if self.endpoints else self.requests


@dataclass(slots=True, eq=False)
class _Proxy:
    """One stream of reports.

    Attributes:
        name: id of the proxy's node.
        ask: set when what is wanted of the proxy has changed.
        asked: what it was last asked for, and is sure to answer for.
        answered_s: when it last answered for that, on the monotonic clock.
        counts: what it answered, by cluster.
    """

    name: str = ""
    ask: asyncio.Event = field(default_factory=asyncio.Event)
    asked: frozenset[str] = frozenset()
    answered_s: float | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)

    def forget(self) -> None:
        """What it has said, and will say before it is asked anew, counts no more."""
        self.asked, self.answered_s = frozenset(), None

    def take(self, stats: Collection[ClusterStats]) -> None:
        if not self.asked:
            return
        self.totals = {each.cluster_name: _total(each) for each in stats}
        self.counts = {each.cluster_name: _by_endpoint(each) for each in stats}
        self.answered_s = time.monotonic()

    def in_progress(self, cluster: str) -> InProgress:
        if cluster not in self.asked or self.answered_s is None:
            return InProgress(None, {}, None)
        age_s = time.monotonic() - self.answered_s
        return InProgress(self.totals.get(cluster, 0), self.counts.get(cluster, {}), age_s)


class LoadReports:
    """What is running in the mesh."""

    def __init__(self) -> None:
        self._proxies: list[_Proxy] = []
        self._watched: Counter[str] = Counter()
        self._reported = asyncio.Event()

    @contextmanager
    def watch(self, clusters: Collection[str]) -> Iterator[None]:
        """Has the proxies report on clusters while the context is open.

        Enter it when nothing new can come any more (the routes are acknowledged): what is then
        read was counted after that.

        Args:
            clusters: names of clusters.
        """
        self._watched.update(clusters)
        self._ask()
        try:
            yield
        finally:
            self._watched -= Counter(clusters)
            self._ask()

    def in_progress(self, cluster: str) -> dict[str, InProgress]:
        """Tells what is running in each proxy that has a stream open, by the id of its node.

        Proxies of one id are taken together: as busy as all of them, as old as the oldest.

        Args:
            cluster: a cluster that is watched.
        """
        found: dict[str, InProgress] = {}
        for proxy in self._proxies:
            told = proxy.in_progress(cluster)
            other = found.get(proxy.name)
            found[proxy.name] = told if other is None else _together(told, other)
        return found

    def next_report(self) -> Coroutine[Any, Any, bool]:
        """Waits until a proxy reports or ends its stream. The wait begins with the call."""
        return self._reported.wait()

    @contextmanager
    def joined(self) -> Iterator[_Proxy]:
        """Counts a proxy as live while the context is open."""
        proxy = _Proxy()
        if self._watched:
            proxy.ask.set()
        self._proxies.append(proxy)
        try:
            with _STREAMS.track_inprogress():
                yield proxy
        finally:
            self._proxies.remove(proxy)
            self.tell()

    def tell(self) -> None:
        """Wakes who waits for a report."""
        self._reported.set()
        self._reported = asyncio.Event()

    @property
    def watched(self) -> frozenset[str]:
        """The clusters that somebody watches."""
        return frozenset(self._watched)

    def _ask(self) -> None:
        for proxy in self._proxies:
            proxy.forget()
            proxy.ask.set()


class LoadReportingServicer:
    """``envoy.service.load_stats.v3.LoadReportingService``: asks proxies, and takes their answers.

    Args:
        reports: where they go.
    """

    def __init__(self, reports: LoadReports) -> None:
        self._reports = reports

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        add_LoadReportingServiceServicer_to_server(self, server)

    async def StreamLoadStats(  # noqa: N802 - the proto's name
        self, request_iterator: AsyncIterator[LoadStatsRequest], context: ServicerContext
    ) -> None:
        """Serves one proxy until it ends the stream."""
        with self._reports.joined() as proxy:
            asking = asyncio.create_task(self._ask(proxy, context), name="load-report-questions")
            try:
                async for request in request_iterator:
                    if request.HasField("node") and request.node.id != proxy.name:
                        proxy.name = request.node.id
                        _log.info("load reports", proxy=proxy.name, peer=context.peer())
                    proxy.take(request.cluster_stats)
                    self._reports.tell()
            finally:
                asking.cancel()
                # A question that could not be written ends with the stream, which says why.
                await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self, proxy: _Proxy, context: ServicerContext) -> None:
        writer = ResponseWriter(context)
        while True:
            await proxy.ask.wait()
            proxy.ask.clear()
            clusters = self._reports.watched
            await writer.write(_question(clusters))
            # What now comes may have been under way before the question arrived; what answers it
            # is made an interval later. The wait is in steps because a stalled event loop makes
            # only one of them short, and in the others what was under way is read.
            for _ in range(_STEPS):
                await asyncio.sleep(_UNDER_WAY_S / _STEPS)
            if not proxy.ask.is_set():
                proxy.asked = clusters


def _question(clusters: Collection[str]) -> LoadStatsResponse:
    question = LoadStatsResponse(clusters=sorted(clusters), report_endpoint_granularity=True)
    interval_s = _INTERVAL_S if clusters else _REST_S
    question.load_reporting_interval.FromMilliseconds(int(interval_s * 1000))
    return question


def _total(stats: ClusterStats) -> int:
    return sum(each.total_requests_in_progress for each in stats.upstream_locality_stats)


def _by_endpoint(stats: ClusterStats) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for locality in stats.upstream_locality_stats:
        for endpoint in locality.upstream_endpoint_stats:
            counts[address_text(endpoint.address)] += endpoint.total_requests_in_progress
    return dict(+counts)


def _together(one: InProgress, other: InProgress) -> InProgress:
    if one.requests is None or one.age_s is None:
        return one
    if other.requests is None or other.age_s is None:
        return other
    return InProgress(
        one.requests + other.requests,
        dict(Counter(one.endpoints) + Counter(other.endpoints)),
        max(one.age_s, other.age_s),
    )
