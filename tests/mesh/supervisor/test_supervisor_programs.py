"""The programs of the servers, the controller and Envoy, and the WorkloadEntry files."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tidegate.cli.servers.display import mesh_lines
from tidegate.mesh.supervisor.config.servers_file import ServersFile
from tidegate.mesh.supervisor.errors import CollectorError
from tidegate.mesh.supervisor.process import parent_death_guard
from tidegate.mesh.supervisor.programs import (
    Program,
    controller_program,
    envoy_program,
    router_missing,
    router_program,
    server_program,
)
from tidegate.mesh.supervisor.span_export import check_collector
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.supervisor import Supervisor
from tidegate.mesh.supervisor.workloads import EnvoyRouting, WorkloadEntryFile
from tidegate.router.settings import RouterSettings

MESH = {
    "objects": ["mesh/istio/base/traffic", "more.yaml"],
    "ingress": {"vision": 8500},
    "controller": {"grpc_port": 1},
}


def file_of(**server: object) -> ServersFile:
    server = {"kind": "vision", "labels": {"app": "vision"}, **server}
    return ServersFile.model_validate({"servers": {"a": server}, "mesh": MESH})


def server_of(config: ServersFile, directory: StateDirectory, **environment: str) -> Program:
    return server_program("a", "a.2", config.servers["a"], directory, config.mesh, environment)


def test_a_server_in_the_mesh_has_a_drain_delay_and_sends_its_spans_to_the_controller(tmp_path):
    program = server_of(file_of(), StateDirectory(tmp_path))
    assert program.env == {
        "TIDEGATE_DRAIN_DELAY_S": "2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }
    assert program.workload == WorkloadEntryFile(
        name="a.2",
        namespace="models",
        labels={"app": "vision"},
        port_name="grpc",
        file=tmp_path / "workloads" / "a.2.yaml",
    )


@pytest.mark.parametrize(
    "name",
    [
        "TIDEGATE_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ],
)
def test_the_users_own_collector_is_kept(tmp_path, name):
    directory = StateDirectory(tmp_path)
    url = "http://jaeger:4317"
    config = file_of()
    assert "http://127.0.0.1:1" not in server_of(config, directory, **{name: url}).env.values()
    assert server_of(file_of(env={name: url}), directory).env[name] == url
    assert f"--traces={url}" in envoy_program(config.mesh, directory, {name: url}).command


@pytest.mark.parametrize(
    ("environment", "traces"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, "none"),
        ({"OTEL_SDK_DISABLED": "true"}, "none"),
        ({"TIDEGATE_TRACES_EXPORTER": "none"}, "none"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "jaeger:4317"}, "https://jaeger:4317"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "jaeger:4317",
                "OTEL_EXPORTER_OTLP_INSECURE": "true",
            },
            "http://jaeger:4317",
        ),
        # Envoy cannot speak OTLP over HTTP: its spans go to the controller.
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            "http://127.0.0.1:1",
        ),
    ],
    ids=str,
)
def test_envoy_follows_the_variables_as_the_servers_do(tmp_path, environment, traces):
    program = envoy_program(file_of().mesh, StateDirectory(tmp_path), environment)
    assert f"--traces={traces}" in program.command


def test_the_router_sends_its_spans_where_the_servers_do(tmp_path):
    directory = StateDirectory(tmp_path)
    program = router_program(file_of().mesh, directory, {})
    assert program.env == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }
    users = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://jaeger:4317"}
    assert router_program(file_of().mesh, directory, users).env == {}


@pytest.mark.parametrize("url", ["jaeger", "ftp://jaeger:4317", "http://", "http://jaeger:port"])
def test_a_malformed_collector_is_refused_before_anything_starts(url):
    environment = {"TIDEGATE_OTLP_ENDPOINT": url if "://" in url else f"x://{url}"}
    with pytest.raises(CollectorError) as raised:
        check_collector(environment)
    assert " is no OTLP collector that Envoy can send spans to; " in str(raised.value)
    assert "set --otlp-endpoint, TIDEGATE_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT" in str(
        raised.value
    )


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "jaeger:4317"},
        {"TIDEGATE_OTLP_ENDPOINT": "http://[::1]:4317"},
    ],
    ids=str,
)
def test_a_well_formed_collector_is_accepted(environment):
    check_collector(environment)


def test_spans_go_to_the_controller_over_grpc_whatever_the_users_protocol(tmp_path):
    program = server_of(
        file_of(), StateDirectory(tmp_path), OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf"
    )
    assert program.env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:1"
    assert program.env["TIDEGATE_OTLP_PROTOCOL"] == "grpc"


def test_the_users_drain_delay_wins(tmp_path):
    config = file_of(env={"TIDEGATE_DRAIN_DELAY_S": "0"})
    assert server_of(config, StateDirectory(tmp_path)).env["TIDEGATE_DRAIN_DELAY_S"] == "0"


def test_a_server_without_labels_is_not_in_the_mesh(tmp_path):
    program = server_of(file_of(labels={}), StateDirectory(tmp_path))
    assert program.workload is None
    assert "TIDEGATE_DRAIN_DELAY_S" not in program.env


def test_without_a_mesh_nothing_is_added(tmp_path):
    config = ServersFile.model_validate({"servers": {"a": {"kind": "vision"}}})
    program = server_of(config, StateDirectory(tmp_path))
    assert (program.env, program.workload) == ({}, None)


def test_servers_behind_the_mesh_have_a_lower_priority_than_envoy_and_the_controller(tmp_path):
    directory, mesh = StateDirectory(tmp_path), file_of().mesh
    assert server_of(file_of(), directory).nice == 10
    assert envoy_program(mesh, directory, {}).nice == 0
    assert controller_program(mesh, directory).nice == 0
    alone = ServersFile.model_validate({"servers": {"a": {"kind": "vision"}}})
    assert server_of(alone, directory).nice == 0


@pytest.mark.parametrize("nice", [0, 7])
def test_a_program_runs_with_its_niceness(nice):
    command = [sys.executable, "-c", "import os; print('nice', os.nice(0))"]
    # The guard runs the program while its input is open.
    with subprocess.Popen(
        [sys.executable, parent_death_guard.__file__, "5", str(nice), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as watched:
        assert watched.stderr.read() == f"nice {min(19, os.nice(0) + nice)}\n"
        assert watched.wait(30) == 0


def test_the_controller_knows_its_flags(tmp_path):
    settings = pytest.importorskip("tidegate.mesh.control.settings").ControlSettings
    directory = StateDirectory(tmp_path)
    program = controller_program(file_of().mesh, directory)
    read = settings.from_command_line(program.command[3:])
    assert read.grpc_port == 1
    assert read.objects == [Path("mesh/istio/base/traffic"), Path("more.yaml"), directory.workloads]
    assert read.port_file == program.port_file
    assert (read.user_headers, read.user_cookies) == (["x-user-id", "x-user-tier"], [])
    envoy = envoy_program(file_of().mesh, directory, {})
    assert read.envoy_admin_files == [envoy.port_file]


def test_envoy_gets_the_address_of_the_controller(tmp_path):
    program = envoy_program(file_of().mesh, StateDirectory(tmp_path), {})
    assert "--controller=127.0.0.1:1" in program.command
    assert "--traces=http://127.0.0.1:1" in program.command


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("127.0.0.1:41", "127.0.0.1", 41), ("[::1]:42", "::1", 42)],
)
def test_a_workload_entry_file_exists_while_the_process_is_in_the_mesh(
    tmp_path, address, host, port
):
    file = tmp_path / "deep" / "a.yaml"
    labels = {"app": "vision"}
    workload = WorkloadEntryFile(
        name="a", namespace="models", labels=labels, port_name="grpc", file=file
    )
    workload.write(address)
    assert yaml.safe_load(file.read_text()) == {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "a", "namespace": "models"},
        "spec": {"address": host, "ports": {"grpc": port}, "labels": {"app": "vision"}},
    }
    workload.remove()
    assert list(file.parent.iterdir()) == []
    workload.remove()


async def test_an_unreachable_envoy_routes_nothing(tmp_path):
    file = tmp_path / "admin"
    assert await EnvoyRouting(file).clusters_of("127.0.0.1:1") == frozenset()
    file.write_text("127.0.0.1:1")
    assert await EnvoyRouting(file).clusters_of("127.0.0.1:1") == frozenset()


def test_the_router_knows_its_flags(tmp_path):
    directory = StateDirectory(tmp_path / "state")
    program = router_program(file_of().mesh, directory, {})
    settings = RouterSettings.from_command_line(program.command[3:])
    assert settings.controller == "127.0.0.1:1"
    assert settings.rollouts == [Path("mesh/rollouts")]
    assert settings.store_file == directory.rollouts
    assert settings.port_file == program.port_file
    assert (settings.grpc_port, settings.metrics_port) == (15030, 15034)
    assert program.nice == 0


async def test_without_its_packages_the_router_is_left_out_with_the_line_to_install_them(
    tmp_path, monkeypatch
):
    assert router_missing() == ""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    supervisor = Supervisor(file_of(), Path("x.yaml"), StateDirectory(tmp_path))
    snapshot = supervisor.snapshot()
    assert [each.name for each in snapshot.servers] == ["controller", "envoy", "a"]
    (warning,) = snapshot.warnings
    assert warning == (
        "rollouts are off: msgspec and numpy are not installed: pip install 'tidegate[router]'"
    )
    assert warning in mesh_lines(snapshot, snapshot.started_at)
