"""The laptop's `RolloutStore`: an SQLite file of the router's own.

A commit is one transaction, and it is on the disk before `SqliteStore.commit` returns. So a router
that is killed at any moment finds each step whole, status and events together, or not at all.
Commits that wait for the disk at the same time share a transaction and its one write to the disk; a
thousand rollouts cost little more than one.

Statuses and events are MessagePack, which keeps infinite e-values. The rollouts themselves are
JSON.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.samples import Sample, is_due, thinned
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.errors import StoreError
from tidegate.router.faults import FaultPoint, OnFaultPoint, pass_by
from tidegate.router.store import Delete, Put, PutStatus, Stored, Write, from_json, to_json
from tidegate.runtime.sqlite_file import (
    Durability,
    connect,
    file_identity,
    is_damage,
    is_locked,
    schema_version,
    transaction,
)

__all__ = ["SqliteStore"]

_FORMAT: Final = 2
# Tells the file from other SQLite files of Tidegate: "TROL".
_APPLICATION_ID: Final = 0x54524F4C
_SCHEMA: Final = f"""
CREATE TABLE rollouts (
  key TEXT PRIMARY KEY,
  -- The rollout as JSON, and the one that replaces it once its traffic is back at the baseline.
  rollout TEXT NOT NULL,
  successor TEXT,
  -- The file that it came from, and the rollout as the file held it.
  file TEXT NOT NULL,
  file_rollout TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE statuses (key TEXT PRIMARY KEY, status BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE history (
  key TEXT NOT NULL,
  number INTEGER NOT NULL,
  event BLOB NOT NULL,
  PRIMARY KEY (key, number)
) WITHOUT ROWID;
-- What the evidence said over time, for reports. The series is bounded.
CREATE TABLE samples (
  key TEXT NOT NULL,
  time_s REAL NOT NULL,
  sample BLOB NOT NULL,
  PRIMARY KEY (key, time_s)
) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""

_T = TypeVar("_T")


class SqliteStore:
    """The file. Open it with `opened`.

    Args:
        path: The file.
        at: Called at each fault point.
    """

    def __init__(self, path: Path, at: OnFaultPoint = pass_by) -> None:
        self._path = path
        self._at = at
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._database = _open(path)
        self._identity = file_identity(path)
        self._waiting: list[tuple[Sequence[Write], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, path: Path, at: OnFaultPoint = pass_by) -> AsyncIterator[Self]:
        """Opens the file while the context is open; creates it if it does not exist.

        Args:
            path: The file.
            at: Called at each fault point.

        Raises:
            StoreError: The file is damaged, in use, or none of rollouts.
        """
        store = cls(path, at)
        try:
            yield store
        finally:
            if store._writing is not None:
                await asyncio.wait({store._writing})
            await store._on_thread(store._database.close)
            store._thread.shutdown()

    async def load(self) -> tuple[Stored, ...]:
        """Reads every rollout, by key.

        Raises:
            StoreError: The file is damaged.
        """
        return await self._on_thread(self._load)

    async def history(self, key: str, after: int = 0) -> tuple[Event, ...]:
        """Reads the events of a rollout, in order.

        Args:
            key: The rollout's.
            after: Leaves out events up to this number.

        Raises:
            StoreError: The file is damaged.
        """
        return await self._on_thread(lambda: self._history(key, after))

    async def samples(self, key: str) -> tuple[Sample, ...]:
        """Reads the samples of a rollout, in order.

        Args:
            key: The rollout's.

        Raises:
            StoreError: The file is damaged.
        """
        return await self._on_thread(lambda: self._samples(key))

    async def commit(self, *writes: Write) -> None:
        """Writes all or nothing; returns once it is on the disk.

        A caller that is cancelled meanwhile does not know whether it was written.

        Raises:
            StoreError: Nothing was written.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_waiting(), name="store")
        await written

    async def _write_waiting(self) -> None:
        """Writes what waits, until nothing does."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                errors = await self._on_thread(partial(self._write_batch, batch))
                for (_, written), error in zip(batch, errors, strict=True):
                    if written.cancelled():
                        continue
                    if error is None:
                        written.set_result(None)
                    else:
                        written.set_exception(error)
        finally:
            self._writing = None

    async def _on_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _write_batch(
        self, batch: Sequence[tuple[Sequence[Write], object]]
    ) -> list[Exception | None]:
        """Writes commits together; one by one if that fails, so that each gets its own error."""
        groups = [writes for writes, _ in batch]
        error = self._attempt([each for writes in groups for each in writes])
        if error is None or len(groups) == 1:
            return [error] * len(groups)
        return [self._attempt(writes) for writes in groups]

    def _attempt(self, writes: Sequence[Write]) -> Exception | None:
        try:
            self._write(writes)
        except Exception as error:  # noqa: BLE001 - goes to whoever waits for the commit
            return error
        return None

    def _write(self, writes: Sequence[Write]) -> None:
        with self._own_errors():
            if file_identity(self._path) != self._identity:
                raise StoreError(
                    f"the file of the rollouts, {self._path}, was removed or replaced while in use;"
                    " move it back (no copy of it), or restart the router"
                )
            with transaction(self._database):
                self._at(FaultPoint.WRITE_BEGUN)
                for each in writes:
                    self._write_one(each)
                self._at(FaultPoint.EVENTS_WRITTEN)
            self._at(FaultPoint.COMMITTED)

    def _write_one(self, write: Write) -> None:
        execute = self._database.execute
        match write:
            case Put():
                execute(
                    "INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?, ?, ?)",
                    (
                        *(write.rollout.key, to_json(write.rollout)),
                        *(write.successor and to_json(write.successor),),
                        *(write.file, write.file_rollout),
                    ),
                )
                self._at(FaultPoint.ROLLOUT_WRITTEN)
            case PutStatus():
                execute(
                    "INSERT OR REPLACE INTO statuses VALUES (?, ?)",
                    (write.key, msgspec.msgpack.encode(write.status)),
                )
                self._at(FaultPoint.STATUS_WRITTEN)
                for event in write.events:
                    # An event that is there already is a fault of the router, never overwritten.
                    execute(
                        "INSERT INTO history VALUES (?, ?, ?)",
                        (write.key, event.number, msgspec.msgpack.encode(event)),
                    )
                self._write_sample(write)
            case Delete():
                for table in ("rollouts", "statuses", "history", "samples"):
                    execute(f"DELETE FROM {table} WHERE key = ?", (write.key,))  # noqa: S608 - our own tables

    def _write_sample(self, write: PutStatus) -> None:
        execute, key = self._database.execute, write.key
        if any(event.kind is EventKind.STARTED for event in write.events):
            execute("DELETE FROM samples WHERE key = ?", (key,))
        sample = write.sample
        if sample is None:
            return
        rows = execute(
            "SELECT time_s FROM samples WHERE key = ? ORDER BY time_s", (key,)
        ).fetchall()
        times = [time_s for (time_s,) in rows]
        if times and not write.events and not is_due(times[0], times[-1], sample.time_s):
            return
        execute(
            "INSERT OR REPLACE INTO samples VALUES (?, ?, ?)",
            (key, sample.time_s, msgspec.msgpack.encode(sample)),
        )
        for time_s in thinned([*times, sample.time_s]):
            execute("DELETE FROM samples WHERE key = ? AND time_s = ?", (key, time_s))

    def _load(self) -> tuple[Stored, ...]:
        with self._own_errors():
            rows = self._database.execute(
                "SELECT rollout, successor, file, file_rollout, status"
                " FROM rollouts JOIN statuses USING (key) ORDER BY key"
            ).fetchall()
            return tuple(
                Stored(
                    rollout=from_json(rollout),
                    status=msgspec.msgpack.decode(status, type=RolloutStatus),
                    successor=from_json(successor) if successor else None,
                    file=file,
                    file_rollout=file_rollout,
                )
                for rollout, successor, file, file_rollout, status in rows
            )

    def _history(self, key: str, after: int) -> tuple[Event, ...]:
        with self._own_errors():
            rows = self._database.execute(
                "SELECT event FROM history WHERE key = ? AND number > ? ORDER BY number",
                (key, after),
            ).fetchall()
            return tuple(msgspec.msgpack.decode(event, type=Event) for (event,) in rows)

    def _samples(self, key: str) -> tuple[Sample, ...]:
        with self._own_errors():
            rows = self._database.execute(
                "SELECT sample FROM samples WHERE key = ? ORDER BY time_s", (key,)
            ).fetchall()
            return tuple(msgspec.msgpack.decode(sample, type=Sample) for (sample,) in rows)

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        with _own_errors(self._path):
            yield


def _open(path: Path) -> sqlite3.Connection:
    with _own_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        database = connect(path, Durability.MACHINE)
        try:
            _prepare(path, database)
        except BaseException:
            database.close()
            raise
        return database


def _prepare(path: Path, database: sqlite3.Connection) -> None:
    """Creates the schema in a new file, and refuses a file that is not the router's."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and application == 0 and schema_version(database) == 0:
        with transaction(database):
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
        return
    if application != _APPLICATION_ID:
        raise StoreError(f"{path} is another program's file; name another one with --store-file")
    if schema_version(database) != _FORMAT:
        raise StoreError(
            f"{path} is of another version of tidegate; start that version, or move the file away"
            " (the rollouts are forgotten then, and traffic stays as it is)"
        )


@contextlib.contextmanager
def _own_errors(path: Path) -> Iterator[None]:
    """Turns errors of SQLite and of the file system into one that says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        if is_locked(error):
            raise StoreError(
                f"another process has {path} open; only one router can use it: stop the other, or"
                " name another file with --store-file"
            ) from error
        if is_damage(error):
            raise StoreError(_damaged(path, error)) from error
        raise StoreError(
            f"the file of the rollouts, {path}, cannot be used: {error}; make room for it and let"
            " the router write it"
        ) from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreError(_damaged(path, error)) from error
    except OSError as error:
        raise StoreError(
            f"the file of the rollouts, {path}, cannot be used: {error.strerror or error}; make its"
            " folder writable"
        ) from error


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"the file of the rollouts, {path}, is damaged: {error}; restore a copy of it, or move it"
        " away with its -wal (the rollouts are forgotten then, and traffic stays as it is)"
    )
