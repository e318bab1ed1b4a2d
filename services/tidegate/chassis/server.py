"""The life of a server: open, load, serve, drain.

The ports open first, so that health answers NOT_SERVING while the application loads its engine; the
application says when its services serve. SIGTERM or SIGINT drains, and nothing that was accepted is
lost:

1. Health says NOT_SERVING, for `drain_delay_s` while requests are still taken.
2. Calls are held for `drain_hold_s`: none begins and none ends. A call that reaches gRPC just when
   it shuts down is cancelled before any handler sees it, and a client that gets an answer sends its
   next request at once; after the hold what was on its way has arrived, and no new one has been
   provoked.
3. Connections are told to go (GOAWAY) and the port closes; held calls go on. What comes now finds
   no server and is UNAVAILABLE.
4. What runs has `drain_deadline_s` to finish. What has not is cut with UNAVAILABLE and reported.
5. The application leaves its context and frees its engine; spans are exported.

A second signal cuts at once.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import grpc
import structlog
import uvloop

from tidegate.chassis import logging as chassis_logging
from tidegate.chassis import tracing
from tidegate.chassis.errors import StartupError
from tidegate.chassis.health import Health
from tidegate.chassis.in_flight import InFlight
from tidegate.chassis.listening import (
    add_common_services,
    channel_options,
    look_methods_up_in,
    open_port,
)
from tidegate.chassis.method_table import MethodTable
from tidegate.chassis.monitoring import monitoring
from tidegate.chassis.settings import ChassisSettings
from tidegate.chassis.tls import RotatingCertificate
from tidegate.errors import TidegateError

__all__ = ["Application", "RunningServer", "run", "running", "serve"]

_log = structlog.stdlib.get_logger(__name__)

_Settings = TypeVar("_Settings", bound=ChassisSettings)

# After calls are cut, their statuses need a moment on the wire; after it gRPC cancels what is left.
# Ten thousand new objects that may form cycles, instead of 700, before the youngest are looked at.
_GC_YOUNG_OBJECTS: Final = 10_000
_CUT_GRACE_S: Final = 1.0
_TRACE_EXPORT_S: Final = 5.0
_FIRST: Final = asyncio.FIRST_COMPLETED
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Application(Protocol):
    """What a server serves."""

    @property
    def service_names(self) -> Sequence[str]:
        """Full names of its gRPC services, for health and reflection."""
        ...

    def register(self, server: grpc.aio.Server) -> None:
        """Adds its servicers, whose handlers are ``async`` functions or generators."""
        ...

    def run(self, health: Health) -> AbstractAsyncContextManager[None]:
        """Gives the context in which it serves.

        It is entered once the port is open: it loads the engine, then sets each service in
        `health`. It is left once the last call has ended: it frees the engine. Should the engine
        die, it raises, and the server drains and fails.
        """
        ...


class _Stop:
    """Whether somebody has asked the server to end, and asked again to be quick about it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def ask(self) -> None:
        if self.asked.is_set():
            self.hurried.set()
        self.asked.set()


class RunningServer:
    """A server whose ports are open.

    Attributes:
        grpc_port: Port of gRPC.
        metrics_port: Port of HTTP for metrics and probes.
        health: Who serves.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        settings: ChassisSettings,
        health: Health,
        in_flight: InFlight,
        stop: _Stop,
        metrics_port: int,
        grpc_port: int,
    ) -> None:
        self._server = server
        self._settings = settings
        self._in_flight = in_flight
        self._stop = stop
        self._draining: asyncio.Task[None] | None = None
        self.health = health
        self.metrics_port = metrics_port
        self.grpc_port = grpc_port

    def ask_to_stop(self) -> None:
        """Begins the end as SIGTERM does; a second time, cuts what still runs."""
        self._stop.ask()

    async def drain(self) -> None:
        """Stops serving and loses nothing that was accepted; returns when every call has ended."""
        self._stop.asked.set()
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
        stopping = asyncio.create_task(self._server.stop(deadline_s + _CUT_GRACE_S), name="stop")
        # One turn of the loop, in which gRPC closes the port and sends GOAWAY, ahead of any answer.
        await asyncio.sleep(0)
        in_flight.release()
        in_flight.close_own()
        _log.info("connections told to go", in_flight=in_flight.application_calls)
        hurry = asyncio.create_task(self._stop.hurried.wait(), name="hurry")
        await asyncio.wait({stopping, hurry}, timeout=deadline_s, return_when=_FIRST)
        hurry.cancel()
        if cut := in_flight.cut_all():
            _log.warning("calls cut", total=cut.total(), by_method=dict(cut))
        await asyncio.wait({stopping}, timeout=_CUT_GRACE_S)
        if not stopping.done():
            await self._server.stop(None)
        await stopping
        _log.info("drained", cut=cut.total(), seconds=round(time.monotonic() - began_s, 3))

    async def _pause(self, seconds: float) -> None:
        if seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.hurried.wait(), seconds)


async def serve(application: Application, settings: ChassisSettings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        application: What to serve.
        settings: How to serve it.

    Raises:
        StartupError: A port or a TLS file cannot be had.
        Exception: The application failed to load, or failed later; the server has drained.
    """
    stop = _Stop()
    with _signals(stop):
        async with (
            _opened(application, settings, stop) as server,
            _alive(application, server, stop) as lifetime,
        ):
            _settle_garbage_collection()
            asked = asyncio.create_task(stop.asked.wait(), name="wait-for-stop")
            await asyncio.wait({asked, lifetime}, return_when=_FIRST)
            asked.cancel()


@asynccontextmanager
async def running(
    application: Application, settings: ChassisSettings
) -> AsyncIterator[RunningServer]:
    """Serves while the context is open: enters once the application has loaded, drains on leaving.

    Args:
        application: What to serve.
        settings: How to serve it.

    Yields:
        The server, for its ports and to drain it early.

    Raises:
        StartupError: A port or a TLS file cannot be had.
        Exception: The application failed to load, or failed later.
    """
    stop = _Stop()
    async with (
        _opened(application, settings, stop) as server,
        _alive(application, server, stop),
    ):
        yield server


def run(application_factory: Callable[[_Settings], Application], settings: _Settings) -> int:
    """Runs a server as the whole of a process: logs, traces, the event loop, and the signals.

    Args:
        application_factory: Makes the application, on the running event loop.
        settings: Of the chassis and of the application.

    Returns:
        The exit code: 0 after a drain, 1 after a failure, which is logged.
    """
    chassis_logging.configure(settings.log_level, settings.log_format)
    provider = tracing.start(settings)

    async def main() -> None:
        await serve(application_factory(settings), settings)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except StartupError as error:
        _log.error("cannot start", error=str(error))
        return 1
    except TidegateError as error:
        # Our own errors say what, where and what to do; a traceback would only hide it.
        _log.error("the server failed", error=str(error))
        return 1
    except Exception:  # noqa: BLE001 - the edge of the process, which reports it
        _log.exception("the server failed")
        return 1
    finally:
        if provider is not None and not tracing.stop(provider, _TRACE_EXPORT_S):
            _log.warning("spans were lost: the collector did not take them in time")
    return 0


@asynccontextmanager
async def _opened(
    application: Application, settings: ChassisSettings, stop: _Stop
) -> AsyncIterator[RunningServer]:
    health = Health(application.service_names)
    in_flight = InFlight()
    certificate = RotatingCertificate.from_settings(settings)
    methods = MethodTable(
        frozenset(application.service_names), in_flight, settings.max_concurrent_rpcs
    )
    grpc_server = grpc.aio.server(options=channel_options(settings))
    look_methods_up_in(methods, grpc_server)
    application.register(grpc_server)
    add_common_services(grpc_server, health, application.service_names)
    async with AsyncExitStack() as stack:
        metrics_port = stack.enter_context(
            monitoring(settings.host, settings.metrics_port, lambda: bool(health.is_serving()))
        )
        credentials = None if certificate is None else certificate.credentials()
        grpc_port = open_port(grpc_server, settings, credentials)
        methods.listens_on(settings.host, grpc_port)
        await grpc_server.start()
        server = RunningServer(
            grpc_server, settings, health, in_flight, stop, metrics_port, grpc_port
        )
        stack.push_async_callback(server.drain)
        if certificate is not None:
            await stack.enter_async_context(
                _background(certificate.follow(settings.tls_reload_interval_s))
            )
        if settings.port_file is not None:
            stack.enter_context(_port_file(settings.port_file, server))
        _log.info(
            "listening",
            host=settings.host,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            tls=certificate is not None,
        )
        yield server


@asynccontextmanager
async def _alive(
    application: Application, server: RunningServer, stop: _Stop
) -> AsyncIterator[asyncio.Task[None]]:
    """Runs the application in a task of its own; enters when it is loaded or asked to stop."""
    loaded = asyncio.Event()
    began_s = time.monotonic()

    async def live() -> None:
        async with application.run(server.health):
            loaded.set()
            _log.info("loaded", seconds=round(time.monotonic() - began_s, 3))
            await stop.asked.wait()
            await server.drain()

    lifetime = asyncio.create_task(live(), name="application")
    waits = [asyncio.create_task(each) for each in (loaded.wait(), stop.asked.wait())]
    try:
        await asyncio.wait({lifetime, *waits}, return_when=_FIRST)
        if lifetime.done():
            # It can only have failed; what it raised is raised below.
            await lifetime
        yield lifetime
    finally:
        for wait in waits:
            wait.cancel()
        if not loaded.is_set():
            lifetime.cancel()
        stop.asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await lifetime


def _settle_garbage_collection() -> None:
    """Keeps the collector away from what was loaded, which stays, and lets it look less often.

    A full collection walks every object of the imported libraries, for tens of milliseconds and
    with the GIL held; a server makes few cycles, so it is nearly always for nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG_OBJECTS)


@contextlib.contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def ask(number: signal.Signals) -> None:
        _log.info("signal", name=number.name)
        stop.ask()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@contextlib.contextmanager
def _port_file(path: Path, server: RunningServer) -> Iterator[None]:
    ports = {"grpc": server.grpc_port, "metrics": server.metrics_port, "pid": os.getpid()}
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written.write_text(json.dumps(ports) + "\n")
        written.replace(path)
    except OSError as error:
        raise StartupError(
            f"port_file: cannot write {path}: {error.strerror}; name a file in a folder there is"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
