"""The parent-death guard: runs one server as a process group, and ends it with the supervisor.

The supervisor starts this file as a script, once for each process, with three pipes. Through
standard input it sends ``T`` (SIGTERM to the server) and ``K`` (SIGKILL to the whole group). When
that pipe closes, the supervisor is gone, even if it was killed by SIGKILL. The guard then sends
SIGTERM to the server, and SIGKILL when the drain deadline passes. Standard output carries the
server's process id, standard error its log.

This extra process costs 10 MB. In return it works on macOS too, lets the server drain, and leaves
none of the server's children (an engine, for example) behind; ``PR_SET_PDEATHSIG`` alone does none
of these. On Linux the server has that signal as well, in case the guard itself is killed. The guard
uses only the standard library and no threads, so that its fork is safe.

Usage: parent_death_guard.py DRAIN_DEADLINE_S NICE PROGRAM [ARGUMENT ...]
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
        The server's exit status, or 128 plus the number of the signal that ended it.
    """
    drain_s, nice, command = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    # Python writes to the wake-up descriptor only for signals with a handler.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ours in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _become_server(command, guard, nice)
    # The server sets it too: the group must exist before either process needs it.
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
            commands = os.read(0, 512)
            if b"T" in commands:
                os.kill(server, signal.SIGTERM)
            if b"K" in commands:
                _kill_group(server)
            if not commands:
                watched.remove(0)
                deadline = time.monotonic() + drain_s
                os.kill(server, signal.SIGTERM)
        if deadline is not None and time.monotonic() >= deadline:
            _kill_group(server)
            deadline = None


def _kill_group(server: int) -> None:
    # For an empty group Linux raises ProcessLookupError, and macOS PermissionError.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server, signal.SIGKILL)


def _become_server(command: list[str], guard: int, nice: int) -> None:
    """Turns this process into the server; never returns."""
    try:
        os.setpgid(0, 0)
        _lower_priority(nice)
        for changed in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(changed, signal.SIG_DFL)
        if sys.platform == "linux":
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                # The guard ended before the death signal was set.
                os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    os._exit(_NOT_FOUND)


def _lower_priority(nice: int) -> None:
    """Lowers the priority of this process and its session."""
    if not nice:
        return
    os.nice(nice)
    # With sched_autogroup, Linux shares the cores among sessions, and the niceness of a process
    # counts only within its session, which is the guard's.
    with contextlib.suppress(OSError), Path("/proc/self/autogroup").open("w") as session:
        session.write(str(nice))


if __name__ == "__main__":
    sys.exit(main())
