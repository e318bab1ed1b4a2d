"""Starts a server with all that it starts itself, and leaves none of them behind."""

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
    """A process and all that it starts, in a session that ends with the block.

    Args:
        command: the program and its arguments.
        output: where it writes what it has to say.

    Yields:
        The process. It finds Tidegate's sources on its path, installed or not.
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
            # What it left behind, or all of it when it did not listen.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def suspended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stops a process and all that it started while the block runs.

    Some servers poll while they are idle, and would take from what is measured meanwhile.

    Args:
        process: of `running`.

    Raises:
        OSError: it has ended.
    """
    try:
        first = psutil.Process(process.pid)
        # Ray's workers have groups of their own, so a signal to the group would miss them.
        everyone = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        raise ProcessLookupError(f"process {process.pid} has ended") from error
    _each(everyone, psutil.Process.suspend)
    try:
        yield
    finally:
        _each(everyone, psutil.Process.resume)


def _each(processes: Sequence[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(process)


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
