"""The life of a server: open its ports, load, serve, drain.

The ports open first, so that health answers NOT_SERVING while the application loads its engine. The
application then says when its services serve. SIGTERM or SIGINT starts the drain, which loses no
accepted call:

1. Health says NOT_SERVING for `drain_delay_s`, while the server still accepts calls.
2. The server holds calls for `drain_hold_s`: none begins and none ends. gRPC cancels a call that
   reaches it just when it shuts down, before any handler sees the call. And a client that gets an
   answer sends its next request at once. During the hold, calls on their way arrive and no answer
   provokes new ones.
3. The server sends GOAWAY, closes the port and releases the held calls. Later calls find no server
   and end with UNAVAILABLE.
4. Running calls have `drain_deadline_s` to finish. The server cancels the others with UNAVAILABLE
   and logs them.
5. The application leaves its context and frees its engine. The process exports its spans.

A second signal cancels all calls at once.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import grpc

from tidegate.chassis.health import Health
from tidegate.chassis.in_flight import InFlightCalls
from tidegate.chassis.method_table import MethodTable
from tidegate.chassis.server_builder import (
    add_built_in_services,
    channel_options,
    open_port,
    server_credentials,
    use_method_table,
)
from tidegate.chassis.settings import ChassisSettings
from tidegate.runtime.logging import get_logger
from tidegate.runtime.monitoring import monitoring
from tidegate.runtime.process import (
    Shutdown,
    port_file,
    run_process,
    settle_garbage_collection,
    shutdown_on_signals,
)
from tidegate.runtime.tls import RotatingCertificate

__all__ = ["Application", "RunningServer", "run", "running", "serve"]

_log = get_logger(__name__)

_Settings = TypeVar("_Settings", bound=ChassisSettings)

# Cancelled calls need a moment to send their statuses; then gRPC cancels what is left.
_CANCEL_GRACE_S: Final = 1.0
_FIRST: Final = asyncio.FIRST_COMPLETED


class Application(Protocol):
    """The services and the engine of one server."""

    @property
    def service_names(self) -> Sequence[str]:
        """Full names of its gRPC services, for health and reflection."""
        ...

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicers, whose handlers are ``async`` functions or generators."""
        ...

    def run(self, health: Health) -> AbstractAsyncContextManager[None]:
        """Gives the context in which it serves.

        The server enters the context once the port is open: the application loads the engine, then
        sets each service in `health`. The server leaves the context once the last call has ended:
        the application frees the engine. If the engine dies, the context raises; the server then
        drains and fails.
        """
        ...


class RunningServer:
    """A server whose ports are open.

    Attributes:
        grpc_port: Port of gRPC.
        metrics_port: Port of HTTP for metrics and probes.
        health: Serving state of its services.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        settings: ChassisSettings,
        health: Health,
        in_flight: InFlightCalls,
        shutdown: Shutdown,
        metrics_port: int,
        grpc_port: int,
    ) -> None:
        self._server = server
        self._settings = settings
        self._in_flight = in_flight
        self._shutdown = shutdown
        self._draining: asyncio.Task[None] | None = None
        self.health = health
        self.metrics_port = metrics_port
        self.grpc_port = grpc_port

    def request_shutdown(self) -> None:
        """Begins the drain, as SIGTERM does; a second request cancels the calls still running."""
        self._shutdown.request()

    async def drain(self) -> None:
        """Stops serving without losing an accepted call; returns when every call has ended."""
        self._shutdown.requested.set()
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        settings, in_flight = self._settings, self._in_flight
        began_s = time.monotonic()
        self.health.shut_down()
        _log.info("draining", in_flight=in_flight.application_calls)
        await self._pause(settings.drain_delay_s)
        in_flight.hold()
        await self._pause(settings.drain_hold_s)
        deadline_s = settings.drain_deadline_s
        stopping = asyncio.create_task(self._server.stop(deadline_s + _CANCEL_GRACE_S), name="stop")
        # In this turn of the loop gRPC closes the port and sends GOAWAY, ahead of any answer.
        await asyncio.sleep(0)
        in_flight.release()
        in_flight.refuse_built_in()
        _log.info("sent GOAWAY", in_flight=in_flight.application_calls)
        forced = asyncio.create_task(self._shutdown.forced.wait(), name="wait-for-force")
        await asyncio.wait({stopping, forced}, timeout=deadline_s, return_when=_FIRST)
        forced.cancel()
        if cancelled := in_flight.cancel_all():
            _log.warning("calls cancelled", total=cancelled.total(), by_method=dict(cancelled))
        await asyncio.wait({stopping}, timeout=_CANCEL_GRACE_S)
        if not stopping.done():
            await self._server.stop(None)
        await stopping
        _log.info(
            "drained", cancelled=cancelled.total(), seconds=round(time.monotonic() - began_s, 3)
        )

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._shutdown.forced.wait(), seconds)


async def serve(application: Application, settings: ChassisSettings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        application: The application to serve.
        settings: Settings of the server.

    Raises:
        StartupError: A port cannot be opened, or a TLS file is invalid.
        Exception: The application failed to load, or failed later; the server has drained.
    """
    shutdown = Shutdown()
    with shutdown_on_signals(shutdown):
        async with (
            _opened(application, settings, shutdown) as server,
            _loaded(application, server, shutdown) as lifetime,
        ):
            settle_garbage_collection()
            requested = asyncio.create_task(shutdown.requested.wait(), name="wait-for-shutdown")
            await asyncio.wait({requested, lifetime}, return_when=_FIRST)
            requested.cancel()


@asynccontextmanager
async def running(
    application: Application, settings: ChassisSettings
) -> AsyncIterator[RunningServer]:
    """Serves while the context is open: enters once the application has loaded, drains on leaving.

    Args:
        application: The application to serve.
        settings: Settings of the server.

    Yields:
        The server, for its ports and to drain it early.

    Raises:
        StartupError: A port cannot be opened, or a TLS file is invalid.
        Exception: The application failed to load, or failed later.
    """
    shutdown = Shutdown()
    async with (
        _opened(application, settings, shutdown) as server,
        _loaded(application, server, shutdown),
    ):
        yield server


def run(application_factory: Callable[[_Settings], Application], settings: _Settings) -> int:
    """Runs a server as the whole of a process: logs, traces, the event loop, and the signals.

    Args:
        application_factory: Makes the application, on the running event loop.
        settings: Settings of the chassis and of the application.

    Returns:
        The exit code: 0 after a drain, 1 after a failure, which is logged.
    """

    async def main() -> None:
        await serve(application_factory(settings), settings)

    return run_process(main, settings)


@asynccontextmanager
async def _opened(
    application: Application, settings: ChassisSettings, shutdown: Shutdown
) -> AsyncIterator[RunningServer]:
    health = Health(application.service_names)
    in_flight = InFlightCalls()
    certificate = RotatingCertificate.from_settings(settings)
    methods = MethodTable(
        frozenset(application.service_names), in_flight, settings.max_concurrent_rpcs
    )
    grpc_server = grpc.aio.server(options=channel_options(settings))
    use_method_table(methods, grpc_server)
    application.register(grpc_server)
    add_built_in_services(grpc_server, health, application.service_names)
    async with AsyncExitStack() as stack:
        metrics_port = stack.enter_context(
            monitoring(settings.host, settings.metrics_port, lambda: bool(health.is_serving()))
        )
        credentials = None if certificate is None else server_credentials(certificate)
        grpc_port = open_port(grpc_server, settings, credentials)
        methods.listens_on(settings.host, grpc_port)
        await grpc_server.start()
        server = RunningServer(
            grpc_server, settings, health, in_flight, shutdown, metrics_port, grpc_port
        )
        stack.push_async_callback(server.drain)
        if certificate is not None:
            await stack.enter_async_context(
                _background(certificate.follow(settings.tls_reload_interval_s))
            )
        if settings.port_file is not None:
            ports = {"grpc": grpc_port, "metrics": metrics_port}
            stack.enter_context(port_file(settings.port_file, ports))
        _log.info(
            "listening",
            host=settings.host,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            tls=certificate is not None,
        )
        yield server


@asynccontextmanager
async def _loaded(
    application: Application, server: RunningServer, shutdown: Shutdown
) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the application in a task; enters once it has loaded or a shutdown is requested."""
    loaded = asyncio.Event()
    began_s = time.monotonic()

    async def live() -> None:
        async with application.run(server.health):
            server.health.start_up()
            loaded.set()
            _log.info("loaded", seconds=round(time.monotonic() - began_s, 3))
            await shutdown.requested.wait()
            await server.drain()

    lifetime = asyncio.create_task(live(), name="application")
    waits = [asyncio.create_task(each) for each in (loaded.wait(), shutdown.requested.wait())]
    try:
        await asyncio.wait({lifetime, *waits}, return_when=_FIRST)
        if lifetime.done():
            # The application can only have failed; this raises its error.
            await lifetime
        yield lifetime
    finally:
        for wait in waits:
            wait.cancel()
        if not loaded.is_set():
            lifetime.cancel()
        shutdown.requested.set()
        with contextlib.suppress(asyncio.CancelledError):
            await lifetime


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
