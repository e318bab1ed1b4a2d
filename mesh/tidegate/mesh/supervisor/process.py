"""One supervised server: does what the state machine says, and tells it what happens.

The process runs under a guard (see `guard`). While it runs, tasks watch it: one keeps its log, one
waits for its end, one asks after its health (see `probes`), and one tells the mesh of it once it
serves, and waits until Envoy sends it requests.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidegate.mesh.supervisor.logs import ServerLog
from tidegate.mesh.supervisor.machine import (
    Action,
    Event,
    Exited,
    HealthSeen,
    Kill,
    Phase,
    RestartPolicy,
    Start,
    State,
    Stop,
    Tick,
    advance,
)
from tidegate.mesh.supervisor.probes import Listening
from tidegate.mesh.supervisor.programs import Program
from tidegate.mesh.supervisor.state import ServerSnapshot, StateDirectory
from tidegate.mesh.supervisor.workloads import Routing, Workload

__all__ = ["ServerProcess"]

_GUARD = Path(__file__).with_name("guard.py")
_LOG_END_S = 2.0
_ROUTING_POLL_S = 0.25


class ServerProcess:
    """One server.

    Args:
        program: what to run, and how patiently.
        directory: where its log goes.
        routing: what Envoy says; needed only by a program that is in the mesh.
        on_change: called after each step.
    """

    def __init__(
        self,
        program: Program,
        directory: StateDirectory,
        routing: Routing | None,
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
        self._state = State()
        self._guard: asyncio.subprocess.Process | None = None
        self._pid: int | None = None
        self._listening = Listening()
        self._routed = False
        self._log: ServerLog | None = None
        self._changed = asyncio.Event()
        self._over = False

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    @property
    def listening(self) -> Listening:
        """Where it listens, as far as it has said."""
        return self._listening if self._state.phase.has_process else Listening()

    @property
    def policy(self) -> RestartPolicy:
        """How patient it is."""
        return self._program.policy

    def stop(self) -> None:
        """Asks it to stop."""
        self._events.put_nowait(Stop())

    def kill(self) -> None:
        """Ends it without waiting."""
        self._events.put_nowait(Kill())

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Waits until something is so of it; returns whether it is, or it was stopped before."""
        while not condition():
            if self._over:
                return False
            await self._changed.wait()
        return True

    async def run(self) -> None:
        """Runs the server, again and again, until it is asked to stop."""
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
            self._over = True
            self._announce()

    def snapshot(self) -> ServerSnapshot:
        """How it is, for the state file."""
        state = self._state
        to_wall = time.time() - _now()
        alive = state.phase.has_process
        listening = self.listening
        return ServerSnapshot(
            name=self.name,
            kind=self._program.kind,
            phase=state.phase,
            since=state.since + to_wall,
            serving_since=None if state.serving_since is None else state.serving_since + to_wall,
            restarts=state.restarts,
            reason=state.reason,
            pid=self._pid if alive else None,
            grpc_address=listening.grpc,
            metrics_address=listening.metrics,
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
        program = self._program
        program.port_file.unlink(missing_ok=True)
        self._pid, self._listening, self._routed = None, Listening(), False
        orders = (str(program.policy.drain_deadline_s), str(program.nice))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_GUARD), *orders, *program.command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **program.env},
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
            watching = [tasks.create_task(self._probe())]
            if self._program.workload is not None:
                watching.append(tasks.create_task(self._join(self._program.workload)))
            self._announce()
            status = await guard.wait()
            for task in watching:
                task.cancel()
            if self._program.workload is not None:
                self._program.workload.leave()
            # What the server started may have left its group and still hold the log open.
            await asyncio.wait({keeping}, timeout=_LOG_END_S)
            keeping.cancel()
        self._guard = None
        self._events.put_nowait(Exited(_reason(status)))

    async def _probe(self) -> None:
        """Follows where it listens and whether it serves."""
        async with contextlib.aclosing(self._program.probe.sightings()) as sightings:
            async for seen in sightings:
                self._listening = seen.listening
                self._events.put_nowait(HealthSeen(seen.serving))

    async def _join(self, workload: Workload) -> None:
        """Enters it in the mesh once it serves, and waits until it is sent requests."""
        await self.until(lambda: self._state.phase is Phase.SERVING)
        address, routing = self._listening.grpc, self._routing
        if address is None or routing is None:
            return
        workload.enter(address)
        while not await routing.clusters_of(address):  # noqa: ASYNC110  # Envoy tells only who asks
            await asyncio.sleep(_ROUTING_POLL_S)
        self._routed = True
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change()


def _now() -> float:
    """The loop's own clock, which is what deadlines are awaited by."""
    return asyncio.get_running_loop().time()


async def _keep(stream: asyncio.StreamReader, log: ServerLog) -> None:
    while data := await stream.read(65_536):
        log.write(data)


def _reason(status: int) -> str:
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        if number > 0:
            return f"was killed by {signal.Signals(number).name}"
    return f"exited with status {status}"
