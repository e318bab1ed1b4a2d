"""The journal: the objects in effect, the shifts and the pending transition, in a state file.

The controller writes each step before it acts on it, in one transaction. So a controller that is
killed at any moment finds at its next start where it was: the texts in effect of all files, and of
a pending transition both texts of each file, the stage that it reached, and the proxies that were
connected. The journal also keeps the texts that shifts changed, apart from the files (see
`shifted_files`). It writes in proportion to the change, not to the mesh.
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
from tidegate.runtime.sqlite_file import file_identity, transaction

__all__ = ["Journal", "PendingTransition", "ShiftedText", "TextChange"]

_FORMAT: Final = 4
# A change waits on the event loop while another program locks the file, so not for long.
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
  reached TEXT, going_back INTEGER NOT NULL, reason TEXT NOT NULL, keep INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS pending_proxies (node_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class ShiftedText:
    """The text in effect for a shifted file. It replaces the text on disk.

    Attributes:
        file: The text that the file held when the shift was made.
        text: The text in effect.
    """

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class TextChange:
    """The text in effect of a file of objects, as it changes.

    Attributes:
        path: The file.
        before: Its text without the change; ``None`` if it does not exist.
        after: Its text with the change; ``None`` if it does not exist.
        file: The text that the file itself holds; ``after`` differs from it in a shift.
    """

    path: Path
    before: str | None
    after: str | None
    file: str | None

    @property
    def shifted(self) -> ShiftedText | None:
        """The shifted text of the file once the change is made, if it differs from the file."""
        if self.after is None or self.file is None or self.after == self.file:
            return None
        return ShiftedText(self.file, self.after)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTransition:
    """A transition that has begun and has not ended.

    Attributes:
        id: Its id.
        description: What it does.
        files: The files whose text it changes.
        deadline_s: How long each of its stages may take.
        reached: The stage whose resources are served.
        going_back: Whether it is being rolled back.
        reason: Why it is rolled back; empty otherwise.
        keep: Whether its routes stay in force where they were acknowledged by the deadline.
        proxies: Node ids of the proxies that were connected when it began.
    """

    id: str
    description: str
    files: tuple[TextChange, ...]
    deadline_s: float
    reached: Reached = None
    going_back: bool = False
    reason: str = ""
    keep: bool = False
    proxies: frozenset[str] = frozenset()


class Journal:
    """The state file. A context that closes it.

    Args:
        path: The file. It is created if it does not exist.

    Raises:
        StateError: The file cannot be opened, or another version wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=_LOCKED_S)
            # Survives a kill of the process; a power cut may cost the last change.
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            (found,) = self._database.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise StateError(f"{path} is of another version of tidegate; move it away")
            self._database.executescript(_SCHEMA)
            self._database.execute(f"PRAGMA user_version = {_FORMAT}")
            self._identity = file_identity(path)
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
        """The texts in effect, by file."""
        with self._readable():
            rows = self._database.execute("SELECT path, text FROM applied ORDER BY path")
            return {Path(path): text for path, text in rows}

    def shifted(self) -> dict[Path, ShiftedText]:
        """The shifted texts, by file."""
        return dict(self._shifted)

    def keep(self, path: Path, shifted: ShiftedText | None) -> None:
        """Writes the shifted text of a file; ``None`` means that the file means what it holds."""
        with self._transaction() as database:
            _keep(database, path, shifted)
        self._remember(path, shifted)

    def pending(self) -> PendingTransition | None:
        """The pending transition, if there is one."""
        with self._readable():
            return self._pending()

    def _pending(self) -> PendingTransition | None:
        row = self._database.execute(
            "SELECT id, description, deadline_s, reached, going_back, reason, keep FROM pending"
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
            keep=bool(row[6]),
            files=tuple(TextChange(Path(path), *texts) for path, *texts in files),
            proxies=frozenset(node_id for (node_id,) in proxies),
        )

    def start_with(self, texts: Mapping[Path, str]) -> None:
        """Writes which texts are in effect, in place of all earlier ones."""
        with self._transaction() as database:
            database.execute("DELETE FROM applied")
            database.executemany(
                "INSERT INTO applied VALUES (?, ?)",
                [(str(path), text) for path, text in texts.items()],
            )

    def begin(self, pending: PendingTransition) -> None:
        """Writes that a transition begins."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO pending VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(pending.id, pending.description, pending.deadline_s),
                    *(pending.reached, pending.going_back, pending.reason, pending.keep),
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
        """Writes which stage's resources are about to be served."""
        with self._transaction() as database:
            database.execute("UPDATE pending SET reached = ?", (reached,))

    def go_back(self, reason: str) -> None:
        """Writes that the transition is rolled back from here on."""
        with self._transaction() as database:
            database.execute("UPDATE pending SET going_back = 1, reason = ?", (reason,))

    def end(self, files: Sequence[TextChange], *, made: bool) -> None:
        """Writes that the transition has ended.

        Args:
            files: The files that it changed.
            made: Whether the change was made, rather than rolled back.
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
        """Keeps the shifted texts in memory too, so that the status does not read the disk."""
        self._shifted.pop(path, None)
        if shifted is not None:
            self._shifted[path] = shifted
            self._shifted = dict(sorted(self._shifted.items()))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Writes all or nothing: any error, of the commit too, leaves the state file as it was."""
        with self._named():
            if file_identity(self._path) != self._identity:
                # SQLite goes on writing to the removed file, which no later start would find.
                raise StateError(
                    f"the state file {self._path} was removed or replaced while in use; move"
                    " it back (no copy of it), or restart the controller"
                )
            with transaction(self._database):
                yield self._database

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Turns an error of a damaged file into one that says what to do."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StateError(
                f"the state file {self._path} is damaged: {error}; move it away (shifts are"
                " forgotten then)"
            ) from error

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turns an error of SQLite into one that names the file and says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise StateError(
                f"the state file {self._path} cannot be used: {error}; make room for it and let"
                " the controller write it"
            ) from error


def _keep(database: sqlite3.Connection, path: Path, shifted: ShiftedText | None) -> None:
    if shifted is None:
        database.execute("DELETE FROM shifted WHERE path = ?", (str(path),))
    else:
        database.execute(
            "INSERT OR REPLACE INTO shifted VALUES (?, ?, ?)",
            (str(path), shifted.file, shifted.text),
        )
