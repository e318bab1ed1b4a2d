"""The log of one server: a file that is rotated by size, and its last lines at hand."""

from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["ServerLog"]

_KEPT_LINES = 5


class ServerLog:
    """Appends what a server writes to ``NAME.log``; older parts are ``NAME.log.1`` and so on.

    Args:
        path: the file; its folder must exist.
        max_bytes: size above which it is rotated.
        backups: how many older parts are kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10_000_000, backups: int = 3) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file = path.open("ab")
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._partial = b""

    def write(self, data: bytes) -> None:
        """Appends bytes; a line is never cut in two by rotation."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            if text := line.decode(errors="replace").rstrip():
                self._last.append(text)
        self._file.write(data)
        self._file.flush()
        if not self._partial and self._file.tell() > self._max_bytes:
            self._rotate()

    def last_lines(self) -> tuple[str, ...]:
        """The last lines that are not empty, oldest first."""
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
