"""Runs a server with its child processes, and ends all of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["ROOT", "free_port", "running", "suspended"]

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = ("services", "clients/python")
_STOP_S = 10.0


@contextmanager
def running(command: Sequence[str], output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a process and its children in a session that ends with the block.

    Args:
        command: The program and its arguments.
        output: The file for its output.

    Yields:
        The process. Tidegate's sources are on its path, installed or not.
    """
    sources = os.pathsep.join(str(ROOT / each) for each in _SOURCES)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": sources},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            # Its remaining children, or all of it if it ignored the signal.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def suspended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Suspends a process and its children during the block.

    Some servers poll while they are idle, which would disturb another measurement.

    Args:
        process: A process of `running`.

    Raises:
        OSError: The process has ended.
    """
    try:
        first = psutil.Process(process.pid)
        # Ray's workers have process groups of their own, so a signal to the group would miss them.
        processes = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"process {process.pid} has ended") from error
    _each(processes, psutil.Process.suspend)
    try:
        yield
    finally:
        _each(processes, psutil.Process.resume)


def _each(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(process)


def free_port() -> int:
    """Finds a free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
