"""The files of objects: which there are, what is in them, and that one has changed.

Files are looked at every so often rather than listened for, because editors replace files, folders
are mounted over networks, and a look at a few hundred names costs less than a millisecond. A file
is read again only when its size, time or identity is another.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Files", "text_of"]

_SUFFIXES: Final = frozenset({".yaml", ".yml"})


@dataclass(frozen=True, slots=True)
class _Look:
    """What of a file tells that it has changed."""

    inode: int
    size: int
    modified_ns: int


class Files:
    """YAML files at some paths, as they were when they were last looked at.

    Args:
        paths: files, and folders of which every ``.yaml`` and ``.yml`` file counts, at any depth
            but for hidden ones. One that is not there counts once it is.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._looks: dict[Path, _Look] = {}
        self._texts: dict[Path, str] = {}

    @property
    def texts(self) -> Mapping[Path, str]:
        """What is in each file, in the order of the paths; replaced when something changes."""
        return self._texts

    def look(self) -> frozenset[Path]:
        """Looks at all files and reads those that have changed.

        Returns:
            The files that were saved, have come, or have gone.

        Raises:
            OSError: a file cannot be read.
            UnicodeDecodeError: a file is not UTF-8.
        """
        looks: dict[Path, _Look] = {}
        texts: dict[Path, str] = {}
        for path in self._found():
            try:
                look = _look(path)
                known = self._looks.get(path) == look
                texts[path] = self._texts[path] if known else path.read_bytes().decode()
            except FileNotFoundError:
                continue
            looks[path] = look
        saved = {path for path, look in looks.items() if self._looks.get(path) != look}
        saved |= self._looks.keys() - looks.keys()
        self._looks, self._texts = looks, texts
        return frozenset(saved)

    def _found(self) -> Sequence[Path]:
        found: dict[Path, None] = {}
        for path in self._paths:
            if not path.is_dir():
                found[path] = None
                continue
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(each for each in folders if not each.startswith("."))
                for name in sorted(names):
                    if not name.startswith(".") and Path(name).suffix in _SUFFIXES:
                        found[Path(folder, name)] = None
        return list(found)


def text_of(path: Path) -> str | None:
    """What is in a file now; ``None`` when it is not there.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None


def _look(path: Path) -> _Look:
    status = path.stat()
    return _Look(status.st_ino, status.st_size, status.st_mtime_ns)
