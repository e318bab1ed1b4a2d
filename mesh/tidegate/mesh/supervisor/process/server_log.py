"""The log of one process: a file rotated by size, with its last lines in memory."""

from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["ServerLog"]

_KEPT_LINES = 5


class ServerLog:
    """Appends the output of a process to ``NAME.log``; older parts are ``NAME.log.1`` and so on.

    Args:
        path: The file; its folder must exist.
        max_bytes: The size above which the file is rotated.
        backups: How many older parts are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, backups: int = 3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file = path.open("ab")
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = b""

    def write(self, data: bytes) -> None:
        """Appends bytes; rotation never cuts a line in two."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                self._last.append(text)
        self._file.write(data)
        self._file.flush()
        if not self._partial and self._file.tell() > self._max_bytes:
            self._rotate()

    def last_lines(self) -> tuple[str, ...]:
        """The last non-empty lines, oldest first."""
        partial = self._partial.decode(errors="replace").rstrip()
        return (*self._last, partial)[-_KEPT_LINES:] if partial else tuple(self._last)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _rotate(self) -> None:
        self._file.close()
        for number in range(self._backups, 0, -1):
            older = self._part(number - 1)
            if older.exists():
                older.replace(self._part(number))
        self._file = self.path.open("ab")

    def _part(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
