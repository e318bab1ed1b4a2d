"""Stops one thread of a child process, as if it got no core, while its other threads go on.

It uses ``ptrace``, with which a Linux process may trace its descendants. The thread that begins the
trace must also end it.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def stopped(process: int, thread: str) -> Iterator[None]:
    """Stops the first thread of that name for as long as the context is open.

    Args:
        process: Process id of a descendant of this process.
        thread: Name of the thread.

    Raises:
        OSError: This process may not trace the other.
    """
    number = next(
        int(each.name)
        for each in sorted(Path(f"/proc/{process}/task").iterdir())
        if (each / "comm").read_text().strip() == thread
    )
    _ptrace(_SEIZE, number)
    try:
        _ptrace(_INTERRUPT, number)
        os.waitpid(number, _WALL)
        yield
    finally:
        _ptrace(_DETACH, number)


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_long(thread), None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
