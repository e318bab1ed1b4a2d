"""SQLite files that belong to one process: opened, locked, checked, and written in transactions.

    connection = connect(Path(".tidegate/rollouts.sqlite"), Durability.MACHINE)
    with transaction(connection):
        connection.execute("INSERT …")

The caller decides what to do with a damaged file: set it aside, or refuse to start.
"""

import contextlib
import enum
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = [
    "Durability",
    "connect",
    "file_identity",
    "is_damage",
    "is_locked",
    "schema_version",
    "transaction",
]

_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_LOCK_TIMEOUT_S: Final = 2.0
_WAL_BYTES: Final = 16 * 1024 * 1024


class Durability(enum.StrEnum):
    """What committed data survives: a crash of the process, or also one of the machine."""

    PROCESS = "NORMAL"
    MACHINE = "FULL"


def connect(path: Path, durability: Durability) -> sqlite3.Connection:
    """Opens a file, or creates it; locks it for this process; and checks its integrity.

    Any thread may use the connection, one at a time. Commits are explicit.

    Args:
        path: The file, in an existing folder.
        durability: What committed data survives.

    Raises:
        sqlite3.Error: The file cannot be opened, is damaged, or another process has it open.
    """
    connection = sqlite3.connect(
        path, timeout=_LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {durability}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # SQLite takes the lock with the first write.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        _check(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def schema_version(connection: sqlite3.Connection) -> int:
    """Returns the version of the file's schema; 0 for a new file."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Writes all or nothing: any error, of the commit too, leaves the file as it was.

    Raises:
        sqlite3.Error: The file cannot be written.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite has already rolled back if the disk is full.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def file_identity(path: Path) -> tuple[int, int] | None:
    """Returns what tells a file from another of its name; None if there is none.

    SQLite goes on writing to a file that was removed or replaced, and no later start finds that
    data. Compare the identity before each transaction.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error means that the file is damaged or no database."""
    return _code(error) in _DAMAGE


def is_locked(error: sqlite3.Error) -> bool:
    """Whether an error means that another process has the file open."""
    return _code(error) in _LOCKED


def _check(connection: sqlite3.Connection) -> None:
    (report,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if report != "ok":
        damage = sqlite3.DatabaseError(report)
        damage.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damage


def _code(error: sqlite3.Error) -> int:
    # The low byte of an extended code is the code; errors that Python raises itself have none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
