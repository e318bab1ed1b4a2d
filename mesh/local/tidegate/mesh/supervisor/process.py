"""One supervised server: does what the state machine says, and tells it what happens.

The process runs under a guard (see `guard`). While it runs, three tasks watch it: one keeps its
log, one waits for its end, and one reads the ports that it wrote and asks after its health.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidegate.client import AsyncClient, ClientOptions, HealthStatus, Retry, TidegateRpcError
from tidegate.mesh.supervisor.config import ServerConfig
from tidegate.mesh.supervisor.logs import ServerLog
from tidegate.mesh.supervisor.machine import (
    Action,
    Event,
    Exited,
    HealthSeen,
    Kill,
    Phase,
    Start,
    State,
    Stop,
    Tick,
    advance,
)
from tidegate.mesh.supervisor.state import ServerSnapshot, StateDirectory

__all__ = ["ServerProcess"]

_GUARD = Path(__file__).with_name("guard.py")
_PROBE_STARTING_S, _PROBE_SERVING_S, _PROBE_TIMEOUT_S = 0.25, 2.0, 5.0
_LOG_END_S = 2.0
# A probe is its own retry.
_PROBE_OPTIONS = ClientOptions(timeout_s=_PROBE_TIMEOUT_S, retry=Retry(attempts=1))


class ServerProcess:
    """One server.

    Args:
        name: its name.
        config: what to run and how patiently.
        directory: where its log and its port file go.
        on_change: called after each step.
    """

    def __init__(
        self,
        name: str,
        config: ServerConfig,
        directory: StateDirectory,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self._config = config
        self._policy = config.policy()
        self._directory = directory
        self._on_change = on_change
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._events.put_nowait(Start())
        self._state = State()
        self._guard: asyncio.subprocess.Process | None = None
        self._pid: int | None = None
        self._addresses: tuple[str, str] | None = None
        self._log: ServerLog | None = None

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    def stop(self) -> None:
        """Asks it to stop."""
        self._events.put_nowait(Stop())

    def kill(self) -> None:
        """Ends it without waiting."""
        self._events.put_nowait(Kill())

    async def run(self) -> None:
        """Runs the server, again and again, until it is asked to stop."""
        with ServerLog(self._directory.log_file(self.name)) as log:
            self._log = log
            async with asyncio.TaskGroup() as tasks:
                while True:
                    event = await self._next_event()
                    self._state, actions = advance(self._policy, self._state, event, _now())
                    for action in actions:
                        await self._do(action, tasks, log)
                    self._on_change()
                    if self._state.phase is Phase.STOPPED:
                        return

    def snapshot(self) -> ServerSnapshot:
        """How it is, for the state file."""
        state = self._state
        to_wall = time.time() - _now()
        alive = state.phase.has_process
        grpc, metrics = self._addresses if alive and self._addresses else (None, None)
        return ServerSnapshot(
            name=self.name,
            kind=self._config.kind,
            phase=state.phase,
            since=state.since + to_wall,
            serving_since=None if state.serving_since is None else state.serving_since + to_wall,
            restarts=state.restarts,
            reason=state.reason,
            pid=self._pid if alive else None,
            grpc_address=grpc,
            metrics_address=metrics,
            log=str(self._directory.log_file(self.name)),
            last_lines=self._log.last_lines() if self._log else (),
        )

    async def _next_event(self) -> Event:
        deadline = self._state.deadline
        try:
            async with asyncio.timeout_at(deadline):
                return await self._events.get()
        except TimeoutError:
            return Tick()

    async def _do(self, action: Action, tasks: asyncio.TaskGroup, log: ServerLog) -> None:
        match action:
            case Action.SPAWN:
                self._guard = guard = await self._spawn()
                tasks.create_task(self._live(guard, log))
            case Action.TERMINATE:
                await self._order(b"T")
            case Action.KILL:
                await self._order(b"K")

    async def _order(self, order: bytes) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        # The guard may have ended meanwhile; its end is on its way as an event.
        with contextlib.suppress(ConnectionError):
            self._guard.stdin.write(order)
            await self._guard.stdin.drain()

    async def _spawn(self) -> asyncio.subprocess.Process:
        port_file = self._directory.port_file(self.name).resolve()
        port_file.unlink(missing_ok=True)
        self._addresses = self._pid = None
        arguments = self._config.arguments(sys.executable, port_file)
        drain_s = str(self._config.drain_deadline_s)
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_GUARD), drain_s, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._config.env},
            start_new_session=True,
        )

    async def _live(self, guard: asyncio.subprocess.Process, log: ServerLog) -> None:
        """One life of the process, from its start to its end."""
        assert guard.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        assert guard.stderr is not None  # noqa: S101
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(_keep(guard.stderr, log))
            with contextlib.suppress(ValueError):
                self._pid = int(await guard.stdout.readline())
            probing = tasks.create_task(self._probe())
            self._on_change()
            status = await guard.wait()
            probing.cancel()
            # What the server started may have left its group and still hold the log open.
            await asyncio.wait({keeping}, timeout=_LOG_END_S)
            keeping.cancel()
        self._guard = None
        self._events.put_nowait(Exited(_reason(status)))

    async def _probe(self) -> None:
        """Reads the ports once they are written, then asks after the health for ever."""
        port_file = self._directory.port_file(self.name)
        while (addresses := _addresses(port_file, self._config.client_host)) is None:  # noqa: ASYNC110  # files wake nobody
            await asyncio.sleep(_PROBE_STARTING_S)
        self._addresses = addresses
        self._on_change()
        async with AsyncClient(addresses[0], _PROBE_OPTIONS) as client:
            while True:
                try:
                    serving = await client.health() is HealthStatus.SERVING
                except TidegateRpcError:
                    serving = False
                self._events.put_nowait(HealthSeen(serving))
                await asyncio.sleep(_PROBE_SERVING_S if serving else _PROBE_STARTING_S)


def _now() -> float:
    """The loop's own clock, which is what deadlines are awaited by."""
    return asyncio.get_running_loop().time()


async def _keep(stream: asyncio.StreamReader, log: ServerLog) -> None:
    while data := await stream.read(65_536):
        log.write(data)


def _addresses(port_file: Path, host: str) -> tuple[str, str] | None:
    try:
        ports = json.loads(port_file.read_text(encoding="utf-8"))
        return f"{host}:{int(ports['grpc'])}", f"{host}:{int(ports['metrics'])}"
    except (OSError, ValueError, KeyError, TypeError):
        # Not there yet, or not whole.
        return None


def _reason(status: int) -> str:
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        if number > 0:
            return f"was killed by {signal.Signals(number).name}"
    return f"exited with status {status}"
