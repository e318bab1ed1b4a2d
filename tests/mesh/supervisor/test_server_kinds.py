"""Server kinds that other packages register: a server with an HTTP probe, alone and in a mesh."""

import asyncio
import contextlib
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tidegate.mesh.supervisor.config.server_kinds import (
    KINDS,
    GrpcHealth,
    HttpReadiness,
    Port,
    ServerKind,
)
from tidegate.mesh.supervisor.config.servers_file import ServersFile, load_config
from tidegate.mesh.supervisor.errors import ConfigError
from tidegate.mesh.supervisor.process import probes
from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.programs import server_program
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from tidegate.mesh.supervisor.state.snapshot import Snapshot

HTTP_SERVER = Path(__file__).parents[2] / "doubles" / "http_server.py"
MESH = {"objects": ["objects.yaml"], "ingress": {"web": 8000}}


@pytest.fixture
def web(monkeypatch) -> ServerKind:
    """A registered kind: an HTTP server that is ready when GET /readyz says so."""
    kind = ServerKind(
        name="web",
        command=(sys.executable, str(HTTP_SERVER)),
        ports=(Port.HTTP, Port.METRICS),
        probe=HttpReadiness("/readyz"),
        labels={"app": "web"},
    )
    monkeypatch.setitem(KINDS, kind.name, kind)
    return kind


def get(address: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return response.read()


async def test_supervisor_runs_and_probes_a_registered_http_server(tmp_path, web):
    directory = StateDirectory(tmp_path / ".tidegate")
    config = ServersFile.model_validate({"servers": {"one": {"kind": "web"}}})
    changes: asyncio.Queue[Snapshot] = asyncio.Queue()
    supervisor = Supervisor(config, Path("x.yaml"), directory, changes.put_nowait)

    async def until(phase: Phase):
        while True:
            (server,) = (await changes.get()).servers
            if server.phase is phase:
                return server

    async with asyncio.timeout(60):
        run = asyncio.create_task(supervisor.run())
        # The server answers 503 until it has been told that it may be ready.
        while (server := (await changes.get()).servers[0]).http_address is None:
            pass
        assert server.phase is Phase.STARTING
        assert directory.running().address_of("web") == server.http_address
        await asyncio.to_thread(get, server.http_address, "/become-ready")
        serving = await until(Phase.SERVING)
        assert serving.http_address == server.http_address
        assert serving.grpc_address is None
        assert serving.metrics_address is not None
        await asyncio.to_thread(get, server.http_address, "/become-unready")
        await until(Phase.UNHEALTHY)
        supervisor.stop()
        assert await run == frozenset()


def test_registered_kind_gets_flags_for_its_own_ports(tmp_path, web):
    config = ServersFile.model_validate({"servers": {"one": {"kind": "web", "http_port": 8080}}})
    assert config.servers["one"].arguments(Path("p.json")) == [
        *(sys.executable, str(HTTP_SERVER)),
        *("--http-port=8080", "--metrics-port=0", "--port-file=p.json"),
    ]
    places = [place for place, _, _ in config.ports()]
    assert places == ["servers.one.http_port", "servers.one.metrics_port"]


def test_registered_kind_brings_its_labels_and_port_to_the_mesh(tmp_path, web):
    def workload(**server: object):
        config = ServersFile.model_validate({"servers": {"one": server}, "mesh": MESH})
        directory = StateDirectory(tmp_path)
        return server_program(
            "one", "one", config.servers["one"], directory, config.mesh, {}
        ).workload

    assert workload(kind="web").labels == {"app": "web"}
    assert workload(kind="web").port_name == "http"
    assert workload(kind="web").readiness == "/readyz"
    assert workload(kind="vision", labels={"app": "a"}).readiness == ""
    assert workload(kind="web", labels={"app": "a"}).labels == {"app": "a"}
    assert workload(kind="web", labels={}) is None
    assert workload(kind="vision") is None


def test_ports_of_a_kind_are_checked_by_name(tmp_path, web):
    path = tmp_path / "tidegate.yaml"
    for server, message in (
        ({"kind": "web", "grpc_port": 1}, "kind 'web' has no 'grpc_port'; it has 'http_port'"),
        ({"kind": "web", "settings": {"http_port": 1}}, "'http_port' is set by the supervisor"),
        ({"kind": "web", "command": ["x"]}, "kind 'web' has its own command; remove 'command'"),
        (
            {"kind": "wed"},
            r"did you mean 'web'\? registered kinds: vision, llm, gateway, program, web",
        ),
    ):
        path.write_text(json.dumps({"servers": {"one": server}}))
        with pytest.raises(ConfigError, match=message):
            load_config(path)


def test_fixed_port_with_the_labels_of_a_kind_is_rejected_behind_the_mesh(tmp_path, web):
    path = tmp_path / "tidegate.yaml"
    server = {"kind": "web", "http_port": 8080}
    path.write_text(json.dumps({"servers": {"one": server}, "mesh": MESH}))
    with pytest.raises(ConfigError, match=r"with the labels of kind 'web' .* remove 'http_port'"):
        load_config(path)
    path.write_text(json.dumps({"servers": {"one": server | {"labels": {}}}, "mesh": MESH}))
    assert load_config(path).servers["one"].mesh_labels == {}


async def test_a_server_that_sends_its_answer_too_slowly_is_not_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "_TIMEOUT_S", 0.3)

    ended = asyncio.Event()

    async def drip(reader, writer):
        with contextlib.suppress(OSError), contextlib.closing(writer):
            for _ in range(30):
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.1)
        ended.set()

    async with asyncio.timeout(20), await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port_file = tmp_path / "ports.json"
        port_file.write_text(json.dumps({"http": server.sockets[0].getsockname()[1]}))
        probe = probes.HttpProbe(port_file, "127.0.0.1", "/readyz", (Port.HTTP,))
        async with contextlib.aclosing(probe.results()) as results:
            await anext(results)
            began = time.monotonic()
            assert not (await anext(results)).ready
            await ended.wait()
            # All bytes would take 3 s, each of them less than the timeout.
            assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("probe", "ports", "message"),
    [
        (HttpReadiness(), (Port.GRPC,), "kind 'x' has no port 'http', .* HttpReadiness needs"),
        (GrpcHealth(), (Port.HTTP,), "kind 'x' has no port 'grpc', .* GrpcHealth needs"),
    ],
)
def test_a_kind_without_the_port_of_its_probe_is_rejected(probe, ports, message):
    with pytest.raises(ValueError, match=message):
        ServerKind(name="x", command=None, ports=ports, probe=probe)


def test_builtin_kinds_have_the_probe_of_their_protocol():
    probes_of = {kind.name: kind.probe for kind in KINDS.values()}
    assert probes_of.pop("gateway") == HttpReadiness("/readyz")
    assert set(probes_of.values()) == {GrpcHealth()}
