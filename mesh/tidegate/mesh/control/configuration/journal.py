"""What the controller must not forget: the objects in effect, shifts, and the change being made.

It is written before it is acted on, in one transaction each time, so that a controller which is
killed at any moment finds at its next start where it was: which texts of which files are in effect,
and of a change that was begun, both texts of each file, how far it was, and which proxies took
part. The texts that commands shifted are kept here too, apart from the files (see
`shifted_files`). What is written is in proportion to the change, not to the mesh.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tidegate.mesh.control.errors import StateError
from tidegate.mesh.control.transitions.plan import Reached, StageKind

__all__ = ["Journal", "PendingTransition", "ShiftedText", "TextChange"]

_FORMAT: Final = 3
# Changes wait on the event loop for whoever else has locked the file, so not for long.
_LOCKED_S: Final = 0.1
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS applied (path TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS shifted (
  path TEXT PRIMARY KEY, file TEXT NOT NULL, text TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending_files (
  path TEXT PRIMARY KEY, before TEXT, after TEXT, file TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (
  one INTEGER PRIMARY KEY CHECK (one = 1),
  id TEXT NOT NULL, description TEXT NOT NULL, deadline_s REAL,
  reached TEXT, going_back INTEGER NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS pending_proxies (node_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class ShiftedText:
    """What a file means in place of what it holds, because a command changed it.

    Attributes:
        file: what the file held when the command changed it.
        text: what it means.
    """

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class TextChange:
    """The text in effect of a file of objects, as it changes.

    Attributes:
        path: the file.
        before: its text without the change; ``None`` when it is not there.
        after: its text with the change; ``None`` when it is not there.
        file: what the file itself holds; ``after`` is another text where a command changes it.
    """

    path: Path
    before: str | None
    after: str | None
    file: str | None

    @property
    def shifted(self) -> ShiftedText | None:
        """What the file means once the change is made, where that is not what it holds."""
        if self.after is None or self.file is None or self.after == self.file:
            return None
        return ShiftedText(self.file, self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTransition:
    """A change that was pending.

    Attributes:
        id: its id.
        description: what it does.
        files: the files whose text it changes.
        deadline_s: how long each of its stages may take.
        reached: the stage whose resources are served.
        going_back: whether it is being taken back.
        reason: why it is taken back; empty otherwise.
        proxies: node ids of the proxies that were there when it began.
    """

    id: str
    description: str
    files: tuple[TextChange, ...]
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
            self._database = sqlite3.connect(path, isolation_level=None, timeout=_LOCKED_S)
            # Enough for a process that is killed; the machine's own end may cost the last change.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            (found,) = self._database.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise StateError(f"{path} is of another version of tidegate; move it away")
            self._database.executescript(_SCHEMA)
            self._database.execute(f"PRAGMA user_version = {_FORMAT}")
            self._identity = _identity(path)
            rows = self._database.execute("SELECT path, file, text FROM shifted ORDER BY path")
            self._shifted = {Path(path): ShiftedText(file, text) for path, file, text in rows}
        except (OSError, sqlite3.Error) as error:
            raise StateError(
                f"the state file {path} cannot be used: {error}; make its folder writable, or move"
                " the file away when it is damaged (shifts are forgotten then)"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._database.close()

    def applied(self) -> dict[Path, str]:
        """The texts of the files whose objects are in effect."""
        with self._readable():
            rows = self._database.execute("SELECT path, text FROM applied ORDER BY path")
            return {Path(path): text for path, text in rows}

    def shifted(self) -> dict[Path, ShiftedText]:
        """The texts that commands shifted, by file."""
        return dict(self._shifted)

    def keep(self, path: Path, shifted: ShiftedText | None) -> None:
        """Says what a file means in place of what it holds; ``None``: it means what it holds."""
        with self._transaction() as database:
            _keep(database, path, shifted)
        self._remember(path, shifted)

    def pending(self) -> PendingTransition | None:
        """The change that was begun and has not ended, if there is one."""
        with self._readable():
            return self._pending()

    def _pending(self) -> PendingTransition | None:
        row = self._database.execute(
            "SELECT id, description, deadline_s, reached, going_back, reason FROM pending"
        ).fetchone()
        if row is None:
            return None
        files = self._database.execute(
            "SELECT path, before, after, file FROM pending_files ORDER BY path"
        )
        proxies = self._database.execute("SELECT node_id FROM pending_proxies")
        return PendingTransition(
            id=row[0],
            description=row[1],
            deadline_s=row[2],
            reached=StageKind(row[3]) if row[3] else None,
            going_back=bool(row[4]),
            reason=row[5],
            files=tuple(TextChange(Path(path), *texts) for path, *texts in files),
            proxies=frozenset(node_id for (node_id,) in proxies),
        )

    def start_with(self, texts: Mapping[Path, str]) -> None:
        """Says which texts are in effect, in place of all that were."""
        with self._transaction() as database:
            database.execute("DELETE FROM applied")
            database.executemany(
                "INSERT INTO applied VALUES (?, ?)",
                [(str(path), text) for path, text in texts.items()],
            )

    def begin(self, pending: PendingTransition) -> None:
        """Says that a change begins."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO pending VALUES (1, ?, ?, ?, ?, ?, ?)",
                (
                    *(pending.id, pending.description, pending.deadline_s),
                    *(pending.reached, pending.going_back, pending.reason),
                ),
            )
            database.executemany(
                "INSERT INTO pending_files VALUES (?, ?, ?, ?)",
                [(str(each.path), each.before, each.after, each.file) for each in pending.files],
            )
            database.executemany(
                "INSERT INTO pending_proxies VALUES (?)",
                [(each,) for each in sorted(pending.proxies)],
            )

    def reach(self, reached: Reached) -> None:
        """Says whose stage's resources are about to be served."""
        with self._transaction() as database:
            database.execute("UPDATE pending SET reached = ?", (reached,))

    def go_back(self, reason: str) -> None:
        """Says that the change is taken back from here on."""
        with self._transaction() as database:
            database.execute("UPDATE pending SET going_back = 1, reason = ?", (reason,))

    def end(self, files: Sequence[TextChange], *, made: bool) -> None:
        """Says that the change has ended.

        Args:
            files: the files that it changed.
            made: whether it was made, rather than taken back.
        """
        with self._transaction() as database:
            for each in files if made else ():
                _keep(database, each.path, each.shifted)
                if each.after is None:
                    database.execute("DELETE FROM applied WHERE path = ?", (str(each.path),))
                else:
                    database.execute(
                        "INSERT OR REPLACE INTO applied VALUES (?, ?)",
                        (str(each.path), each.after),
                    )
            for table in ("pending", "pending_files", "pending_proxies"):
                database.execute(f"DELETE FROM {table}")  # noqa: S608 - our own tables
        for each in files if made else ():
            self._remember(each.path, each.shifted)

    def _remember(self, path: Path, shifted: ShiftedText | None) -> None:
        """Keeps in memory what the file has, so that the status needs no disk."""
        self._shifted.pop(path, None)
        if shifted is not None:
            self._shifted[path] = shifted
            self._shifted = dict(sorted(self._shifted.items()))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: an error, that of the commit included, leaves the file as it was."""
        with self._named():
            if _identity(self._path) != self._identity:
                # SQLite goes on writing to the file that has gone; nobody would find it again.
                raise StateError(
                    f"the state file {self._path} was removed or replaced while in use; move"
                    " it back (no copy of it), or restart the controller"
                )
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back where the disk is full.
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Says of a damaged file what to do."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StateError(
                f"the state file {self._path} is damaged: {error}; move it away (shifts are"
                " forgotten then)"
            ) from error

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Says of an error of SQLite which file it is about and what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(
                f"the state file {self._path} cannot be used: {error}; make room for it and let"
                " the controller write it"
            ) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _keep(database: sqlite3.Connection, path: Path, shifted: ShiftedText | None) -> None:
    if shifted is None:
        database.execute("DELETE FROM shifted WHERE path = ?", (str(path),))
    else:
        database.execute(
            "INSERT OR REPLACE INTO shifted VALUES (?, ?, ?)",
            (str(path), shifted.file, shifted.text),
        )
