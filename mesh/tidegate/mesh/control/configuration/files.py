"""The files of objects: which there are, what is in them, and that one has changed.

Files are looked at every so often rather than listened for, because editors replace files, folders
are mounted over networks, and a look at a few hundred names costs less than a millisecond. A file
is read again only when its size, time or identity is another.
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
class _Look:
    """What of a file tells that it has changed."""

    inode: int
    size: int
    modified_ns: int


class _NotSettledError(Exception):
    """What a file holds does not count yet.

    Args:
        left_s: for how long, in seconds.
    """

    def __init__(self, left_s: float) -> None:
        super().__init__(left_s)
        self.left_s = left_s


class FilePoller:
    """YAML files at some paths, as they were when they were last looked at.

    Args:
        paths: files, and folders of which every ``.yaml`` and ``.yml`` file counts, at any depth
            but for hidden ones. One that is not there counts once it is.
        settle_s: how long a file that holds less than before must stay unchanged before it counts.
        clock: the time in seconds.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        settle_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settle_s = settle_s
        self._clock = clock
        self._settling: dict[Path, tuple[_Look, float]] = {}
        self._missing: set[Path] = set()
        self._paths = paths
        self._looks: dict[Path, _Look] = {}
        self._texts: dict[Path, str] = {}
        self._problems: dict[Path, str] = {}

    @property
    def problems(self) -> Mapping[Path, str]:
        """What keeps a file from being read; replaced at each look."""
        return self._problems

    @property
    def texts(self) -> Mapping[Path, str]:
        """What is in each file, in the order of the paths; replaced when something changes."""
        return self._texts

    def poll(self) -> frozenset[Path]:
        """Looks at all files and reads those that have changed.

        A file that cannot be read stays as it was last read, and is told in `problems`.

        Returns:
            The files that were saved, have come, or have gone.
        """
        looks: dict[Path, _Look] = {}
        texts: dict[Path, str] = {}
        problems: dict[Path, str] = {}
        found, unread = self._found()
        for folder, error in unread.items():
            problems[folder] = f"cannot be read: {error.strerror or error}"
        for path in found:
            try:
                looks[path], texts[path] = self._take(path)
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
                looks[path], texts[path] = self._looks[path], self._texts[path]
        # A program that replaces a file may remove it first, so it has gone when it is away twice.
        missing = self._texts.keys() - texts.keys()
        unseen = {path for path in missing if not unread.keys().isdisjoint((path, *path.parents))}
        for path in unseen | (missing - self._missing):
            looks[path], texts[path] = self._looks[path], self._texts[path]
        self._missing = missing - unseen
        saved = {path for path, look in looks.items() if self._looks.get(path) != look}
        saved |= self._looks.keys() - looks.keys()
        self._looks, self._texts, self._problems = looks, texts, problems
        return frozenset(saved)

    def _take(self, path: Path) -> tuple[_Look, str]:
        """What a file holds."""
        status = path.stat()
        look = _Look(status.st_ino, status.st_size, status.st_mtime_ns)
        if self._looks.get(path) == look and path not in self._problems:
            return look, self._texts[path]
        text = _read(path, status)
        if left_s := self._unsettled_s(path, look, text):
            raise _NotSettledError(left_s)
        self._settling.pop(path, None)
        return look, text

    def _unsettled_s(self, path: Path, look: _Look, text: str) -> float:
        """How long a text does not count yet: whoever saves it may be in the middle of it."""
        before = self._texts.get(path)
        if before is None or not _is_less(text, before):
            return 0.0
        now = self._clock()
        known, since = self._settling.get(path, (None, now))
        if known != look:
            since = now
        self._settling[path] = (look, since)
        # Who has emptied a file may take long to make what it is to hold; pieces follow soon.
        settle_s = min(self._settle_s, _PIECES_S) if text.strip() else self._settle_s
        return max(0.0, since + settle_s - now)

    def _found(self) -> tuple[Sequence[Path], Mapping[Path, OSError]]:
        """The files that there are, and the folders that cannot be read."""
        found: dict[Path, None] = {}
        unread: dict[Path, OSError] = {}

        def tell(error: OSError) -> None:
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
            for folder, folders, names in os.walk(path, onerror=tell):
                folders[:] = sorted(each for each in folders if not each.startswith("."))
                # A folder of such a name is told of, and what is in it counts.
                for name in sorted((*names, *folders)):
                    if not name.startswith(".") and Path(name).suffix in _SUFFIXES:
                        found[Path(folder, name)] = None
        return list(found), unread


def text_of(path: Path) -> str | None:
    """What is in a file now; ``None`` when it is not there.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        return _read(path, path.stat())
    except FileNotFoundError:
        return None


def _is_less(text: str, before: str) -> bool:
    """Whether a text may be the begin of one that is being written over another."""
    return (text != before and before.startswith(text)) or _documents(text) < _documents(before)


def _documents(text: str) -> int:
    return sum(bool(each.strip()) for each in re.split(r"^---", text, flags=re.MULTILINE))


def _read(path: Path, status: os.stat_result) -> str:
    # To open a named pipe waits for somebody who writes.
    if not stat.S_ISREG(status.st_mode):
        raise OSError("is no regular file; move it away")
    return path.read_bytes().decode()
