"""One server of the file, and its restarts on request.

Behind the mesh a restart loses no request. The server starts a new process beside the old one. The
new process must serve, and Envoy must send it requests in every cluster of the old one; only then
the old one is asked to stop. The old process announces to the controller that it stops, and
finishes its requests. If the new process fails on the way, it is stopped and the old one goes on.

A process with a fixed port cannot run twice, so the server stops it and starts a new one.
"""

import asyncio
from collections.abc import Callable

from tidegate.mesh.supervisor.errors import RestartError
from tidegate.mesh.supervisor.process.server_process import ServerProcess
from tidegate.mesh.supervisor.process.state_machine import Phase, ProcessState
from tidegate.mesh.supervisor.state.command_files import RestartCommand
from tidegate.mesh.supervisor.state.snapshot import RestartSnapshot, RestartStage, last_log_message
from tidegate.mesh.supervisor.workloads import EnvoyRouting

__all__ = ["SupervisedServer"]

_STARTED = frozenset({Phase.SERVING, Phase.UNHEALTHY, Phase.BACKING_OFF, Phase.FAILED})
_JOIN_TIMEOUT_S, _JOIN_POLL_S = 60.0, 0.1

_Note = Callable[[RestartStage], None]


class SupervisedServer:
    """One server.

    Args:
        name: Its name.
        make: Makes a process of the server, given the name of the instance.
        routing: The endpoints of Envoy, for a server behind it; ``None`` for a server that cannot
            run twice.
        on_restart: Called at each stage of a restart.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str], ServerProcess],
        routing: EnvoyRouting | None,
        on_restart: Callable[[RestartSnapshot], None],
    ) -> None:
        self.name = name
        self._make = make
        self._routing = routing
        self._on_restart = on_restart
        self._current = make(name)
        self._other: ServerProcess | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._restarting = False
        self._stopping = False

    @property
    def state(self) -> ProcessState:
        """The state of its process."""
        return self._current.state

    @property
    def drain_deadline_s(self) -> float:
        """Seconds from SIGTERM to SIGKILL."""
        return self._current.policy.drain_deadline_s

    @property
    def processes(self) -> tuple[ServerProcess, ...]:
        """Its process, and during a restart the second one."""
        return (self._current,) if self._other is None else (self._current, self._other)

    async def run(self) -> None:
        """Runs the server until it is asked to stop."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._current.run())
        self._tasks = None

    def stop(self) -> None:
        """Asks its processes to stop."""
        self._stopping = True
        for process in self.processes:
            process.stop()

    def kill(self) -> None:
        """Kills its processes."""
        self._stopping = True
        for process in self.processes:
            process.kill()

    def restart(self, command: RestartCommand) -> None:
        """Begins a restart, unless one is already running."""

        def note(stage: RestartStage, reason: str = "") -> None:
            self._on_restart(
                RestartSnapshot(command=command.id, name=self.name, stage=stage, reason=reason)
            )

        async def follow(tasks: asyncio.TaskGroup) -> None:
            note(RestartStage.STARTING)
            try:
                if self._routing is None:
                    await self._in_place(tasks, note)
                else:
                    await self._surge(tasks, self._routing, note)
            except RestartError as error:
                note(RestartStage.FAILED, str(error))
            else:
                note(RestartStage.DONE)
            finally:
                self._restarting = False

        if self._tasks is None or self._stopping:
            note(RestartStage.FAILED, "the server is stopping")
        elif self._restarting:
            note(RestartStage.FAILED, "another restart of it is already running")
        else:
            self._restarting = True
            self._tasks.create_task(follow(self._tasks))

    async def _surge(self, tasks: asyncio.TaskGroup, routing: EnvoyRouting, note: _Note) -> None:
        old = self._current
        second = f"{self.name}.2"
        self._other = new = self._make(self.name if old.instance == second else second)
        running = tasks.create_task(new.run())
        try:
            await _started(new)
            note(RestartStage.JOINING)
            await _joined(new, old, routing)
        except RestartError:
            new.stop()
            await asyncio.wait({running})
            self._other = None
            raise
        self._current, self._other = new, old
        note(RestartStage.DRAINING)
        old.stop()
        await _ended(old)
        self._other = None

    async def _in_place(self, tasks: asyncio.TaskGroup, note: _Note) -> None:
        note(RestartStage.DRAINING)
        self._current.stop()
        await _ended(self._current)
        if self._stopping:
            raise RestartError("the supervisor stopped all servers")
        self._current = self._make(self.name)
        note(RestartStage.STARTING)
        tasks.create_task(self._current.run())
        await _started(self._current)


async def _started(process: ServerProcess) -> None:
    """Waits until a process serves.

    Raises:
        RestartError: The process does not serve, or was stopped.
    """
    if not await process.until(lambda: process.state.phase in _STARTED):
        raise RestartError("the supervisor stopped all servers")
    if process.state.phase is not Phase.SERVING:
        seen = process.snapshot()
        message = last_log_message(seen)
        raise RestartError(
            f"the new process {seen.reason or 'does not serve'}"
            f"{f': {message}' if message else ''} (log: {seen.log})"
        )


async def _joined(new: ServerProcess, old: ServerProcess, routing: EnvoyRouting) -> None:
    """Waits until Envoy sends requests to the new process in every cluster of the old one.

    Raises:
        RestartError: Envoy does not do so in time, or the new process ended.
    """
    addresses = new.mesh_address or "", old.mesh_address or ""
    try:
        async with asyncio.timeout(_JOIN_TIMEOUT_S):
            while new.state.phase is Phase.SERVING:
                joined, wanted = [await routing.clusters_of(each) for each in addresses]
                if joined and joined >= wanted:
                    return
                await asyncio.sleep(_JOIN_POLL_S)
    except TimeoutError:
        raise RestartError(
            f"Envoy sends the new process no requests after {_JOIN_TIMEOUT_S:g} s; "
            "see `tidegate mesh status`"
        ) from None
    raise RestartError("the new process ended before Envoy sent it requests")


async def _ended(process: ServerProcess) -> None:
    await process.until(lambda: False)
