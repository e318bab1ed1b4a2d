"""Servers that `make servers` builds: where they are, and how a test runs one."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

_TOOL = Path(__file__).parents[2] / "tools/build_servers.py"
_STOP_S = 20.0


def built(program):
    """Path of a program; where it was not built the test is skipped."""
    asked = (sys.executable, _TOOL, "--where", program)
    folder = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    path = Path(folder, program)
    if not path.exists():
        pytest.skip(f"no {program}; `make servers` builds it")
    return path


@contextlib.contextmanager
def running(command, log, **options):
    """Runs a program whose output goes to a file, and ends it."""
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
