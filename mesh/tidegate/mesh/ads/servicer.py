"""The gRPC service: connects streams of grpc.aio to a `Distribution`.

Each stream has a reader, which processes requests as they arrive, and a writer, which sends
responses whenever something changes. The writer waits for slow proxies. It builds a response only
when it can write it, so no responses queue up. The reader slows down for proxies that send
unsolicited requests, and gRPC's flow control passes that on to them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, NoReturn

import grpc
import structlog
from envoy.service.discovery.v3 import ads_pb2, ads_pb2_grpc

from tidegate.chassis import ResponseWriter, ServicerContext
from tidegate.chassis.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
)
from tidegate.mesh.ads.connections import Connection
from tidegate.mesh.ads.delta import DeltaRules, read_delta
from tidegate.mesh.ads.distribution import Distribution
from tidegate.mesh.ads.errors import RefusedRequestError
from tidegate.mesh.ads.identity import NodeIdentity, identify
from tidegate.mesh.ads.metrics import IGNORED_REQUESTS, REFUSED_STREAMS, StreamMetrics
from tidegate.mesh.ads.sotw import SotwRules, read_sotw
from tidegate.mesh.ads.variant import ProxyLimits, VariantRules, XdsRequest
from tidegate.mesh.resources import ResourceType

__all__ = ["AdsServicer"]

_log = structlog.stdlib.get_logger(__name__)

_SERVICE: Final = ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"]
_RETRY_AFTER_S: Final = 5.0
_SHOWN_KEYS: Final = 8

_Read = Callable[[Any, ProxyLimits], XdsRequest | None]


class AdsServicer:
    """``AggregatedDiscoveryService`` for a server on the chassis.

    Args:
        distribution: The resources to serve.
    """

    service_name: Final = _SERVICE.full_name

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._open_streams = 0

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server."""
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(self, server)

    async def StreamAggregatedResources(  # noqa: N802 - the name is the protocol's
        self, requests: AsyncIterator[Any], context: ServicerContext
    ) -> None:
        """Serves a proxy over the state-of-the-world variant."""
        await self._serve(requests, context, SotwRules(), read_sotw)

    async def DeltaAggregatedResources(  # noqa: N802 - the name is the protocol's
        self, requests: AsyncIterator[Any], context: ServicerContext
    ) -> None:
        """Serves a proxy over the delta variant."""
        await self._serve(requests, context, DeltaRules(), read_delta)

    async def _serve(
        self,
        requests: AsyncIterator[Any],
        context: ServicerContext,
        rules: VariantRules,
        read: _Read,
    ) -> None:
        self._open_streams += 1
        try:
            await self._run_stream(requests, context, rules, read)
        finally:
            self._open_streams -= 1

    async def _run_stream(
        self,
        requests: AsyncIterator[Any],
        context: ServicerContext,
        rules: VariantRules,
        read: _Read,
    ) -> None:
        limits = self._distribution.limits
        try:
            async with asyncio.timeout(limits.first_request_s):
                first = await anext(requests, None)
        except TimeoutError as error:
            REFUSED_STREAMS.labels("silent").inc()
            raise DeadlineExceeded(
                f"no request arrived within {limits.first_request_s:g} s", reason="SILENT_STREAM"
            ) from error
        if first is None:
            return
        if self._open_streams > limits.streams:
            REFUSED_STREAMS.labels("too_many_streams").inc()
            raise ResourceExhausted(
                f"more than {limits.streams} streams are open, the limit of this server",
                reason="TOO_MANY_STREAMS",
                retry_after_s=_RETRY_AFTER_S,
            )
        try:
            identity = identify(first.node, rules.variant, context.peer())
        except RefusedRequestError as error:
            raise _invalid_argument(error) from error
        with self._distribution.connected(identity, rules) as connection:
            session = _StreamSession(self._distribution, connection, rules, read)
            with session.metrics.proxies.track_inprogress():
                async with asyncio.TaskGroup() as tasks:
                    writer_task = tasks.create_task(session.write(context))
                    await session.receive(first)
                    async for message in requests:
                        await session.receive(message)
                    writer_task.cancel()


class _StreamSession:
    """Reads and writes one stream.

    Args:
        distribution: The resources to serve.
        connection: The stream.
        rules: The rules of the stream's xDS variant.
        read: Reads a request of that variant.

    Attributes:
        metrics: The stream's metrics.
    """

    def __init__(
        self, distribution: Distribution, connection: Connection, rules: VariantRules, read: _Read
    ) -> None:
        self._distribution = distribution
        self._connection = connection
        self._rules = rules
        self._read = read
        self._throttle = _RequestThrottle(distribution.limits)
        self._sent_at = dict.fromkeys(ResourceType, 0.0)
        identity = connection.identity
        self._log = _log.bind(
            proxy=identity.node,
            stream=connection.proxy.stream,
            proxy_kind=identity.proxy_kind.value,
            protocol=identity.variant.name.lower(),
        )
        self.metrics = StreamMetrics(identity.proxy_kind, identity.variant)

    async def write(self, context: ServicerContext) -> NoReturn:
        """Sends responses for as long as the stream is open."""
        connection, writer = self._connection, ResponseWriter(context)
        while True:
            connection.wakeup.clear()
            while (response := connection.stream.next_response()) is not None:
                message = self._rules.encode(response)
                self._sent_at[response.type] = time.monotonic()
                self.metrics.response_sent(response.type, message.ByteSize())
                await writer.write(message)
            await connection.wakeup.wait()

    async def receive(self, message: Any) -> None:
        """Processes a request."""
        try:
            _check_same_node(self._connection.identity, message)
            request = self._read(message, self._distribution.limits)
            ack = None
            if request is not None:
                ack = self._distribution.receive(self._connection, request)
        except RefusedRequestError as error:
            raise _invalid_argument(error) from error
        if request is None:
            IGNORED_REQUESTS.inc()
        if ack is None:
            await self._throttle.wait()
            return
        seconds = time.monotonic() - self._sent_at[ack.type]
        self.metrics.ack_received(ack.type, seconds, accepted=ack.accepted)
        rejection = self._connection.stream.watched_types[ack.type].rejection()
        if not ack.accepted and rejection is not None:
            self._log.warning(
                "proxy rejected resources",
                type=ack.type.name.lower(),
                resources=[key.name for key in rejection.versions][:_SHOWN_KEYS],
                count=len(rejection.versions),
                message=rejection.message,
            )


class _RequestThrottle:
    """Slows down a proxy that sends unsolicited requests (token bucket)."""

    def __init__(self, limits: ProxyLimits) -> None:
        self._rate_per_s = limits.unsolicited_requests_per_s
        self._burst = float(limits.unsolicited_requests_burst)
        self._left = self._burst
        self._at = time.monotonic()

    async def wait(self) -> None:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate_per_s) - 1
        self._at = now
        if self._left < 0:
            await asyncio.sleep(-self._left / self._rate_per_s)


def _check_same_node(identity: NodeIdentity, message: Any) -> None:
    if message.node.id not in {"", identity.node}:
        raise RefusedRequestError(
            "node.id", "differs from the one in the stream's first request; open a new stream"
        )


def _invalid_argument(error: RefusedRequestError) -> InvalidArgument:
    REFUSED_STREAMS.labels("refused_request").inc()
    return InvalidArgument.of(error.field, error.problem, reason="REFUSED_REQUEST")
