"""All connections of the gateway's port, and the clock that ends those of slow clients."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, cast

from uvicorn.server import ServerState

from tidegate.gateway.observing.metrics import CONNECTIONS
from tidegate.gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidegate.gateway.http_server.protocol import GatewayProtocol

__all__ = ["ConnectionLimits", "Connections"]

_FLUSH_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of connections; see the settings of the same names."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    idle_timeout_s: float
    stalled_limit_s: float

    @classmethod
    def from_settings(cls, settings: GatewaySettings) -> Self:
        """Takes them from the settings."""
        return cls(
            max_connections=settings.max_connections,
            max_header_bytes=settings.max_header_bytes,
            header_timeout_s=settings.header_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            stalled_limit_s=settings.stalled_limit_s,
        )

    @property
    def check_interval_s(self) -> float:
        """How often to look for connections that wait too long, in seconds."""
        shortest_s = min(self.header_timeout_s, self.idle_timeout_s, self.stalled_limit_s)
        return min(1.0, shortest_s / 4)


class Connections(ServerState):
    """The connections, and the tasks that answer their requests.

    A timer for each request would cost more than to look through all connections once a second.

    Attributes:
        limits: Their limits.
        draining: Whether each response closes its connection.
        stopped: Whether connections close once they are idle.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.draining = False
        self.stopped = False
        self._emptied = asyncio.Event()

    def made(self) -> int:
        """Takes note of a connection that has begun; returns how many there are."""
        count = len(self.connections)
        CONNECTIONS.set(count)
        return count

    def _all(self) -> "Iterator[GatewayProtocol]":
        return iter(cast("list[GatewayProtocol]", list(self.connections)))

    def lost(self, connection: "GatewayProtocol") -> None:
        """Takes note of a connection that has ended."""
        self.connections.discard(connection)
        CONNECTIONS.set(len(self.connections))
        if not self.connections:
            self._emptied.set()

    def expire(self, now_s: float) -> None:
        """Ends the connections that have waited too long.

        Args:
            now_s: The time of the event loop's clock, in seconds.
        """
        for each in self._all():
            if each.expires_s <= now_s:
                each.expire()

    def stop(self) -> None:
        """Closes idle connections now and the others once they are idle."""
        self.draining = self.stopped = True
        for each in self._all():
            each.shutdown()

    async def emptied(self) -> None:
        """Waits until no connection is left."""
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def refuse_incomplete(self) -> int:
        """Ends requests that are still on their way with 503; returns how many there were."""
        return sum(each.refuse_incomplete() for each in self._all())

    async def close(self) -> None:
        """Ends everything: with 503 where no response has begun, else by a reset."""
        for each in self._all():
            each.give_up()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.emptied(), _FLUSH_S)
        for each in self._all():
            each.transport.abort()
        # Their requests have heard that the client left, and end by themselves.
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=_FLUSH_S)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))
