"""Runs the servers of a file together, and keeps the state file up to date.

    supervisor = Supervisor(load_config(path), path, StateDirectory())
    gave_up = await supervisor.run()

With a mesh, the controller, Envoy and the router start together with the servers, and each waits
for what it needs. They stop after the servers, because the servers' last answers go through Envoy.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tidegate.mesh.envoy import check_packages
from tidegate.mesh.supervisor.config.mesh_section import MeshConfig
from tidegate.mesh.supervisor.config.port_check import check_ports
from tidegate.mesh.supervisor.config.servers_file import (
    CONTROLLER_NAME,
    ENVOY_NAME,
    ROUTER_NAME,
    ServerConfig,
    ServersFile,
)
from tidegate.mesh.supervisor.process.server_process import ServerProcess
from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.programs import (
    Program,
    controller_program,
    envoy_program,
    router_missing,
    router_program,
    server_program,
)
from tidegate.mesh.supervisor.server import SupervisedServer
from tidegate.mesh.supervisor.span_export import users_collector
from tidegate.mesh.supervisor.state.command_files import COMMAND_SIGNAL, take_commands
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.prometheus_files import PrometheusFiles
from tidegate.mesh.supervisor.state.snapshot import (
    IngressSnapshot,
    RestartSnapshot,
    RestartStage,
    Snapshot,
)
from tidegate.mesh.supervisor.workloads import EnvoyRouting

__all__ = ["Supervisor"]

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MAX_RESTARTS = 16


class Supervisor:
    """All servers of a file.

    Args:
        config: The content of the file.
        path: The path of the file, for display.
        directory: The folder for state and logs.
        on_change: Called with the state after each change.
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
        self._routing = EnvoyRouting(directory.port_file(ENVOY_NAME))
        self._prometheus = PrometheusFiles(
            directory, {name: each.mesh_labels for name, each in config.servers.items()}
        )
        self._warnings = _warnings(config)
        self._servers = tuple(self._server(*each) for each in config.servers.items())
        self._mesh = () if config.mesh is None else self._mesh_servers(config.mesh)

    async def run(self) -> frozenset[str]:
        """Runs until a signal, :meth:`stop`, or the failure of every server.

        Returns:
            The names of the servers that the supervisor gave up.

        Raises:
            AlreadyRunningError: Another supervisor holds the directory.
            EnvoyError: Installed packages overwrite each other; nothing was started.
            PortInUseError: A port is taken; nothing was started.
        """
        loop = asyncio.get_running_loop()
        with self._directory.lock():
            check_packages()
            check_ports(self._config)
            self._prometheus.write_configuration()
            for number in _STOP_SIGNALS:
                loop.add_signal_handler(number, self.stop)
            loop.add_signal_handler(COMMAND_SIGNAL, self._take_commands)
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
                for number in (*_STOP_SIGNALS, COMMAND_SIGNAL):
                    loop.remove_signal_handler(number)
        return frozenset(self._gave_up)

    def stop(self) -> None:
        """Asks all servers to stop; a second call kills all processes."""
        if self._stopping:
            for server in (*self._servers, *self._mesh):
                server.kill()
        else:
            for server in self._servers:
                server.stop()
        self._stopping = True

    def snapshot(self) -> Snapshot:
        """The state of everything that it runs."""
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
            collector=users_collector(os.environ),
            restarts=tuple(self._restarts.values()),
            warnings=self._warnings,
        )

    def _server(self, name: str, config: ServerConfig) -> SupervisedServer:
        def make(instance: str) -> ServerProcess:
            return self._process(
                server_program(
                    name, instance, config, self._directory, self._config.mesh, os.environ
                )
            )

        routing = self._routing if config.mesh_labels and self._config.mesh else None
        return SupervisedServer(name, make, routing, self._note_restart)

    def _mesh_servers(self, mesh: MeshConfig) -> tuple[SupervisedServer, ...]:
        def make(instance: str) -> ServerProcess:
            if instance == ENVOY_NAME:
                return self._process(envoy_program(mesh, self._directory, os.environ))
            if instance == ROUTER_NAME:
                return self._process(router_program(mesh, self._directory, os.environ))
            return self._process(controller_program(mesh, self._directory))

        names = [CONTROLLER_NAME, ENVOY_NAME]
        if not self._warnings:
            names.append(ROUTER_NAME)
        return tuple(SupervisedServer(name, make, None, self._note_restart) for name in names)

    def _process(self, program: Program) -> ServerProcess:
        return ServerProcess(program, self._directory, self._routing, self._changed)

    def _processes(self) -> Iterator[ServerProcess]:
        for server in (*self._mesh, *self._servers):
            yield from server.processes

    def _ingress(self, mesh: MeshConfig) -> tuple[IngressSnapshot, ...]:
        envoy = next(each for each in self._mesh if each.name == ENVOY_NAME)
        listeners = envoy.processes[0].addresses.listeners
        return tuple(
            IngressSnapshot(
                name=name,
                address=listeners.get(port, f"127.0.0.1:{port}"),
                listening=port in listeners,
            )
            for name, port in mesh.ingress.items()
        )

    def _take_commands(self) -> None:
        servers = {server.name: server for server in (*self._servers, *self._mesh)}
        for command in take_commands(self._directory):
            if command.name in servers:
                servers[command.name].restart(command)
            else:
                failed = RestartSnapshot(
                    command=command.id,
                    name=command.name,
                    stage=RestartStage.FAILED,
                    reason=f"there is no such server; there are {', '.join(servers)}",
                )
                self._note_restart(failed)

    def _note_restart(self, restart: RestartSnapshot) -> None:
        self._restarts[restart.command] = restart
        while len(self._restarts) > _MAX_RESTARTS:
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
        self._prometheus.write_targets(snapshot)
        self._on_change(snapshot)
        if not self._stopping and len(self._gave_up) == len(self._servers):
            self.stop()


def _warnings(config: ServersFile) -> tuple[str, ...]:
    """What is left out, and how to have it."""
    missing = "" if config.mesh is None else router_missing()
    return (missing,) if missing else ()
