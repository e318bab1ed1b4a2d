"""Finds and runs the servers that `make servers` builds."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

_TOOL = Path(__file__).parents[2] / "tools/build_servers.py"
_STOP_S = 20.0


def built(program):
    """The path of a program; skips the test if it was not built."""
    asked = (sys.executable, _TOOL, "--where", program)
    folder = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    path = Path(folder, program)
    if not path.exists():
        pytest.skip(f"no {program}; `make servers` builds it")
    return path


@contextlib.contextmanager
def running(command, log, **options):
    """Runs a program with its output in a file, and stops it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(each) for each in command], stdout=output, stderr=output, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
