"""One HTTP/1.1 connection: uvicorn's, and the limits that it lacks."""

import asyncio
from dataclasses import dataclass
from typing import Self

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tidegate.gateway.settings import GatewaySettings

__all__ = ["ConnectionLimits", "Connections", "GatewayProtocol"]


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
        return cls(**{name: getattr(settings, name) for name in cls.__slots__})


class Connections(ServerState):
    """All connections, and the tasks that answer their requests."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.draining = False
        self._emptied = asyncio.Event()

    def lost(self) -> None:
        """Notes the end of a connection."""
        if not self.connections:
            self._emptied.set()

    def drain(self) -> None:
        """Closes each connection after the response to come."""
        self.draining = True

    def close_idle(self) -> None:
        """Closes the connections that answer no request."""
        for each in list(self.connections):
            each.shutdown()

    async def emptied(self) -> None:
        """Waits until no connection is left."""
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def refuse_unanswered(self) -> int:
        """Ends requests without a response with 503; returns how many."""
        return 0

    async def abort(self) -> None:
        """Ends everything at once."""
        for each in list(self.connections):
            each.transport.abort()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks))


class GatewayProtocol(HttpToolsProtocol):
    """A connection."""

    server_state: Connections

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        super().connection_lost(exc)
        self.server_state.lost()
