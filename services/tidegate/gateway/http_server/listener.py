"""The listening socket, its connections, and their end in a drain.

uvicorn gives the protocol. Its own server is left out: it takes over signals, wakes ten times a
second, and ends streams without a word when their time is up. A drain here is in three steps, which
`tidegate.gateway.server` takes: `Listener.stop` closes the socket and idle connections,
`Listener.finished` waits for the others, and `Listener.close` ends those that are left.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from typing import Any, Final

import uvicorn

from tidegate.gateway.http_server.connections import ConnectionLimits, Connections
from tidegate.gateway.http_server.protocol import GatewayProtocol
from tidegate.gateway.settings import GatewaySettings
from tidegate.runtime.errors import StartupError

__all__ = ["Listener", "listening"]

_BACKLOG: Final = 2048
_DATE_S: Final = 1.0
_CLOSE_S: Final = 1.0

Application = Callable[[Any, Any, Any], Awaitable[None]]


class Listener:
    """An open port.

    Attributes:
        port: Its number.
    """

    def __init__(self, server: asyncio.Server, connections: Connections) -> None:
        self._server = server
        self._connections = connections
        self.port: int = server.sockets[0].getsockname()[1]

    def drain(self) -> None:
        """Closes each connection after the response to come; new ones are still accepted."""
        self._connections.draining = True

    def stop(self) -> None:
        """Closes the port and all idle connections."""
        self._server.close()
        self._connections.stop()

    async def finished(self) -> None:
        """Waits until every connection has ended; call it after `stop`."""
        await self._connections.emptied()

    def refuse_incomplete(self) -> int:
        """Ends requests that are still on their way with 503; returns how many there were."""
        return self._connections.refuse_incomplete()

    async def close(self) -> None:
        """Ends everything that is left: with 503 where no response has begun, else by a reset."""
        self._server.close()
        await self._connections.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._server.wait_closed(), _CLOSE_S)


@asynccontextmanager
async def listening(
    application: Application, settings: GatewaySettings, context: ssl.SSLContext | None
) -> AsyncIterator[Listener]:
    """Serves an ASGI application while the context is open.

    Args:
        application: The application; it has no lifespan.
        settings: Host, port and limits.
        context: Makes TLS connections; None for plain text.

    Raises:
        StartupError: The port cannot be opened.
    """
    config = uvicorn.Config(
        application,
        http=GatewayProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        reset_contextvars=True,
        timeout_keep_alive=settings.idle_timeout_s,  # type: ignore[arg-type]
        interface="asgi3",
    )
    config.load()
    connections = Connections(ConnectionLimits.from_settings(settings))
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: GatewayProtocol(config, connections, {}, loop),
            settings.host,
            settings.http_port,
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            ssl=context,
            ssl_handshake_timeout=settings.header_timeout_s if context else None,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise StartupError(
            f"http_port: cannot listen on {settings.host}:{settings.http_port}:"
            f" {error.strerror or error}; choose another port, or 0 for a free one"
        ) from error
    tasks = [
        asyncio.create_task(_date(connections), name="date-header"),
        asyncio.create_task(_expire(connections), name="slow-clients"),
    ]
    listener = Listener(server, connections)
    try:
        yield listener
    finally:
        for task in tasks:
            task.cancel()
        await listener.close()


async def _date(connections: Connections) -> None:
    while True:
        now = formatdate(time.time(), usegmt=True).encode()
        connections.default_headers = [(b"date", now)]
        await asyncio.sleep(_DATE_S)


async def _expire(connections: Connections) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(connections.limits.check_interval_s)
        connections.expire(loop.time())
