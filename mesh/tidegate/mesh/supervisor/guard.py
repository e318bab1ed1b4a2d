"""Runs one server as its own process group, and ends the whole group when nobody watches it.

The supervisor starts this file as a script, one for each server, with three pipes. Through standard
input it sends ``T`` (ask the server to stop) and ``K`` (kill it and all that it started). When that
pipe closes, the supervisor is gone however it went, even by SIGKILL: the server is asked to stop,
and killed when the drain deadline passes. Standard output carries the server's process id; standard
error is the server's log.

A process between the two costs 10 MB and buys what ``PR_SET_PDEATHSIG`` alone does not: it works on
macOS too, lets the server drain, and leaves none of the server's own children (an engine, say)
behind. On Linux the server has that death signal as well, in case the guard itself is killed. Only
the standard library is used, and no thread, so that forking is safe.

Usage: guard.py DRAIN_DEADLINE_S NICE PROGRAM [ARGUMENT ...]
"""

import contextlib
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127


def main() -> int:
    """Runs the server until it ends.

    Returns:
        Its exit status, or 128 and the number of the signal that ended it.
    """
    drain_s, nice, command = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    # A handler of Python's own is what makes the wake-up descriptor be written.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ours in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _become_server(command, guard, nice)
    # The server does it too: whichever comes first, the group is there before it is needed.
    with contextlib.suppress(OSError):
        os.setpgid(server, server)
    os.write(1, f"{server}\n".encode())
    return _watch(server, wake, drain_s)


def _watch(server: int, wake: int, drain_s: float) -> int:
    watched = [0, wake]
    deadline: float | None = None
    while True:
        ended, status = os.waitpid(server, os.WNOHANG)
        if ended:
            _kill_group(server)
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(watched, [], [], timeout)
        if wake in ready:
            os.read(wake, 512)
        if 0 in ready:
            orders = os.read(0, 512)
            if b"T" in orders:
                os.kill(server, signal.SIGTERM)
            if b"K" in orders:
                _kill_group(server)
            if not orders:
                watched.remove(0)
                deadline = time.monotonic() + drain_s
                os.kill(server, signal.SIGTERM)
        if deadline is not None and time.monotonic() >= deadline:
            _kill_group(server)
            deadline = None


def _kill_group(server: int) -> None:
    # When nobody is left, Linux says so and macOS refuses permission.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server, signal.SIGKILL)


def _become_server(command: list[str], guard: int, nice: int) -> None:
    """Turns this process into the server; never returns."""
    try:
        os.setpgid(0, 0)
        _let_others_go_first(nice)
        for changed in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(changed, signal.SIG_DFL)
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                # The guard ended before the signal was set.
                os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    os._exit(_NOT_FOUND)


def _let_others_go_first(nice: int) -> None:
    """Lowers the priority of this process and its session."""
    if not nice:
        return
    os.nice(nice)
    # Where Linux shares the cores among sessions (sched_autogroup), a process's own value counts
    # only within its session, which is the guard's.
    with contextlib.suppress(OSError), Path("/proc/self/autogroup").open("w") as session:
        session.write(str(nice))


if __name__ == "__main__":
    sys.exit(main())
