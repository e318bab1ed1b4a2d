"""One server of the file, whichever of its processes is it now, and how one follows another.

Behind the mesh a restart loses nothing: the new process is started beside the old one, must serve,
and must be sent requests by Envoy wherever the old one is; only then is the old one asked to stop.
It tells the controller that it is about to go and finishes what it has. Should the new process not
come that far, it goes, and nobody has noticed.

Whatever has a port of its own cannot be there twice; it is stopped and started.
"""

import asyncio
from collections.abc import Callable

from tidegate.mesh.supervisor.errors import RestartError
from tidegate.mesh.supervisor.machine import Phase, State
from tidegate.mesh.supervisor.orders import RestartOrder
from tidegate.mesh.supervisor.process import ServerProcess
from tidegate.mesh.supervisor.state import RestartSnapshot, RestartStage, last_words
from tidegate.mesh.supervisor.workloads import Routing

__all__ = ["Server"]

_STARTED = frozenset({Phase.SERVING, Phase.UNHEALTHY, Phase.BACKING_OFF, Phase.FAILED})
_JOIN_TIMEOUT_S, _JOIN_POLL_S = 60.0, 0.1

_Note = Callable[[RestartStage], None]


class Server:
    """One server.

    Args:
        name: its name.
        make: makes a process of it, given the name of the instance.
        routing: what Envoy says, for a server behind it; ``None`` for what cannot be there twice.
        on_restart: called with each stage of a restart.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[str], ServerProcess],
        routing: Routing | None,
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
    def state(self) -> State:
        """Where its process is in its life."""
        return self._current.state

    @property
    def drain_deadline_s(self) -> float:
        """From being asked to stop to being killed, in seconds."""
        return self._current.policy.drain_deadline_s

    @property
    def processes(self) -> tuple[ServerProcess, ...]:
        """Its process, and during a restart the one beside it."""
        return (self._current,) if self._other is None else (self._current, self._other)

    async def run(self) -> None:
        """Runs the server until it is asked to stop."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._current.run())
        self._tasks = None

    def stop(self) -> None:
        """Asks it to stop."""
        self._stopping = True
        for process in self.processes:
            process.stop()

    def kill(self) -> None:
        """Ends it without waiting."""
        self._stopping = True
        for process in self.processes:
            process.kill()

    def restart(self, order: RestartOrder) -> None:
        """Begins a restart, unless one is under way."""

        def note(stage: RestartStage, reason: str = "") -> None:
            self._on_restart(
                RestartSnapshot(order=order.id, name=self.name, stage=stage, reason=reason)
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
            note(RestartStage.FAILED, "it is being stopped")
        elif self._restarting:
            note(RestartStage.FAILED, "another restart of it is under way")
        else:
            self._restarting = True
            self._tasks.create_task(follow(self._tasks))

    async def _surge(self, tasks: asyncio.TaskGroup, routing: Routing, note: _Note) -> None:
        old = self._current
        second = f"{self.name}.2"
        self._other = new = self._make(self.name if old.instance == second else second)
        life = tasks.create_task(new.run())
        try:
            await _started(new)
            note(RestartStage.JOINING)
            await _joined(new, old, routing)
        except RestartError:
            new.stop()
            await asyncio.wait({life})
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
            raise RestartError("everything was stopped meanwhile")
        self._current = self._make(self.name)
        note(RestartStage.STARTING)
        tasks.create_task(self._current.run())
        await _started(self._current)


async def _started(process: ServerProcess) -> None:
    """Waits until a process serves.

    Raises:
        RestartError: it does not, or it was stopped.
    """
    if not await process.until(lambda: process.state.phase in _STARTED):
        raise RestartError("everything was stopped meanwhile")
    if process.state.phase is not Phase.SERVING:
        seen = process.snapshot()
        words = last_words(seen)
        raise RestartError(
            f"the new process {seen.reason or 'does not serve'}"
            f"{f': {words}' if words else ''} (log: {seen.log})"
        )


async def _joined(new: ServerProcess, old: ServerProcess, routing: Routing) -> None:
    """Waits until Envoy sends a process requests, wherever it sends them to another.

    Raises:
        RestartError: it does not in time, or the process ended.
    """
    addresses = new.listening.grpc or "", old.listening.grpc or ""
    try:
        async with asyncio.timeout(_JOIN_TIMEOUT_S):
            while new.state.phase is Phase.SERVING:
                there, wanted = [await routing.clusters_of(each) for each in addresses]
                if there and there >= wanted:
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
