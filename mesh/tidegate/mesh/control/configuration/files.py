"""Polls the files of objects: which exist, what they hold, and which have changed.

The controller polls files instead of watching for events, because editors replace files, folders
are mounted over networks, and a poll of a few hundred names costs less than a millisecond. A file
is read again only when its size, time or inode has changed.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["FilePoller", "text_of"]

_PIECES_S: Final = 1.0
_SUFFIXES: Final = frozenset({".yaml", ".yml"})


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes in a file's metadata when the file changes."""

    inode: int
    size: int
    modified_ns: int


class _NotSettledError(Exception):
    """The new text of a file does not count yet.

    Args:
        left_s: For how long, in seconds.
    """

    def __init__(self, left_s: float) -> None:
        super().__init__(left_s)
        self.left_s = left_s


class FilePoller:
    """YAML files at some paths, as they were when they were last polled.

    Args:
        paths: Files and folders. Every ``.yaml`` and ``.yml`` file of a folder counts, at any
            depth, except hidden ones. A path that does not exist counts once it does.
        settle_s: How long a file that holds less than before must stay unchanged before it counts.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        settle_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settle_s = settle_s
        self._clock = clock
        self._settling: dict[Path, tuple[_Stamp, float]] = {}
        self._missing: set[Path] = set()
        self._paths = paths
        self._stamps: dict[Path, _Stamp] = {}
        self._texts: dict[Path, str] = {}
        self._problems: dict[Path, str] = {}

    @property
    def problems(self) -> Mapping[Path, str]:
        """Why files cannot be read; replaced at each poll."""
        return self._problems

    @property
    def texts(self) -> Mapping[Path, str]:
        """The text of each file, in the order of the paths; replaced at each poll."""
        return self._texts

    def poll(self) -> frozenset[Path]:
        """Reads the files that have changed.

        A file that cannot be read keeps its last text, and `problems` says why.

        Returns:
            The files that were saved, added or removed.
        """
        stamps: dict[Path, _Stamp] = {}
        texts: dict[Path, str] = {}
        problems: dict[Path, str] = {}
        found, unread = self._found()
        for folder, error in unread.items():
            problems[folder] = f"cannot be read: {error.strerror or error}"
        for path in found:
            try:
                stamps[path], texts[path] = self._take(path)
            except _NotSettledError as error:
                problems[path] = (
                    "holds less than before; counts once it is unchanged for"
                    f" {error.left_s:.1f} s more"
                )
            except FileNotFoundError:
                if not path.is_symlink():
                    continue
                problems[path] = "is a link to nothing; mend or remove it"
            except UnicodeDecodeError as error:
                problems[path] = f"is not UTF-8 at byte {error.start}; save it as UTF-8"
            except OSError as error:
                problems[path] = f"cannot be read: {error.strerror or error}"
            if path in problems and path in self._texts:
                stamps[path], texts[path] = self._stamps[path], self._texts[path]
        # A program may replace a file by removing it first. It counts as gone after two polls.
        missing = self._texts.keys() - texts.keys()
        unseen = {path for path in missing if not unread.keys().isdisjoint((path, *path.parents))}
        for path in unseen | (missing - self._missing):
            stamps[path], texts[path] = self._stamps[path], self._texts[path]
        self._missing = missing - unseen
        saved = {path for path, stamp in stamps.items() if self._stamps.get(path) != stamp}
        saved |= self._stamps.keys() - stamps.keys()
        self._stamps, self._texts, self._problems = stamps, texts, problems
        return frozenset(saved)

    def _take(self, path: Path) -> tuple[_Stamp, str]:
        """Reads a file if it has changed."""
        status = path.stat()
        stamp = _Stamp(status.st_ino, status.st_size, status.st_mtime_ns)
        if self._stamps.get(path) == stamp and path not in self._problems:
            return stamp, self._texts[path]
        text = _read(path, status)
        if left_s := self._unsettled_s(path, stamp, text):
            raise _NotSettledError(left_s)
        self._settling.pop(path, None)
        return stamp, text

    def _unsettled_s(self, path: Path, stamp: _Stamp, text: str) -> float:
        """How long a text does not count yet: a program may be in the middle of writing it."""
        before = self._texts.get(path)
        if before is None or not _is_less(text, before):
            return 0.0
        now = self._clock()
        known, since = self._settling.get(path, (None, now))
        if known != stamp:
            since = now
        self._settling[path] = (stamp, since)
        # A program that empties a file first may take long to produce its new text. Once it writes,
        # the pieces follow one another quickly.
        settle_s = min(self._settle_s, _PIECES_S) if text.strip() else self._settle_s
        return max(0.0, since + settle_s - now)

    def _found(self) -> tuple[Sequence[Path], Mapping[Path, OSError]]:
        """The files that exist, and the folders that cannot be read."""
        found: dict[Path, None] = {}
        unread: dict[Path, OSError] = {}

        def note(error: OSError) -> None:
            unread[Path(error.filename)] = error

        for path in self._paths:
            try:
                is_folder = path.is_dir()
            except OSError as error:
                unread[path] = error
                continue
            if not is_folder:
                found[path] = None
                continue
            for folder, folders, names in os.walk(path, onerror=note):
                folders[:] = sorted(each for each in folders if not each.startswith("."))
                # A folder with such a name is reported, and the files in it count.
                for name in sorted((*names, *folders)):
                    if not name.startswith(".") and Path(name).suffix in _SUFFIXES:
                        found[Path(folder, name)] = None
        return list(found), unread


def text_of(path: Path) -> str | None:
    """The text of a file now; ``None`` if it does not exist.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is not UTF-8.
    """
    try:
        return _read(path, path.stat())
    except FileNotFoundError:
        return None


def _is_less(text: str, before: str) -> bool:
    """Whether a file may be only half written: its text is the beginning of the one before."""
    return (text != before and before.startswith(text)) or _documents(text) < _documents(before)


def _documents(text: str) -> int:
    return sum(bool(each.strip()) for each in re.split(r"^---", text, flags=re.MULTILINE))


def _read(path: Path, status: os.stat_result) -> str:
    # Opening a named pipe would wait for a writer.
    if not stat.S_ISREG(status.st_mode):
        raise OSError("is not a regular file; move it away")
    return path.read_bytes().decode()
