"""A server as the whole of a process: its logs and traces, event loop, signals and port file.

`run_process` runs one. The rest is for the server that runs in it: `shutdown_on_signals` turns
SIGTERM and SIGINT into a `Shutdown`, `port_file` tells other programs which ports are open, and
`schedule_in_batches` and `settle_garbage_collection` leave more processor time to the engine.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import uvloop

from tidegate.errors import TidegateError
from tidegate.runtime import logging as runtime_logging
from tidegate.runtime import tracing
from tidegate.runtime.errors import StartupError
from tidegate.runtime.logging import get_logger
from tidegate.runtime.settings import RuntimeSettings

__all__ = [
    "Shutdown",
    "port_file",
    "run_process",
    "schedule_in_batches",
    "settle_garbage_collection",
    "shutdown_on_signals",
]

_log = get_logger(__name__)

# The collector looks at the youngest objects after this many new ones that may form cycles.
# Python's default is 700.
_GC_YOUNG_OBJECTS: Final = 10_000
_TRACE_EXPORT_S: Final = 5.0
_SHUTDOWN_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run_process(main: Callable[[], Awaitable[None]], settings: RuntimeSettings) -> int:
    """Runs a server as the whole of a process, with its logs, traces and event loop.

    Args:
        main: Serves until the process is to end; runs on the event loop.
        settings: Settings of the server.

    Returns:
        The exit code: 0 when `main` returns, 1 when it fails. The failure is logged.
    """
    runtime_logging.configure(settings.log_level, settings.log_format)
    provider = tracing.start(settings)

    async def serve() -> None:
        await main()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
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


class Shutdown:
    """A request to end the server; a second request ends it at once.

    Attributes:
        requested: Set by the first request.
        forced: Set by the second request; the server then cancels all calls at once.
    """

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def request(self) -> None:
        """Requests the shutdown, or forces it when it is requested already."""
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()


@contextlib.contextmanager
def shutdown_on_signals(shutdown: Shutdown) -> Iterator[None]:
    """Requests a shutdown on each SIGTERM and SIGINT while the context is open.

    Args:
        shutdown: Receives the requests. Enter the context on the running event loop.
    """
    loop = asyncio.get_running_loop()

    def request(number: signal.Signals) -> None:
        _log.info("signal", name=number.name)
        shutdown.request()

    for number in _SHUTDOWN_SIGNALS:
        loop.add_signal_handler(number, request, number)
    try:
        yield
    finally:
        for number in _SHUTDOWN_SIGNALS:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def port_file(path: Path, ports: Mapping[str, int]) -> Iterator[None]:
    """Writes the open ports and the process id to a file as JSON, and deletes it at the end.

    Args:
        path: Path of the file, which appears whole.
        ports: Port numbers by protocol, such as ``{"grpc": 50051, "metrics": 9090}``.

    Raises:
        StartupError: The file cannot be written.
    """
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        written.write_text(json.dumps({**ports, "pid": os.getpid()}) + "\n")
        written.replace(path)
    except OSError as error:
        raise StartupError(
            f"port_file: cannot write {path}: {error.strerror}; name a file in an existing folder"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def settle_garbage_collection() -> None:
    """Exempts what is loaded from garbage collection, and makes collections rarer.

    Call it once the server has loaded. A full collection walks every object of the imported
    libraries, for tens of milliseconds and with the GIL held. A server makes few cycles, so a
    collection nearly always finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_YOUNG_OBJECTS)


def schedule_in_batches() -> None:
    """Stops this process's threads from preempting others; threads made later inherit it.

    A call wakes a server's threads several times. On a busy machine each wake-up would take a core
    from the engine, whose data is in that core's caches. Under SCHED_BATCH the threads run later
    and find more to do each time. Where a core is free, nothing waits. See sched(7), SCHED_BATCH.
    """
    try:
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        # A sandbox may forbid it. The server works without it, only more slowly.
        _log.warning("batch_scheduling has no effect here", error=str(error))
