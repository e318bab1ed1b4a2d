"""Ctrl-C during `tidegate up --detach`: the servers go on starting, and the command says so."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from interruptible import TIDEGATE

from tidegate.mesh.supervisor.state.directory import StateDirectory

CHILD = Path(__file__).parents[2] / "doubles" / "child_server.py"


def start(folder, *arguments):
    return subprocess.Popen(
        [*TIDEGATE, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_servers_that_start_in_the_background_outlive_ctrl_c(tmp_path):
    server = {
        "kind": "program",
        "command": [sys.executable, str(CHILD)],
        "settings": {"manner": "never-serves"},
    }
    (tmp_path / "tidegate.yaml").write_text(json.dumps({"servers": {"slow": server}}))
    state = StateDirectory(tmp_path / ".tidegate")
    up = start(tmp_path, "up", "--detach")
    try:
        # From its first line on, the command waits for the servers.
        assert "slow" in up.stderr.readline()
        up.send_signal(signal.SIGINT)
        _, error = up.communicate(timeout=60)
        assert up.returncode == 130
        assert "interrupted: the servers go on starting in the background" in error
        assert "`tidegate status`" in error
        assert "Traceback" not in error
        assert state.held()
    finally:
        up.kill()
        up.communicate()
        down = start(tmp_path, "down")
        _, error = down.communicate(timeout=60)
    assert down.returncode == 0, error
    assert not state.held()
