"""The supervisor with a mesh: a real controller, a real Envoy, and a test double of a server."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from prometheus_server import prometheus_with

from tidegate.client import AsyncClient, HealthStatus
from tidegate.mesh.supervisor.config.servers_file import ServersFile
from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.state.command_files import send_restart
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.snapshot import RestartStage, Snapshot
from tidegate.mesh.supervisor.supervisor import Supervisor

CHILD = Path(__file__).parents[2] / "doubles" / "child_server.py"


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def istio_object(kind: str, **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": kind,
        "metadata": {"name": "one", "namespace": "models"},
        "spec": spec,
    }


class Mesh:
    """A supervisor in this process, with its server behind Envoy."""

    def __init__(self, tmp_path: Path, **settings: object) -> None:
        self.directory = StateDirectory(tmp_path / ".tidegate")
        ingress, grpc_port, metrics_port, traces_port = free_ports(4)
        port = {"number": ingress, "name": "grpc", "protocol": "GRPC"}
        objects = [
            istio_object(
                "ServiceEntry",
                hosts=["one.models.svc.cluster.local"],
                location="MESH_INTERNAL",
                resolution="STATIC",
                ports=[port],
                workloadSelector={"labels": {"app": "one"}},
            ),
            istio_object("Gateway", servers=[{"port": port, "hosts": ["*"]}]),
            istio_object(
                "VirtualService",
                hosts=["*"],
                gateways=["one"],
                http=[{"route": [{"destination": {"host": "one"}}]}],
            ),
        ]
        (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects))
        ports = {
            "grpc_port": grpc_port,
            "metrics_port": metrics_port,
            "traces_port": traces_port,
        }
        config = {
            "mesh": {
                "objects": [str(tmp_path / "objects.yaml")],
                "ingress": {"one": ingress},
                "controller": ports,
                "envoy": {"admin_port": 0, "concurrency": 1},
                "router": {"grpc_port": 0, "metrics_port": 0},
            },
            "servers": {
                "one": {
                    "kind": "program",
                    "command": [sys.executable, str(CHILD)],
                    "labels": {"app": "one"},
                    "settings": settings,
                    "initial_backoff_s": 0.05,
                }
            },
        }
        self.changes: asyncio.Queue[Snapshot] = asyncio.Queue()
        self.supervisor = Supervisor(
            ServersFile.model_validate(config),
            Path("x.yaml"),
            self.directory,
            self.changes.put_nowait,
        )

    async def until(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        while True:
            snapshot = await self.changes.get()
            if condition(snapshot):
                return snapshot

    async def ready(self) -> Snapshot:
        """Waits until everything serves and Envoy sends the server requests."""
        return await self.until(
            lambda snapshot: (
                not snapshot.unrouted
                and all(server.phase is Phase.SERVING for server in snapshot.servers)
            )
        )

    async def restart(self, name: str) -> tuple[Snapshot, list[RestartStage]]:
        command = send_restart(self.directory, os.getpid(), name)
        stages: list[RestartStage] = []

        def over(snapshot: Snapshot) -> bool:
            restart = snapshot.restart(command.id)
            if restart is not None and restart.stage not in stages:
                stages.append(restart.stage)
            return restart is not None and restart.stage.over

        return await self.until(over), stages

    @contextlib.asynccontextmanager
    async def run(self):
        async with asyncio.timeout(100):
            task = asyncio.create_task(self.supervisor.run())
            try:
                yield
                self.supervisor.stop()
                await task
            finally:
                self.supervisor.stop()
                self.supervisor.stop()
                await asyncio.gather(task, return_exceptions=True)


def of_the_server(snapshot: Snapshot):
    (server,) = (each for each in snapshot.servers if each.name == "one")
    return server


async def test_clients_reach_the_server_through_envoy_before_and_after_a_restart(tmp_path):
    mesh = Mesh(tmp_path)
    async with mesh.run():
        before = await mesh.ready()
        assert [server.name for server in before.servers] == [
            *("controller", "envoy", "router"),
            "one",
        ]
        address = before.address_of("one")
        assert address != of_the_server(before).grpc_address
        async with AsyncClient(address) as client:
            assert await client.health() is HealthStatus.SERVING
            after, stages = await mesh.restart("one")
            assert await client.health() is HealthStatus.SERVING
        assert stages == [
            RestartStage.STARTING,
            RestartStage.JOINING,
            RestartStage.DRAINING,
            RestartStage.DONE,
        ]
        assert of_the_server(after).pid != of_the_server(before).pid
        assert after.address_of("one") == address
        (workload,) = mesh.directory.workloads.iterdir()
        port = yaml.safe_load(workload.read_text())["spec"]["ports"]["grpc"]
        assert of_the_server(after).grpc_address == f"127.0.0.1:{port}"
    assert list(mesh.directory.workloads.iterdir()) == []


async def test_a_restart_whose_new_process_fails_keeps_the_old_one(tmp_path):
    memory = tmp_path / "memory"
    memory.touch()
    mesh = Mesh(tmp_path, manner="dies-once", memory=str(memory))
    async with mesh.run():
        before = of_the_server(await mesh.ready())
        memory.unlink()
        after, stages = await mesh.restart("one")
        assert stages == [RestartStage.STARTING, RestartStage.FAILED]
        assert "exited with status 3" in after.restarts[0].reason
        assert of_the_server(after).pid == before.pid
        assert of_the_server(after).phase is Phase.SERVING
        assert [file.stem for file in mesh.directory.workloads.iterdir()] == ["one"]


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_prometheus_with_the_written_file_scrapes_everything_also_after_a_restart(tmp_path):
    mesh = Mesh(tmp_path)
    async with mesh.run():
        await mesh.ready()
        async with prometheus_with(mesh.directory.prometheus, tmp_path) as scraper:
            # The server of this test has no metrics.
            await scraper.until('count(up{job=~"controller|envoy|router"} == 1) == 3')
            await scraper.until('up{job="program",server="one",app="one"}')
            (before,) = await scraper.query('up{job="router"}')
            await mesh.restart("router")
            await scraper.until(
                f'up{{job="router",instance!="{before[0]["instance"]}"}} == 1'
                f' unless on (job) up{{instance="{before[0]["instance"]}"}}'
            )


async def test_the_programs_of_the_mesh_can_be_restarted(tmp_path):
    mesh = Mesh(tmp_path)
    async with mesh.run():
        before = {server.name: server.pid for server in (await mesh.ready()).servers}
        for name in ("controller", "envoy", "router"):
            _, stages = await mesh.restart(name)
            assert stages[-1] is RestartStage.DONE
        after = await mesh.ready()
        changed = {server.name for server in after.servers if before[server.name] != server.pid}
        assert changed == {"controller", "envoy", "router"}
        async with AsyncClient(after.address_of("one")) as client:
            assert await client.health() is HealthStatus.SERVING
