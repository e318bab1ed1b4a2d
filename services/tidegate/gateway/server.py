"""The life of the gateway: open its ports, learn the models, serve, drain.

SIGTERM or SIGINT starts the drain, in which no request ends without a word:

1. ``/readyz`` says 503 for `drain_delay_s`, while the gateway still accepts connections. Each
   response closes its connection, so that clients come back to another gateway.
2. The port closes, and with it the connections that are idle.
3. Running requests have `drain_deadline_s` to finish.
4. The gateway ends the others: a stream with an error event, another request with 503 and a hint
   to retry.

A second signal goes on to the last step at once.
"""

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

from fastapi import FastAPI

from tidegate.gateway.app import create_app
from tidegate.gateway.backends import opened
from tidegate.gateway.http_server.certificates import rotating_context
from tidegate.gateway.http_server.listener import Listener, listening
from tidegate.gateway.interruptions import InFlight
from tidegate.gateway.keys.authentication import ApiKeys
from tidegate.gateway.middleware import with_middleware
from tidegate.gateway.parts import Parts
from tidegate.gateway.settings import GatewaySettings
from tidegate.runtime.logging import get_logger
from tidegate.runtime.monitoring import monitoring
from tidegate.runtime.process import (
    Shutdown,
    port_file,
    settle_garbage_collection,
    shutdown_on_signals,
)
from tidegate.runtime.tls import RotatingCertificate

__all__ = ["RunningGateway", "running", "serve"]

_log = get_logger(__name__)

# Interrupted requests need a moment to send their last words.
_LAST_WORDS_S: Final = 1.0
# Channels, logs, and connections of the metrics port.
_OTHER_FILES: Final = 256


class RunningGateway:
    """A gateway whose ports are open.

    Attributes:
        app: Its application.
        parts: What its handlers share.
        http_port: Port of HTTP.
        metrics_port: Port for metrics and probes.
    """

    def __init__(
        self, app: FastAPI, parts: Parts, listener: Listener, metrics_port: int, shutdown: Shutdown
    ) -> None:
        self.app = app
        self.parts = parts
        self.http_port = listener.port
        self.metrics_port = metrics_port
        self._listener = listener
        self._shutdown = shutdown
        self._draining: asyncio.Task[None] | None = None

    def request_shutdown(self) -> None:
        """Begins the drain, as SIGTERM does; a second request ends the requests still running."""
        self._shutdown.request()

    async def drain(self) -> None:
        """Stops serving without losing a request; returns when every request has ended."""
        self._shutdown.requested.set()
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        settings, in_flight = self.parts.settings, self.parts.in_flight
        began_s = time.monotonic()
        in_flight.draining = True
        self._listener.drain()
        _log.info("draining", in_flight=len(in_flight))
        if settings.drain_delay_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._shutdown.forced.wait(), settings.drain_delay_s)
        self._listener.stop()
        finishing = asyncio.create_task(self._listener.finished(), name="finish")
        forced = asyncio.create_task(self._shutdown.forced.wait(), name="wait-for-force")
        await asyncio.wait(
            {finishing, forced},
            timeout=settings.drain_deadline_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        forced.cancel()
        interrupted = in_flight.interrupt_all() + self._listener.refuse_incomplete()
        if interrupted:
            _log.warning("requests interrupted", total=interrupted)
        await asyncio.wait({finishing}, timeout=_LAST_WORDS_S)
        finishing.cancel()
        await self._listener.close()
        _log.info("drained", interrupted=interrupted, seconds=round(time.monotonic() - began_s, 3))


@asynccontextmanager
async def running(
    settings: GatewaySettings, shutdown: Shutdown | None = None
) -> AsyncIterator[RunningGateway]:
    """Serves while the context is open, and drains on leaving.

    Args:
        settings: Settings of the gateway.
        shutdown: Receives requests to end.

    Raises:
        StartupError: A port cannot be opened, or a file that the settings name is invalid.
    """
    in_flight = InFlight()
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(
            opened(settings.llm, settings.vision, settings.models_interval_s)
        )
        parts = Parts(settings, backends, in_flight)
        metrics_port = stack.enter_context(
            monitoring(settings.host, settings.metrics_port, lambda: parts.is_ready)
        )
        keys = None if settings.api_keys_file is None else ApiKeys(settings.api_keys_file)
        certificate = RotatingCertificate.from_settings(settings)
        context = None if certificate is None else rotating_context(certificate)
        app = create_app(parts)
        listener = await stack.enter_async_context(
            listening(with_middleware(app, settings, keys), settings, context)
        )
        if certificate is not None:
            await stack.enter_async_context(
                _background(certificate.follow(settings.tls_reload_interval_s))
            )
        if keys is not None:
            await stack.enter_async_context(_background(keys.follow()))
        gateway = RunningGateway(app, parts, listener, metrics_port, shutdown or Shutdown())
        stack.push_async_callback(gateway.drain)
        if settings.port_file is not None:
            ports = {"http": gateway.http_port, "metrics": metrics_port}
            stack.enter_context(port_file(settings.port_file, ports))
        _log.info(
            "listening",
            host=settings.host,
            http_port=gateway.http_port,
            metrics_port=metrics_port,
            tls=certificate is not None,
            api_keys=keys is not None,
        )
        yield gateway


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        settings: Settings of the gateway.

    Raises:
        StartupError: A port cannot be opened, or a file that the settings name is invalid.
    """
    shutdown = Shutdown()
    with shutdown_on_signals(shutdown):
        _raise_open_files(settings.max_connections)
        async with running(settings, shutdown):
            settle_garbage_collection()
            await shutdown.requested.wait()


def _raise_open_files(connections: int) -> None:
    """Raises the process's limit of open files, which is often 1024, to what connections need."""
    needed = connections + _OTHER_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return
    allowed = needed if most == resource.RLIM_INFINITY else min(needed, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    if allowed < needed:
        _log.warning(
            "fewer connections than max_connections are possible: raise the limit of open files",
            open_files=allowed,
            max_connections=connections,
        )


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
