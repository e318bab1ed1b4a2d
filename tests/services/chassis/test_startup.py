"""A server that cannot start names the field, the problem and the fix."""

import os
import socket
import subprocess
import sys

import pytest

from tidegate.chassis import running
from tidegate.runtime.errors import StartupError


@pytest.fixture
def taken_port():
    """A port that another socket listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("field", ["grpc_port", "metrics_port"])
async def test_port_in_use_is_named_with_its_field(echo, make_settings, taken_port, field):
    settings = make_settings(**{field: taken_port})
    with pytest.raises(StartupError, match=rf"{field}: .*:{taken_port}: Address already in use;"):
        async with running(echo.EchoApplication(), settings):
            pass


async def test_two_servers_do_not_share_a_port(serving, echo, make_settings):
    async with serving() as (_, server, _):
        with pytest.raises(StartupError, match="grpc_port"):
            async with running(echo.EchoApplication(), make_settings(grpc_port=server.grpc_port)):
                pass


async def test_port_file_that_cannot_be_written_is_named(echo, make_settings, tmp_path):
    settings = make_settings(port_file=tmp_path / "nowhere" / "ports.json")
    with pytest.raises(StartupError, match=r"port_file: cannot write .*nowhere"):
        async with running(echo.EchoApplication(), settings):
            pass


async def test_failure_to_start_is_one_log_line_and_exit_code_1(run_to_end, taken_port):
    code, lines = await run_to_end(f"--grpc-port={taken_port}", "--metrics-port=0")
    assert code == 1
    assert [line["event"] for line in lines] == ["cannot start"]
    assert "grpc_port" in lines[0]["error"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "-event_engine_listener,-event_engine_client"), ({"GRPC_EXPERIMENTS": ""}, "")],
)
@pytest.mark.parametrize(
    "program",
    [
        "serving.vision",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("serving.llm", "gateway")),
    ],
)
def test_program_turns_the_event_engine_off_before_it_imports_grpc(program, given, expected):
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path, target=None):
        if name == "grpc":
            print("at import:", os.environ.get("GRPC_EXPERIMENTS"))
sys.meta_path.insert(0, Watch())
import tidegate.{program}.__main__
"""
    own = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**own, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == f"at import: {expected}\n"
