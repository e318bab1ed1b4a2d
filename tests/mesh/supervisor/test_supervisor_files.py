"""Rotated logs, the state file, and the command files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from tidegate.cli.servers.display import duration_text, mesh_lines, server_table
from tidegate.mesh.supervisor.errors import NotRunningError, SupervisorError
from tidegate.mesh.supervisor.process.server_log import ServerLog
from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.state.command_files import COMMAND_SIGNAL, send_restart, take_commands
from tidegate.mesh.supervisor.state.directory import StateDirectory
from tidegate.mesh.supervisor.state.prometheus_files import PrometheusFiles
from tidegate.mesh.supervisor.state.snapshot import (
    IngressSnapshot,
    RestartSnapshot,
    RestartStage,
    ServerSnapshot,
    Snapshot,
    last_log_message,
)


def snapshot_of(**changes: object) -> Snapshot:
    server = {
        "name": "llm",
        "kind": "llm",
        "phase": Phase.SERVING,
        "since": 1.0,
        "serving_since": 1.0,
        "restarts": 0,
        "reason": "",
        "pid": 7,
        "grpc_address": "127.0.0.1:1",
        "metrics_address": "127.0.0.1:2",
        "log": "x.log",
        "last_lines": ("a", "b"),
    }
    return Snapshot(
        pid=1,
        started_at=2.0,
        config="c.yaml",
        drain_deadline_s=3.0,
        servers=(ServerSnapshot(**(server | changes)),),
    )


def test_log_rotates_between_lines_and_keeps_a_few(tmp_path):
    writes = (b"first line is long\n", b"second line, in", b" two\n", b"third line!!\n", b"4\n")
    with ServerLog(tmp_path / "a.log", max_bytes=10, backups=2) as log:
        for write in writes:
            log.write(write)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.log": "4\n",
        "a.log.1": "third line!!\n",
        "a.log.2": "second line, in two\n",
    }


def test_log_keeps_its_last_lines_in_memory(tmp_path):
    with ServerLog(tmp_path / "a.log") as log:
        log.write(b"1\n2\n\n3\n4\n5\n6\npar")
        assert log.last_lines() == ("3", "4", "5", "6", "par")


def test_log_appends_to_an_existing_file(tmp_path):
    for text in (b"one\n", b"two\n"):
        with ServerLog(tmp_path / "a.log") as log:
            log.write(text)
    assert (tmp_path / "a.log").read_bytes() == b"one\ntwo\n"


def test_state_is_read_as_it_was_written(tmp_path):
    directory = StateDirectory(tmp_path / "state")
    assert directory.read() is None
    assert directory.running() is None
    with directory.lock():
        directory.write(snapshot_of())
        assert directory.running() == snapshot_of()
        assert directory.held()
    assert directory.read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 4, "pid": 1}'])
def test_error_about_an_unusable_state_file_names_it(tmp_path, text):
    directory = StateDirectory(tmp_path)
    directory.state_file.write_text(text)
    with pytest.raises(SupervisorError, match=r"state.json cannot be used: .*delete it"):
        directory.read()


def test_address_is_of_a_server_that_runs():
    assert snapshot_of().address_of("llm") == "127.0.0.1:1"
    assert snapshot_of().address_of("vision") is None
    assert snapshot_of(phase=Phase.FAILED).address_of("llm") is None


def test_address_behind_envoy_is_envoys():
    ingress = IngressSnapshot(name="llm", address="127.0.0.1:8600", listening=False)
    snapshot = replace(snapshot_of(), ingress=(ingress,))
    assert snapshot.address_of("llm") == "127.0.0.1:8600"


def test_state_of_a_mesh_is_read_as_it_was_written():
    snapshot = replace(
        snapshot_of(routed=False),
        ingress=(IngressSnapshot(name="llm", address="127.0.0.1:8600", listening=True),),
        traces_address="127.0.0.1:16686",
        restarts=(RestartSnapshot(command="x", name="llm", stage=RestartStage.JOINING),),
        warnings=("rollouts are off",),
    )
    assert Snapshot.from_json(snapshot.to_json()) == snapshot


def test_mesh_lines_name_the_addresses_and_the_servers_without_requests():
    snapshot = replace(
        snapshot_of(routed=False, since=100.0),
        ingress=(
            IngressSnapshot(name="vision", address="127.0.0.1:8500", listening=True),
            IngressSnapshot(name="llm", address="127.0.0.1:8600", listening=False),
        ),
        traces_address="127.0.0.1:16686",
    )
    places = "call vision 127.0.0.1:8500, llm 127.0.0.1:8600 (not listening yet)"
    assert mesh_lines(snapshot, 101.0) == (places, "traces http://127.0.0.1:16686")
    elsewhere = replace(snapshot, collector="http://127.0.0.1:4317")
    assert mesh_lines(elsewhere, 101.0)[1] == "spans go to http://127.0.0.1:4317"
    off = replace(snapshot, collector="none")
    assert mesh_lines(off, 101.0)[1] == "no traces: OpenTelemetry's variables turn them off"
    *_, warning = mesh_lines(snapshot, 120.0)
    assert warning.startswith("llm serves but Envoy sends it nothing")
    assert mesh_lines(snapshot_of(), 120.0) == ()


def test_table_has_a_column_for_http_only_if_a_server_has_an_http_address():
    def table_of(**changes: object) -> str:
        console = Console(width=200)
        with console.capture() as captured:
            console.print(server_table(snapshot_of(**changes), 2.0))
        return captured.get()

    assert table_of().split()[:6] == ["SERVER", "STATE", "FOR", "PID", "GRPC", "METRICS"]
    with_http = table_of(grpc_address=None, http_address="127.0.0.1:3")
    assert with_http.split()[:7] == ["SERVER", "STATE", "FOR", "PID", "GRPC", "HTTP", "METRICS"]
    assert with_http.splitlines()[1].split()[-3:] == ["-", "127.0.0.1:3", "127.0.0.1:2"]
    assert snapshot_of(grpc_address=None, http_address="127.0.0.1:3").address_of("llm") == (
        "127.0.0.1:3"
    )


def test_files_of_a_dead_supervisor_are_deleted(tmp_path):
    directory = StateDirectory(tmp_path)
    with directory.lock():
        directory.workload_file("llm").write_text("address: gone")
        (directory.commands / "old.json").write_text("{}")
    with directory.lock():
        assert list(directory.workloads.iterdir()) == []
        assert list(directory.commands.iterdir()) == []


def test_a_command_is_taken_once_and_other_files_are_dropped(tmp_path):
    directory = StateDirectory(tmp_path)
    came = []
    before = signal.signal(COMMAND_SIGNAL, lambda number, _: came.append(number))
    try:
        with directory.lock():
            command = send_restart(directory, os.getpid(), "llm")
            (directory.commands / "x.json").write_text('{"no": "command"}')
            assert take_commands(directory) == (command,)
            assert take_commands(directory) == ()
    finally:
        signal.signal(COMMAND_SIGNAL, before)
    assert came == [COMMAND_SIGNAL]


def test_a_command_to_a_dead_supervisor_is_an_error_and_leaves_no_file(tmp_path):
    directory = StateDirectory(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with directory.lock():
        with pytest.raises(NotRunningError):
            send_restart(directory, gone.pid, "llm")
        assert list(directory.commands.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plain", "plain"),
        (
            '{"event": "cannot start", "error": "no models", "level": "error"}',
            "cannot start: no models",
        ),
        ("[1]", "[1]"),
        ('{"level": "error"}', '{"level": "error"}'),
    ],
)
def test_last_log_message_is_readable(line, words):
    assert last_log_message(snapshot_of(last_lines=("x", line)).servers[0]) == words


def test_durations_have_two_units():
    texts = [duration_text(seconds) for seconds in (-1, 59.9, 61, 3_700, 90_000)]
    assert texts == ["0s", "59s", "1m 1s", "1h 1m", "1d 1h"]


def targets_in(directory):
    return json.loads(directory.prometheus_targets.read_text())


def test_targets_of_prometheus_follow_the_processes(tmp_path):
    directory = StateDirectory(tmp_path)
    labels = {"llm": {"app": "llm", "version": "v1", "my-label.x": "y"}}
    files = PrometheusFiles(directory, labels)
    files.write_targets(snapshot_of(metrics_address=None))
    assert targets_in(directory) == []
    files.write_targets(snapshot_of())
    (target,) = targets_in(directory)
    assert target == {
        "targets": ["127.0.0.1:2"],
        "labels": {
            "app": "llm",
            "version": "v1",
            "my_label_x": "y",
            "job": "llm",
            "server": "llm",
        },
    }
    files.write_targets(snapshot_of(name="envoy", kind="envoy", metrics_address="127.0.0.1:3"))
    (target,) = targets_in(directory)
    assert target["labels"]["__metrics_path__"] == "/stats/prometheus"
    files.write_targets(snapshot_of(phase=Phase.FAILED))
    assert targets_in(directory) == []


def test_promtool_accepts_the_configuration_of_prometheus(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool; `apt-get install prometheus` brings it")
    directory = StateDirectory(tmp_path)
    files = PrometheusFiles(directory, {})
    files.write_configuration()
    files.write_targets(snapshot_of())
    command = [promtool, "check", "config", str(directory.prometheus)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"prometheus --config.file={directory.prometheus}" in directory.prometheus.read_text()
