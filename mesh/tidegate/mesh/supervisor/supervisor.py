"""Runs the servers of a file together, and keeps the state file true.

    supervisor = Supervisor(load_config(path), path, StateDirectory())
    gave_up = await supervisor.run()

With a mesh, the controller and Envoy start beside the servers, each waiting for what it needs, and
stop after them: what the servers still answer must find its way back.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tidegate.mesh.envoy import check_packages
from tidegate.mesh.supervisor.config import CONTROLLER_NAME, ENVOY_NAME, ServerConfig, ServersFile
from tidegate.mesh.supervisor.machine import Phase
from tidegate.mesh.supervisor.mesh_config import MeshConfig
from tidegate.mesh.supervisor.orders import ORDER_SIGNAL, take_orders
from tidegate.mesh.supervisor.ports import check_ports
from tidegate.mesh.supervisor.process import ServerProcess
from tidegate.mesh.supervisor.programs import (
    Program,
    controller_program,
    envoy_program,
    server_program,
)
from tidegate.mesh.supervisor.server import Server
from tidegate.mesh.supervisor.state import (
    IngressSnapshot,
    RestartSnapshot,
    RestartStage,
    Snapshot,
    StateDirectory,
)
from tidegate.mesh.supervisor.workloads import Routing

__all__ = ["Supervisor"]

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEPT_RESTARTS = 16


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
        self._restarts: dict[str, RestartSnapshot] = {}
        self._routing = Routing(directory.port_file(ENVOY_NAME))
        self._servers = tuple(self._server(*each) for each in config.servers.items())
        self._mesh = () if config.mesh is None else self._mesh_servers(config.mesh)

    async def run(self) -> frozenset[str]:
        """Runs until a signal, :meth:`stop`, or the failure of every server.

        Returns:
            The names of the servers that were given up.

        Raises:
            AlreadyRunningError: another supervisor has the directory.
            EnvoyError: packages overwrite each other; nothing was started.
            PortInUseError: a port is taken; nothing was started.
        """
        loop = asyncio.get_running_loop()
        with self._directory.lock():
            check_packages()
            check_ports(self._config)
            for number in _STOP_SIGNALS:
                loop.add_signal_handler(number, self.stop)
            loop.add_signal_handler(ORDER_SIGNAL, self._follow_orders)
            try:
                async with asyncio.TaskGroup() as mesh:
                    for each in self._mesh:
                        mesh.create_task(each.run())
                    async with asyncio.TaskGroup() as servers:
                        for each in self._servers:
                            servers.create_task(each.run())
                    for each in self._mesh:
                        each.stop()
            finally:
                for number in (*_STOP_SIGNALS, ORDER_SIGNAL):
                    loop.remove_signal_handler(number)
        return frozenset(self._gave_up)

    def stop(self) -> None:
        """Asks all servers to stop, at once; asked again, kills everything."""
        if self._stopping:
            for server in (*self._servers, *self._mesh):
                server.kill()
        else:
            for server in self._servers:
                server.stop()
        self._stopping = True

    def snapshot(self) -> Snapshot:
        """How everything is."""
        mesh = self._config.mesh
        return Snapshot(
            pid=os.getpid(),
            started_at=self._started_at,
            config=str(self._path),
            drain_deadline_s=sum(
                max((each.drain_deadline_s for each in part), default=0.0)
                for part in (self._servers, self._mesh)
            ),
            servers=tuple(process.snapshot() for process in self._processes()),
            ingress=() if mesh is None else self._ingress(mesh),
            traces_address=None if mesh is None else f"127.0.0.1:{mesh.controller.traces_port}",
            restarts=tuple(self._restarts.values()),
        )

    def _server(self, name: str, config: ServerConfig) -> Server:
        def make(instance: str) -> ServerProcess:
            return self._process(
                server_program(
                    name, instance, config, self._directory, self._config.mesh, os.environ
                )
            )

        routing = self._routing if config.labels else None
        return Server(name, make, routing, self._note_restart)

    def _mesh_servers(self, mesh: MeshConfig) -> tuple[Server, ...]:
        def make(instance: str) -> ServerProcess:
            if instance == ENVOY_NAME:
                return self._process(envoy_program(mesh, self._directory, os.environ))
            return self._process(controller_program(mesh, self._directory))

        return tuple(
            Server(name, make, None, self._note_restart) for name in (CONTROLLER_NAME, ENVOY_NAME)
        )

    def _process(self, program: Program) -> ServerProcess:
        return ServerProcess(program, self._directory, self._routing, self._changed)

    def _processes(self) -> Iterator[ServerProcess]:
        for server in (*self._mesh, *self._servers):
            yield from server.processes

    def _ingress(self, mesh: MeshConfig) -> tuple[IngressSnapshot, ...]:
        envoy = next(each for each in self._mesh if each.name == ENVOY_NAME)
        listeners = envoy.processes[0].listening.listeners
        return tuple(
            IngressSnapshot(
                name=name,
                address=listeners.get(port, f"127.0.0.1:{port}"),
                listening=port in listeners,
            )
            for name, port in mesh.ingress.items()
        )

    def _follow_orders(self) -> None:
        servers = {server.name: server for server in (*self._servers, *self._mesh)}
        for order in take_orders(self._directory):
            if order.name in servers:
                servers[order.name].restart(order)
            else:
                failed = RestartSnapshot(
                    order=order.id,
                    name=order.name,
                    stage=RestartStage.FAILED,
                    reason=f"there is no such server; there are {', '.join(servers)}",
                )
                self._note_restart(failed)

    def _note_restart(self, restart: RestartSnapshot) -> None:
        self._restarts[restart.order] = restart
        while len(self._restarts) > _KEPT_RESTARTS:
            del self._restarts[next(iter(self._restarts))]
        self._changed()

    def _changed(self) -> None:
        for server in self._servers:
            if server.state.phase is Phase.FAILED:
                self._gave_up.add(server.name)
            elif server.state.phase is Phase.SERVING:
                self._gave_up.discard(server.name)
        snapshot = self.snapshot()
        self._directory.write(snapshot)
        self._on_change(snapshot)
        if not self._stopping and len(self._gave_up) == len(self._servers):
            self.stop()
