"""One supervised process: runs the actions of the state machine and feeds it events.

The process runs under a parent-death guard (see `parent_death_guard`). While it runs, one task
keeps its log, one waits for its end, and one probes it (see `probes`). Another task adds it to the
mesh once it is ready, and waits until Envoy sends it requests.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidegate.mesh.supervisor.process.probes import ListenAddresses
from tidegate.mesh.supervisor.process.server_log import ServerLog
from tidegate.mesh.supervisor.process.state_machine import (
    Action,
    Event,
    Exited,
    Kill,
    Phase,
    Probed,
    ProcessState,
    RestartPolicy,
    Start,
    Stop,
    Tick,
    advance,
)
from tidegate.mesh.supervisor.programs import Program
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.snapshot import ServerSnapshot
from tidegate.mesh.supervisor.workloads import EnvoyRouting, WorkloadEntryFile

__all__ = ["ServerProcess"]

_GUARD = Path(__file__).with_name("parent_death_guard.py")
_LOG_DRAIN_S = 2.0
_ROUTING_POLL_S = 0.25


class ServerProcess:
    """One process, through all its restarts after crashes.

    Args:
        program: What to run, with its timeouts and limits.
        directory: The folder for its log.
        routing: The endpoints of Envoy; only a program in the mesh needs it.
        on_change: Called after each step of the state machine.
    """

    def __init__(
        self,
        program: Program,
        directory: StateDirectory,
        routing: EnvoyRouting | None,
        on_change: Callable[[], None],
    ) -> None:
        self.name = program.name
        self.instance = program.instance
        self._program = program
        self._log_file = directory.log_file(program.instance)
        self._routing = routing
        self._on_change = on_change
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._events.put_nowait(Start())
        self._state = ProcessState()
        self._guard: asyncio.subprocess.Process | None = None
        self._pid: int | None = None
        self._addresses = ListenAddresses()
        self._routed = False
        self._log: ServerLog | None = None
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def state(self) -> ProcessState:
        """The state of the process."""
        return self._state

    @property
    def addresses(self) -> ListenAddresses:
        """Where it listens, once it has written its ports."""
        return self._addresses if self._state.phase.has_process else ListenAddresses()

    @property
    def mesh_address(self) -> str | None:
        """Where the mesh sends requests, once it has written its ports."""
        workload = self._program.workload
        return None if workload is None else getattr(self.addresses, workload.port_name)

    @property
    def policy(self) -> RestartPolicy:
        """The timeouts and limits of the state machine."""
        return self._program.policy

    def stop(self) -> None:
        """Asks the process to stop."""
        self._events.put_nowait(Stop())

    def kill(self) -> None:
        """Kills the process."""
        self._events.put_nowait(Kill())

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; returns false if the process is stopped before it holds."""
        while not condition():
            if self._ended:
                return False
            await self._changed.wait()
        return True

    async def run(self) -> None:
        """Runs the process, and restarts it after crashes, until it is asked to stop."""
        try:
            with ServerLog(self._log_file) as log:
                self._log = log
                async with asyncio.TaskGroup() as tasks:
                    while True:
                        event = await self._next_event()
                        self._state, actions = advance(self.policy, self._state, event, _now())
                        for action in actions:
                            await self._do(action, tasks, log)
                        self._announce()
                        if self._state.phase is Phase.STOPPED:
                            return
        finally:
            self._ended = True
            self._announce()

    def snapshot(self) -> ServerSnapshot:
        """Its state, for the state file."""
        state = self._state
        to_wall = time.time() - _now()
        alive = state.phase.has_process
        addresses = self.addresses
        return ServerSnapshot(
            name=self.name,
            kind=self._program.kind,
            phase=state.phase,
            since=state.since + to_wall,
            serving_since=None if state.serving_since is None else state.serving_since + to_wall,
            restarts=state.restarts,
            reason=state.reason,
            pid=self._pid if alive else None,
            grpc_address=addresses.grpc,
            http_address=addresses.http,
            metrics_address=addresses.metrics,
            routed=alive and self._routed if self._program.workload else None,
            log=str(self._log_file),
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
                tasks.create_task(self._supervise(guard, log))
            case Action.TERMINATE:
                await self._command(b"T")
            case Action.KILL:
                await self._command(b"K")

    async def _command(self, command: bytes) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        # The guard may have ended by now; the event of its end then comes next.
        with contextlib.suppress(ConnectionError):
            self._guard.stdin.write(command)
            await self._guard.stdin.drain()

    async def _spawn(self) -> asyncio.subprocess.Process:
        program = self._program
        program.port_file.unlink(missing_ok=True)
        self._pid, self._addresses, self._routed = None, ListenAddresses(), False
        options = (str(program.policy.drain_deadline_s), str(program.nice))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_GUARD), *options, *program.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **program.env},
            start_new_session=True,
        )

    async def _supervise(self, guard: asyncio.subprocess.Process, log: ServerLog) -> None:
        """Watches one run of the process, from its start to its end."""
        assert guard.stdout is not None  # noqa: S101  # for the type checker: it is a pipe
        assert guard.stderr is not None  # noqa: S101
        async with asyncio.TaskGroup() as tasks:
            log_copy = tasks.create_task(_copy(guard.stderr, log))
            with contextlib.suppress(ValueError):
                self._pid = int(await guard.stdout.readline())
            watchers = [tasks.create_task(self._probe())]
            if self._program.workload is not None:
                watchers.append(tasks.create_task(self._join(self._program.workload)))
            self._announce()
            status = await guard.wait()
            for task in watchers:
                task.cancel()
            if self._program.workload is not None:
                self._program.workload.remove()
            # A child of the server may have left its process group and still hold the log open.
            await asyncio.wait({log_copy}, timeout=_LOG_DRAIN_S)
            log_copy.cancel()
        self._guard = None
        self._events.put_nowait(Exited(_reason(status)))

    async def _probe(self) -> None:
        """Passes the results of the probe on to the state machine."""
        async with contextlib.aclosing(self._program.probe.results()) as results:
            async for result in results:
                self._addresses = result.addresses
                self._events.put_nowait(Probed(result.ready))

    async def _join(self, workload: WorkloadEntryFile) -> None:
        """Adds the process to the mesh once it serves, and waits until Envoy sends it requests."""
        await self.until(lambda: self._state.phase is Phase.SERVING)
        address, routing = self.mesh_address, self._routing
        if address is None or routing is None:
            return
        workload.write(address)
        while not await routing.clusters_of(address):  # noqa: ASYNC110  # Envoy sends no event
            await asyncio.sleep(_ROUTING_POLL_S)
        self._routed = True
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change()


def _now() -> float:
    """The clock of the event loop, by which deadlines are awaited."""
    return asyncio.get_running_loop().time()


async def _copy(stream: asyncio.StreamReader, log: ServerLog) -> None:
    while data := await stream.read(65_536):
        log.write(data)


def _reason(status: int) -> str:
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        if number > 0:
            return f"was killed by {signal.Signals(number).name}"
    return f"exited with status {status}"
