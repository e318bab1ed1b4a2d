"""Requests in progress, as proxies report them over the load reporting service (LRS).

Code that removes endpoints watches their clusters first. The controller requests reports only while
something watches, and only for those clusters, so that an idle mesh costs nothing. Each proxy keeps
its LRS stream open.

Tried with Envoy 1.40 (see ``tests/mesh/telemetry``) and grpcio 1.85:

* Envoy counts a stream from its start to its end, for each endpoint, also for DRAINING endpoints.
  It no longer reports an endpoint that left its cluster, or a removed cluster, although their
  streams go on. So check the reports before you remove something.
* If a report does not name a cluster, that cluster has no requests in progress at the proxy: it has
  had no traffic, or the proxy has no such cluster.
* grpcio reports clusters, not endpoints, once a second, and sends nothing while all counts stay at
  zero. It reports clusters whose resource has ``lrs_server { self {} }``.
* After a restart of the controller, an Envoy takes about five seconds to open its stream again.
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
from tidegate.mesh.telemetry.request_record import address_text

__all__ = ["LoadReportingServicer", "LoadReports", "ProxyLoad"]

_log = structlog.stdlib.get_logger(__name__)

_STREAMS: Final = Gauge("tidegate_mesh_load_report_streams", "Open load report streams of proxies.")

_INTERVAL_S: Final = 0.2
# The interval while nothing is watched: practically never.
_IDLE_INTERVAL_S: Final = 3600.0
# How long a report may be in transit. It is less than the interval, so that no answer is missed.
_TRANSIT_S: Final = 0.15
_TRANSIT_STEPS: Final = 3


@dataclass(frozen=True, slots=True)
class ProxyLoad:
    """The requests of one cluster that are in progress at one proxy.

    Attributes:
        requests: Their number, or None if the proxy has sent no report since the watch began.
        endpoints: Their number at each ``address:port`` that has any. Empty if the proxy does not
            report endpoints.
        silent_s: Seconds since the proxy's last report, or since its counts were discarded if it
            has not reported after that. A gRPC client without requests in progress does not repeat
            its report.
    """

    requests: int | None
    endpoints: Mapping[str, int]
    silent_s: float

    def at(self, address: str) -> int | None:
        """Returns the requests at one endpoint, or at all endpoints if the proxy reports none."""
        return self.endpoints.get(address, 0) if self.endpoints else self.requests


@dataclass(slots=True, eq=False)
class _ReportingProxy:
    """One proxy that sends load reports.

    Attributes:
        name: The proxy's node id.
        must_request: Set when the watched clusters have changed.
        requested: The clusters that its next report certainly covers.
        reported_s: When it last reported on them, on the monotonic clock.
        discarded_s: When its counts were last discarded, on the monotonic clock.
        counts: The requests in progress, by cluster and endpoint.
        totals: The requests in progress, by cluster.
    """

    name: str = ""
    must_request: asyncio.Event = field(default_factory=asyncio.Event)
    requested: frozenset[str] = frozenset()
    reported_s: float | None = None
    discarded_s: float = field(default_factory=time.monotonic)
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    totals: Mapping[str, int] = field(default_factory=dict)

    def reset(self) -> None:
        """Discards the last report, and those that arrive before the next request."""
        self.requested, self.reported_s = frozenset(), None
        self.discarded_s = time.monotonic()

    def record(self, stats: Collection[ClusterStats]) -> None:
        if not self.requested:
            return
        self.totals = {each.cluster_name: _total(each) for each in stats}
        self.counts = {each.cluster_name: _by_endpoint(each) for each in stats}
        self.reported_s = time.monotonic()

    def in_progress(self, cluster: str) -> ProxyLoad:
        if cluster not in self.requested or self.reported_s is None:
            return ProxyLoad(None, {}, time.monotonic() - self.discarded_s)
        silent_s = time.monotonic() - self.reported_s
        return ProxyLoad(self.totals.get(cluster, 0), self.counts.get(cluster, {}), silent_s)


class LoadReports:
    """The requests in progress in the mesh."""

    def __init__(self) -> None:
        self._proxies: list[_ReportingProxy] = []
        self._watched: Counter[str] = Counter()
        self._reported = asyncio.Event()

    @contextmanager
    def watch(self, clusters: Collection[str]) -> Iterator[None]:
        """Makes the proxies report on some clusters while the context is open.

        Enter it when no new requests can arrive, because the routes are acknowledged. Every count
        that is then read was taken after that.

        Args:
            clusters: The names of the clusters.
        """
        self._watched.update(clusters)
        self._request_reports()
        try:
            yield
        finally:
            self._watched -= Counter(clusters)
            self._request_reports()

    def in_progress(self, cluster: str) -> dict[str, ProxyLoad]:
        """Returns the requests in progress at each proxy with an open stream, by node id.

        Proxies with the same id are added up, with the shortest silence.

        Args:
            cluster: A cluster that is watched.
        """
        found: dict[str, ProxyLoad] = {}
        for proxy in self._proxies:
            in_proxy = proxy.in_progress(cluster)
            other = found.get(proxy.name)
            found[proxy.name] = in_proxy if other is None else _sum_of(in_proxy, other)
        return found

    def next_report(self) -> Coroutine[Any, Any, bool]:
        """Waits until a proxy reports or ends its stream. The wait begins with the call."""
        return self._reported.wait()

    @contextmanager
    def connected(self) -> Iterator[_ReportingProxy]:
        """Includes a proxy while the context is open."""
        proxy = _ReportingProxy()
        if self._watched:
            proxy.must_request.set()
        self._proxies.append(proxy)
        try:
            with _STREAMS.track_inprogress():
                yield proxy
        finally:
            self._proxies.remove(proxy)
            self.notify()

    def notify(self) -> None:
        """Wakes everyone who waits for a report."""
        reported, self._reported = self._reported, asyncio.Event()
        reported.set()

    @property
    def watched(self) -> frozenset[str]:
        """The clusters that are watched."""
        return frozenset(self._watched)

    def _request_reports(self) -> None:
        for proxy in self._proxies:
            proxy.reset()
            proxy.must_request.set()


class LoadReportingServicer:
    """``envoy.service.load_stats.v3.LoadReportingService``: requests and receives load reports.

    Args:
        reports: Where the reports are stored.
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
        with self._reports.connected() as proxy:
            request_task = asyncio.create_task(
                self._send_requests(proxy, context), name="load-report-requests"
            )
            try:
                async for request in request_iterator:
                    if request.HasField("node") and request.node.id != proxy.name:
                        proxy.name = request.node.id
                        _log.info(
                            "load report stream identified", proxy=proxy.name, peer=context.peer()
                        )
                    proxy.record(request.cluster_stats)
                    self._reports.notify()
            finally:
                request_task.cancel()
                # If a write fails, the stream ends too, and reports the reason.
                await asyncio.gather(request_task, return_exceptions=True)

    async def _send_requests(self, proxy: _ReportingProxy, context: ServicerContext) -> None:
        writer = ResponseWriter(context)
        while True:
            await proxy.must_request.wait()
            proxy.must_request.clear()
            clusters = self._reports.watched
            await writer.write(_load_stats_response(clusters))
            # Reports that arrive now may have been sent before the request arrived. The report that
            # answers it comes an interval later. The wait has several steps because a stalled event
            # loop shortens only one of them; in the others the earlier reports are read.
            for _ in range(_TRANSIT_STEPS):
                await asyncio.sleep(_TRANSIT_S / _TRANSIT_STEPS)
            if not proxy.must_request.is_set():
                proxy.requested = clusters


def _load_stats_response(clusters: Collection[str]) -> LoadStatsResponse:
    response = LoadStatsResponse(clusters=sorted(clusters), report_endpoint_granularity=True)
    interval_s = _INTERVAL_S if clusters else _IDLE_INTERVAL_S
    response.load_reporting_interval.FromMilliseconds(int(interval_s * 1000))
    return response


def _total(stats: ClusterStats) -> int:
    return sum(each.total_requests_in_progress for each in stats.upstream_locality_stats)


def _by_endpoint(stats: ClusterStats) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for locality in stats.upstream_locality_stats:
        for endpoint in locality.upstream_endpoint_stats:
            counts[address_text(endpoint.address)] += endpoint.total_requests_in_progress
    return dict(+counts)


def _sum_of(one: ProxyLoad, other: ProxyLoad) -> ProxyLoad:
    silent_s = min(one.silent_s, other.silent_s)
    if one.requests is None or other.requests is None:
        return ProxyLoad(None, {}, silent_s)
    endpoints = dict(Counter(one.endpoints) + Counter(other.endpoints))
    return ProxyLoad(one.requests + other.requests, endpoints, silent_s)
