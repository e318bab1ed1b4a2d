"""The access log of a mesh of Istio, as the router's program holds it.

Every replica of the router receives the logs of the proxies that are connected to it, and keeps
them for whoever asks. The leader asks all replicas, itself too, so its counts are of all proxies.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Self

import grpc
from prometheus_client import REGISTRY, CollectorRegistry

from tidegate.chassis.calls import ServicerContext
from tidegate.mesh.control.api.request_records import finished_requests
from tidegate.mesh.telemetry import AccessLogServicer, IstioMetrics, RequestLog
from tidegate.mesh.telemetry.access_log import SERVICE_NAME as ALS_SERVICE
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc
from tidegate.router.istio_log.attribution import Attribution
from tidegate.router.istio_log.entries import istio_parser
from tidegate.router.istio_log.kept_records import KEPT_S, KeptRecords
from tidegate.router.istio_log.observing import ProxyObserver
from tidegate.router.istio_log.workloads import ClusterWorkloads
from tidegate.router.sources.access_log import AccessLogSource
from tidegate.router.sources.record_streams import RecordStreams

__all__ = ["IstioLog", "IstioLogSettings"]

_MESH_SERVICE: Final = mesh_pb2.DESCRIPTOR.services_by_name["MeshService"].full_name


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioLogSettings:
    """How the access log is received.

    Attributes:
        user_cookies: Names of the cookies that name a user, for sticky rollouts. Istio's provider
            has to log the header ``cookie`` then.
        authority: Host and port of the Service of the replicas, under which they call each other at
            their addresses; empty for the address itself. A sidecar finds the route by it, and with
            the route the mesh's mutual TLS.
        istio_metrics: Whether to compute Istio's metrics of the requests that this replica
            receives.
    """

    user_cookies: tuple[str, ...] = ()
    authority: str = ""
    istio_metrics: bool = False


def _plain_channel(authority: str) -> Callable[[str], grpc.aio.Channel]:
    # gRPC would wait up to two minutes for a replica that restarts.
    options: list[tuple[str, str | int]] = [("grpc.max_reconnect_backoff_ms", 1000)]
    if authority:
        options.append(("grpc.default_authority", authority))
    return lambda address: grpc.aio.insecure_channel(address, options)


class IstioLog:
    """Receives access logs, and reads those of all replicas while this one leads.

    In every replica, before the server starts::

        log = IstioLog()
        log.register(server)          # and add `log.service_names` to the reflected services

    While the replica leads::

        async with log.reading():
            await log.set_receivers(addresses)      # whenever the replicas change
            ClusterTraffic(client, objects, log.observer, settings)
            source_of = lambda rollout: log.source  # unless the rollout asks Prometheus

    `addresses` are those of all replicas with this one, as ``address:port`` of their gRPC servers:
    the endpoints of the headless Service, ready or not. `set_receivers` may be called before
    `reading`, and in replicas that do not lead.

    A new leader counts what its predecessor did not: each replica keeps its last records for two
    minutes, and the status of a rollout says until when requests are counted (`Intake`). What a
    predecessor that vanished had received itself is gone with it, and counts as lost.

    At the drain, `shut_down` ends the calls by which a leader reads this replica.

    Args:
        settings: How the access log is received.
        channel_of: Opens a channel to a replica; by default one without encryption of its own.
        registry: Where Istio's metrics are registered, if the settings ask for them.

    Attributes:
        attribution: Which host a request without a cluster is for. Whoever reads the cluster's
            objects, in every replica, sets `attribution.facts` when they change: see
            `tidegate.router.istio_log.host_facts.facts_of`. Without facts a timeout of a
            VirtualService looks like the deadline of a caller, and subsets of calls without a proxy
            are the label ``version``.
        observer: Tells since when a split is in force.
        source: Counts the traffic of rollouts.
        streams: Reads the records of all replicas.
        workloads: Whose requests they are, for Istio's metrics.
    """

    service_names = (ALS_SERVICE, _MESH_SERVICE)

    def __init__(
        self,
        settings: IstioLogSettings | None = None,
        *,
        channel_of: Callable[[str], grpc.aio.Channel] | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        settings = settings or IstioLogSettings()
        self.attribution = Attribution()
        self.observer = ProxyObserver()
        self.streams = RecordStreams(tap=self.observer, kept_s=KEPT_S)
        self.observer.use(self.streams)
        self.source = AccessLogSource(self.streams)
        self._kept = KeptRecords()
        self._requests = RequestLog(self._kept.add)
        self.workloads = ClusterWorkloads()
        self._metrics: IstioMetrics | None = None
        if settings.istio_metrics:
            self._metrics = IstioMetrics(
                self.workloads.workload_at, self.workloads.source_of, registry
            )
        self._parser_of = istio_parser(
            self.attribution, settings.user_cookies, self.workloads.note_sender
        )
        self._end = asyncio.Event()
        self._channel_of = channel_of or _plain_channel(settings.authority)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, mesh_pb2_grpc.MeshServiceAsyncStub] = {}

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the access log service, and the method by which a leader reads this replica."""
        AccessLogServicer(self._requests, self._parser_of).register(server)
        method: grpc.RpcMethodHandler[
            mesh_pb2.WatchRequestsRequest, mesh_pb2.WatchRequestsResponse
        ] = grpc.unary_stream_rpc_method_handler(
            self._watch_requests,
            request_deserializer=mesh_pb2.WatchRequestsRequest.FromString,
            response_serializer=mesh_pb2.WatchRequestsResponse.SerializeToString,
        )
        methods = {"WatchRequests": method}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(_MESH_SERVICE, methods)]
        )
        server.add_registered_method_handlers(_MESH_SERVICE, methods)

    async def count_requests(self) -> None:
        """Computes Istio's metrics until the task is cancelled, if the settings ask for them.

        Each replica counts the requests that it receives itself, so a sum over the replicas counts
        each request once.
        """
        if self._metrics is not None:
            await self._metrics.follow(self._requests)

    @asynccontextmanager
    async def reading(self, *, after_crash: bool = False) -> AsyncIterator[Self]:
        """Reads the records of all replicas while the context is open.

        Args:
            after_crash: Whether the replica that led before has vanished. What it had received and
                not counted then counts as lost, by an estimate.
        """
        async with self.streams.running(), self.source.running(after_crash=after_crash):
            try:
                yield self
            finally:
                await self.set_receivers(())

    async def set_receivers(self, addresses: Collection[str]) -> None:
        """Says which replicas there are, as ``address:port``, with this one."""
        gone = self._channels.keys() - set(addresses)
        for address in addresses:
            if address not in self._channels:
                channel = self._channels[address] = self._channel_of(address)
                self._stubs[address] = mesh_pb2_grpc.MeshServiceStub(channel)
        for address in gone:
            del self._stubs[address]
        self.streams.set_receivers(self._stubs)
        for address in gone:
            await self._channels.pop(address).close()

    def shut_down(self) -> None:
        """Ends the calls of leaders that read this replica, so that the server can stop."""
        self._end.set()

    async def _watch_requests(
        self, request: mesh_pb2.WatchRequestsRequest, context: ServicerContext
    ) -> AsyncIterator[mesh_pb2.WatchRequestsResponse]:
        earlier = partial(self._kept.asked_for, request)
        sent = finished_requests(self._requests, request, context, self._end, earlier)
        async with aclosing(sent) as responses:
            async for each in responses:
                yield each
