"""What the controller must not forget: the objects in effect, and the change that is being made.

It is written before it is acted on, in one transaction each time, so that a controller which is
killed at any moment finds at its next start where it was: which texts of which files are in effect,
and of a change that was begun, both texts of each file, how far it was, and which proxies took
part. What is written is in proportion to the change, not to the mesh.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tidegate.mesh.control.errors import StateError
from tidegate.mesh.control.transition import Reached, StageKind
from tidegate.mesh.istio import FileChange

__all__ = ["Begun", "Journal", "TextChange"]

_FORMAT: Final = 1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS effective (path TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changed (path TEXT PRIMARY KEY, before TEXT, after TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS begun (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  id TEXT NOT NULL, description TEXT NOT NULL, writes_files INTEGER NOT NULL, deadline_s REAL,
  reached TEXT, going_back INTEGER NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS proxies (node_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class TextChange:
    """A file of objects that changes.

    Attributes:
        path: the file.
        before: its text without the change; ``None`` when it is not there.
        after: its text with the change; ``None`` when it is not there.
    """

    path: Path
    before: str | None
    after: str | None

    def written(self) -> FileChange:
        """The change as it is made in the file; of a file that is there before and after."""
        return FileChange(self.path, (self.before or "").encode(), (self.after or "").encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A change that was begun.

    Attributes:
        id: its id.
        description: what it does.
        files: the files that it changes.
        writes_files: whether the controller writes them, rather than a person who already has.
        deadline_s: how long each of its stages may take.
        reached: the stage whose resources are served.
        going_back: whether it is being taken back.
        reason: why it is taken back; empty otherwise.
        proxies: node ids of the proxies that were there when it began.
    """

    id: str
    description: str
    files: tuple[TextChange, ...]
    writes_files: bool
    deadline_s: float
    reached: Reached = None
    going_back: bool = False
    reason: str = ""
    proxies: frozenset[str] = frozenset()


class Journal:
    """The state file; a context that closes it.

    Args:
        path: the file, made when it is not there.

    Raises:
        StateError: it cannot be opened, or was written by another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None)
            # Enough for a process that is killed; the machine's own end may cost the last change.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            (found,) = self._database.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise StateError(f"{path} is of another version of tidegate; move it away")
            self._database.executescript(_SCHEMA)
            self._database.execute(f"PRAGMA user_version = {_FORMAT}")
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"the state file {path} cannot be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()

    def effective(self) -> dict[Path, str]:
        """The texts of the files whose objects are in effect."""
        rows = self._database.execute("SELECT path, text FROM effective ORDER BY path")
        return {Path(path): text for path, text in rows}

    def begun(self) -> Begun | None:
        """The change that was begun and has not ended, if there is one."""
        row = self._database.execute(
            "SELECT id, description, writes_files, deadline_s, reached, going_back, reason"
            " FROM begun"
        ).fetchone()
        if row is None:
            return None
        files = self._database.execute("SELECT path, before, after FROM changed ORDER BY path")
        proxies = self._database.execute("SELECT node_id FROM proxies")
        return Begun(
            id=row[0],
            description=row[1],
            writes_files=bool(row[2]),
            deadline_s=row[3],
            reached=StageKind(row[4]) if row[4] else None,
            going_back=bool(row[5]),
            reason=row[6],
            files=tuple(TextChange(Path(path), old, new) for path, old, new in files),
            proxies=frozenset(node_id for (node_id,) in proxies),
        )

    def start_with(self, texts: Mapping[Path, str]) -> None:
        """Says which texts are in effect, when none ever were."""
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO effective VALUES (?, ?)",
                [(str(path), text) for path, text in texts.items()],
            )

    def begin(self, begun: Begun) -> None:
        """Says that a change begins."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO begun VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(begun.id, begun.description, begun.writes_files, begun.deadline_s),
                    *(begun.reached, begun.going_back, begun.reason),
                ),
            )
            database.executemany(
                "INSERT INTO changed VALUES (?, ?, ?)",
                [(str(each.path), each.before, each.after) for each in begun.files],
            )
            database.executemany(
                "INSERT INTO proxies VALUES (?)", [(each,) for each in sorted(begun.proxies)]
            )

    def reach(self, reached: Reached) -> None:
        """Says whose stage's resources are about to be served."""
        self._database.execute("UPDATE begun SET reached = ?", (reached,))

    def go_back(self, reason: str) -> None:
        """Says that the change is taken back from here on."""
        self._database.execute("UPDATE begun SET going_back = 1, reason = ?", (reason,))

    def end(self, files: Iterable[TextChange], *, made: bool) -> None:
        """Says that the change has ended.

        Args:
            files: the files that it changed.
            made: whether it was made, rather than taken back.
        """
        with self._transaction() as database:
            for each in files if made else ():
                if each.after is None:
                    database.execute("DELETE FROM effective WHERE path = ?", (str(each.path),))
                else:
                    database.execute(
                        "INSERT OR REPLACE INTO effective VALUES (?, ?)",
                        (str(each.path), each.after),
                    )
            for table in ("begun", "changed", "proxies"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608 - our own tables

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
