"""The file that SQLite keeps traces in: opened by one process, and set aside when it is damaged.

Traces are not worth a repair. A file that is damaged, or was made by another version, gets another
name, which is logged, and an empty one takes its place. A file that another process has open is
none of our business: that is an error.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from tidegate.mesh.traces.errors import StoreError

__all__ = ["is_damage", "open_file", "own_errors", "set_aside"]

_log = structlog.stdlib.get_logger(__name__)

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_TAKEN: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_LOCK_TIMEOUT_S: Final = 2.0
_WAL_BYTES: Final = 16 * 1024 * 1024
_PARTS: Final = ("", "-wal", "-shm")


def open_file(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """Opens a file, or makes it; commits are explicit.

    Args:
        path: the file.
        schema: statements that make an empty file ours.
        version: of the schema; a file of another one is set aside.

    Raises:
        sqlite3.Error: it cannot be opened, or another process has it open.
        OSError: its folder cannot be made, or the file not be set aside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection, found = _connected(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        set_aside(path, str(error))
        connection, found = _connected(path)
    if found not in (0, version):
        connection.close()
        set_aside(path, f"its schema has version {found}, and ours {version}")
        connection, found = _connected(path)
    if found == 0:
        connection.executescript(f"BEGIN;{schema}PRAGMA user_version = {version};COMMIT;")
    return connection


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is damaged or no database at all."""
    return _code(error) in _DAMAGE


def set_aside(path: Path, reason: str) -> Path:
    """Renames a file that cannot be used, with the log that belongs to it, and logs it.

    Args:
        path: the file; no connection to it is open.
        reason: why.

    Returns:
        Its new name.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.aside-{stamp}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.aside-{stamp}-{count}")
    for part in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + part).rename(aside.with_name(aside.name + part))
    _log.warning(
        "traces set aside, beginning anew", file=str(path), aside=str(aside), reason=reason
    )
    return aside


@contextlib.contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite and the file system raise into our own error.

    Args:
        path: the file that is used inside.

    Raises:
        StoreError: instead of theirs.
    """
    try:
        yield
    except sqlite3.Error as error:
        if _code(error) in _TAKEN:
            raise StoreError(
                f"another process has {path} open; only one keeps its traces there"
            ) from error
        raise StoreError(f"cannot use {path}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot use {path}: {error.strerror or error}") from error


def _connected(path: Path) -> tuple[sqlite3.Connection, int]:
    """Opens a file, takes it for this process, and looks whether it is sound."""
    connection = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
    try:
        # Two processes would evict each other's traces.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        # What is committed survives a crash of the process, not always one of the machine.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # The lock is taken with the first write.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        _check(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection, version


def _check(connection: sqlite3.Connection) -> None:
    (report,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if report != "ok":
        damage = sqlite3.DatabaseError(report)
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage


def _code(error: sqlite3.Error) -> int:
    # The low byte of an extended code is the code; errors that Python raises itself have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
