"""The SQLite file of the traces: one process opens it, and a damaged file is set aside.

Traces are not worth a repair. A file that is damaged, or that another version made, is renamed and
logged, and an empty file takes its place. If another process has the file open, that is an error.
"""

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from tidegate.mesh.traces.errors import StoreError
from tidegate.runtime.sqlite_file import (
    Durability,
    connect,
    is_damage,
    is_locked,
    schema_version,
)

__all__ = ["open_file", "own_errors", "set_aside"]

_log = structlog.stdlib.get_logger(__name__)

_SUFFIXES: Final = ("", "-wal", "-shm")


def open_file(path: Path, schema: str, version: int) -> sqlite3.Connection:
    """Opens a file, or creates it. Commits are explicit.

    Args:
        path: The file.
        schema: The statements that create the schema in an empty file.
        version: The version of the schema. A file of another version is set aside.

    Raises:
        sqlite3.Error: The file cannot be opened, or another process has it open.
        OSError: The folder cannot be created, or the file cannot be set aside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        connection, found = _connect(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        set_aside(path, str(error))
        connection, found = _connect(path)
    if found not in (0, version):
        connection.close()
        set_aside(path, f"its schema has version {found}, not {version}")
        connection, found = _connect(path)
    if found == 0:
        connection.executescript(f"BEGIN;{schema}PRAGMA user_version = {version};COMMIT;")
    return connection


def set_aside(path: Path, reason: str) -> Path:
    """Renames an unusable file together with its write-ahead log, and logs that.

    Args:
        path: The file, to which no connection is open.
        reason: Why it is unusable.

    Returns:
        The new path.

    Raises:
        OSError: The file cannot be renamed.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.aside-{stamp}")
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{path.name}.aside-{stamp}-{count}")
    for part in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + part).rename(aside.with_name(aside.name + part))
    _log.warning("trace file set aside", file=str(path), aside=str(aside), reason=reason)
    return aside


@contextlib.contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """Converts errors of SQLite and of the file system to `StoreError`.

    Args:
        path: The file that is used in the context.

    Raises:
        StoreError: SQLite or the file system raised an error.
    """
    try:
        yield
    except sqlite3.Error as error:
        if is_locked(error):
            raise StoreError(
                f"another process has {path} open; only one process can use it"
            ) from error
        raise StoreError(f"cannot use {path}: {error}") from error
    except OSError as error:
        raise StoreError(f"cannot use {path}: {error.strerror or error}") from error


def _connect(path: Path) -> tuple[sqlite3.Connection, int]:
    # Two processes would evict each other's traces, so the file is locked.
    connection = connect(path, Durability.PROCESS)
    return connection, schema_version(connection)
