"""Runs the servers of a file together, and keeps the state file true.

supervisor = Supervisor(load_config(path), path, StateDirectory())
gave_up = await supervisor.run()
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tidegate.mesh.supervisor.config import ServersFile
from tidegate.mesh.supervisor.machine import Phase
from tidegate.mesh.supervisor.ports import check_ports
from tidegate.mesh.supervisor.process import ServerProcess
from tidegate.mesh.supervisor.state import Snapshot, StateDirectory

__all__ = ["Supervisor"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """All servers of a file.

    Args:
        config: the servers.
        path: the file that they come from, to be shown.
        directory: where state and logs go.
        on_change: called with the state after each change of it.
    """

    def __init__(
        self,
        config: ServersFile,
        path: Path,
        directory: StateDirectory,
        on_change: Callable[[Snapshot], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._path = path
        self._directory = directory
        self._on_change = on_change
        self._started_at = time.time()
        self._stopping = False
        self._gave_up: set[str] = set()
        self._processes = tuple(
            ServerProcess(name, server, directory, self._changed)
            for name, server in config.servers.items()
        )

    async def run(self) -> frozenset[str]:
        """Runs until a signal, :meth:`stop`, or the failure of every server.

        Returns:
            The names of the servers that were given up.

        Raises:
            AlreadyRunningError: another supervisor has the directory.
            PortInUseError: a port is taken; nothing was started.
        """
        loop = asyncio.get_running_loop()
        with self._directory.lock():
            check_ports(self._config)
            for number in _SIGNALS:
                loop.add_signal_handler(number, self.stop)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for process in self._processes:
                        tasks.create_task(process.run())
            finally:
                for number in _SIGNALS:
                    loop.remove_signal_handler(number)
        return frozenset(self._gave_up)

    def stop(self) -> None:
        """Asks all servers to stop, at once; asked again, kills them."""
        for process in self._processes:
            if self._stopping:
                process.kill()
            else:
                process.stop()
        self._stopping = True

    def snapshot(self) -> Snapshot:
        """How everything is."""
        return Snapshot(
            pid=os.getpid(),
            started_at=self._started_at,
            config=str(self._path),
            drain_deadline_s=max(
                server.drain_deadline_s for server in self._config.servers.values()
            ),
            servers=tuple(process.snapshot() for process in self._processes),
        )

    def _changed(self) -> None:
        self._gave_up |= {
            process.name for process in self._processes if process.state.phase is Phase.FAILED
        }
        snapshot = self.snapshot()
        self._directory.write(snapshot)
        self._on_change(snapshot)
        if not self._stopping and len(self._gave_up) == len(self._processes):
            self.stop()
