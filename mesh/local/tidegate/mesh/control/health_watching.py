"""Which endpoints serve, as they say themselves over ``grpc.health.v1``.

Each endpoint is asked once, with a stream that it answers whenever its state changes (Watch): what
is not said costs nothing, and a connection that is lost is known at once. gRPC connects again by
itself, with a wait that grows and varies.

A stream is still a connection and a task. So no more endpoints are watched than a limit allows;
those beyond it are taken to serve, and it is left to the proxies to find those that fail (outlier
detection). `HealthWatch.looked` says which state came from where.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["HealthWatch", "Seen"]

_Response: Final = health_pb2.HealthCheckResponse
_REQUEST: Final = health_pb2.HealthCheckRequest()
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 2.0
_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # An endpoint whose machine is gone never closes its connection.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Two endpoints at one address at different times must not share a connection's wait.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of an endpoint.

    Attributes:
        serving: whether it takes requests.
        reason: why it does not, or why it is taken to; empty when it says so itself.
    """

    serving: bool
    reason: str = ""


_NOT_ASKED: Final = Seen(serving=False, reason="it has not answered yet")
_BEYOND: Final = Seen(serving=True, reason="taken to serve: it is beyond the limit health_watches")


class HealthWatch:
    """The watches of all endpoints. A context that ends them.

    Args:
        limit: how many endpoints are watched at once; 0 watches none.
        on_change: told of an address whose state has changed, on the event loop.
    """

    def __init__(self, limit: int, on_change: Callable[[str], None]) -> None:
        self._limit = limit
        self._on_change = on_change
        self._seen: dict[str, Seen] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._unanswered: set[str] = set()
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watch(())
        await asyncio.sleep(0)

    @property
    def seen(self) -> dict[str, Seen]:
        """What is known, by address; changed in place."""
        return self._seen

    def watch(self, addresses: Collection[str]) -> None:
        """Watches these endpoints and no others.

        Args:
            addresses: each as ``address:port``.
        """
        for address in self._seen.keys() - set(addresses):
            del self._seen[address]
            if watch := self._watches.pop(address, None):
                watch.cancel()
            self._answered(address)
        for address in addresses:
            if address not in self._seen:
                self._begin(address)

    async def answered(self, deadline_s: float) -> None:
        """Waits until every endpoint that is watched has answered once, or the deadline passes."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._all_answered.wait()
        except TimeoutError:
            return

    def _begin(self, address: str) -> None:
        if len(self._watches) >= self._limit:
            self._seen[address] = _BEYOND
            return
        self._seen[address] = _NOT_ASKED
        self._unanswered.add(address)
        self._all_answered.clear()
        self._watches[address] = asyncio.create_task(
            self._follow(address), name=f"health-{address}"
        )

    def _say(self, address: str, seen: Seen) -> None:
        before = self._seen[address]
        self._seen[address] = seen
        self._answered(address)
        if before != seen:
            self._on_change(address)

    def _answered(self, address: str) -> None:
        self._unanswered.discard(address)
        if not self._unanswered:
            self._all_answered.set()

    async def _follow(self, address: str) -> None:
        wait_s = _FIRST_WAIT_S
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch
            while True:
                try:
                    async for response in watch(_REQUEST, wait_for_ready=True):
                        wait_s = _FIRST_WAIT_S
                        self._say(address, _seen(response))
                    reason = "it ended its health stream"
                except grpc.aio.AioRpcError as error:
                    reason = _words(error)
                self._say(address, Seen(serving=False, reason=reason))
                # Varied, since all of them lose their connections when a machine stalls.
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _seen(response: health_pb2.HealthCheckResponse) -> Seen:
    if response.status == _Response.SERVING:
        return Seen(serving=True)
    status = _Response.ServingStatus.Name(response.status)
    return Seen(serving=False, reason=f"it says {status}")


def _words(error: grpc.aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return "it has no service grpc.health.v1.Health; add it"
    return f"its health stream broke: {error.code().name}: {error.details()}"
