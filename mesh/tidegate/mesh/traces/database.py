"""The trace database in SQLite: adds, finds and evicts traces.

Traces share no rows, so that a whole trace can be evicted with its spans and their processes. Spans
of one trace arrive late, in any order and from several processes; each is added to the spans that
are there. A late span of an evicted trace starts that trace again with an old start time, and so is
the next to be evicted.

Use this module from one thread, which `store` owns. A crash loses no committed data (SQLite's
write-ahead log).
"""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final, Self

from tidegate.mesh.traces.errors import StoreError
from tidegate.mesh.traces.intake import ReceivedSpan, TraceLimits
from tidegate.mesh.traces.query import (
    Dependency,
    Operation,
    SpanFacts,
    StoredSpan,
    StoredTrace,
    TraceQuery,
    TraceSummary,
    summarise,
)
from tidegate.mesh.traces.sqlite_file import open_file, own_errors, set_aside
from tidegate.runtime.sqlite_file import is_damage, transaction

__all__ = ["AddResult", "Database", "StoredAmount"]

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE traces (
  trace_id BLOB PRIMARY KEY,
  -- Orders traces for eviction: the start time, but not later than the arrival of the first span,
  -- so that a clock that runs ahead does not keep a trace for ever.
  rank_ns INTEGER NOT NULL,
  spans INTEGER NOT NULL,
  bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX traces_by_rank ON traces (rank_ns);
CREATE TABLE processes (
  trace_id BLOB NOT NULL,
  digest BLOB NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (trace_id, digest)
) WITHOUT ROWID;
CREATE TABLE spans (
  trace_id BLOB NOT NULL,
  span_id BLOB NOT NULL,
  parent_id BLOB NOT NULL,
  process BLOB NOT NULL,
  service TEXT NOT NULL,
  operation TEXT NOT NULL,
  kind INTEGER NOT NULL,
  start_ns INTEGER NOT NULL,
  duration_ns INTEGER NOT NULL,
  is_error INTEGER NOT NULL,
  body BLOB NOT NULL,
  -- A client and a server may share a span id, as in Zipkin. A span sent twice is stored once.
  UNIQUE (trace_id, span_id, process)
);
CREATE INDEX spans_by_service ON spans (service, operation, kind);
"""
_INSERT_SPAN: Final = (
    "INSERT INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_INSERT_PROCESS: Final = "INSERT INTO processes VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_UPSERT_TRACE: Final = (
    "INSERT INTO traces VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
    " rank_ns = min(rank_ns, excluded.rank_ns), spans = excluded.spans, bytes = excluded.bytes"
)


@dataclass(frozen=True, slots=True)
class AddResult:
    """The result of adding a batch of spans.

    Attributes:
        taken: Spans that were stored.
        duplicates: Spans that were stored before, because their sender tried again.
        trace_full: Spans that were refused because their trace is full.
        evicted: Traces that were evicted to make room.
    """

    taken: int
    duplicates: int
    trace_full: int
    evicted: int


@dataclass(slots=True)
class StoredAmount:
    """How much is stored.

    Attributes:
        traces: Number of traces.
        spans: Number of spans in all traces.
        bytes: Size of the spans and the processes.
    """

    traces: int = 0
    spans: int = 0
    bytes: int = 0


class Database:
    """An open trace file. Use it from one thread.

    Args:
        path: The file, which is created if it does not exist.
        limits: How much to keep.

    Attributes:
        stored: How much is stored.

    Raises:
        StoreError: The file cannot be opened, or another process has it open.
    """

    def __init__(self, path: Path, limits: TraceLimits) -> None:
        self._path = path
        self._limits = limits
        self.stored = StoredAmount()
        with own_errors(path):
            self._connection = self._open()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[Self]:
        """Handles the errors of each use, and sets a damaged file aside.

        Raises:
            StoreError: The file cannot be read or written, or has just been set aside.
        """
        with own_errors(self._path):
            try:
                yield self
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._connection.close()
                aside = set_aside(self._path, str(error))
                self._connection = self._open()
                raise StoreError(
                    f"{self._path} was damaged ({error}) and was renamed to {aside.name}; try again"
                ) from error

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def add(self, spans: Sequence[ReceivedSpan], now_ns: int) -> AddResult:
        """Adds spans and makes room for them, in one transaction.

        Args:
            spans: Spans of any traces.
            now_ns: The time, in nanoseconds since 1970.
        """
        counts: Counter[str] = Counter()
        before = self.stored
        stored = StoredAmount(before.traces, before.spans, before.bytes)
        by_trace = attrgetter("trace_id")
        with transaction(self._connection):
            for trace_id, group in groupby(sorted(spans, key=by_trace), by_trace):
                counts += self._add_to_trace(trace_id, tuple(group), now_ns, stored)
            evicted = self._make_room(stored)
        self.stored = stored
        return AddResult(counts["taken"], counts["duplicates"], counts["trace_full"], evicted)

    def services(self) -> tuple[str, ...]:
        """Returns every service with stored spans, sorted."""
        rows = self._connection.execute("SELECT DISTINCT service FROM spans ORDER BY service")
        return tuple(service for (service,) in rows)

    def operations(self, service: str) -> tuple[Operation, ...]:
        """Returns every operation of a service, sorted."""
        rows = self._connection.execute(
            "SELECT DISTINCT operation, kind FROM spans WHERE service = ? ORDER BY 1, 2", (service,)
        )
        return tuple(Operation(name, kind) for name, kind in rows)

    def find(
        self, query: TraceQuery, has_tags: Callable[[bytes, bytes], bool]
    ) -> tuple[bytes, ...]:
        """Returns the ids of the traces that match a query, the newest first.

        Args:
            query: The query.
            has_tags: Whether a serialized span and its serialized process have the tags of the
                query. It is called only if the query has tags.
        """
        where, values = _conditions(query)
        if not query.tags:
            rows = self._connection.execute(
                "SELECT trace_id FROM traces WHERE EXISTS"  # noqa: S608  # of constants
                f" (SELECT 1 FROM spans WHERE spans.trace_id = traces.trace_id AND {where})"
                " ORDER BY rank_ns DESC, trace_id DESC LIMIT ?",
                (*values, query.limit),
            )
            return tuple(trace_id for (trace_id,) in rows)
        found: dict[bytes, None] = {}
        # With this order of the join SQLite reads the newest traces first and can stop early.
        for rowid, trace_id in self._connection.execute(
            "SELECT spans.rowid, trace_id FROM traces CROSS JOIN spans USING (trace_id)"  # noqa: S608
            f" WHERE {where} ORDER BY rank_ns DESC, trace_id DESC",
            values,
        ):
            if len(found) >= query.limit:
                break
            if trace_id not in found and has_tags(*self._bodies(rowid)):
                found[trace_id] = None
        return tuple(found)

    def trace(self, trace_id: bytes) -> StoredTrace | None:
        """Returns a trace, or None if it is not stored."""
        rows = self._connection.execute(
            "SELECT process, body FROM spans WHERE trace_id = ? ORDER BY start_ns, rowid",
            (trace_id,),
        )
        spans = tuple(StoredSpan(process, body) for process, body in rows)
        if not spans:
            return None
        processes = self._connection.execute(
            "SELECT digest, body FROM processes WHERE trace_id = ?", (trace_id,)
        )
        return StoredTrace(trace_id, spans, dict(processes))

    def summary(self, trace_id: bytes) -> TraceSummary | None:
        """Returns the summary of a trace, or None if it is not stored."""
        rows = self._connection.execute(
            "SELECT span_id, parent_id, service, operation, start_ns, duration_ns, is_error"
            " FROM spans WHERE trace_id = ? ORDER BY start_ns, rowid",
            (trace_id,),
        )
        facts = [SpanFacts(*row) for row in rows]
        return summarise(trace_id, facts) if facts else None

    def dependencies(self, start_ns: int, end_ns: int) -> tuple[Dependency, ...]:
        """Returns the calls between services, counted from spans that began in a period.

        Args:
            start_ns: Start of the period, in nanoseconds since 1970.
            end_ns: End of the period.
        """
        rows = self._connection.execute(
            "SELECT parent.service, child.service, count(*)"
            " FROM spans AS child JOIN spans AS parent"
            " ON parent.trace_id = child.trace_id AND parent.span_id = child.parent_id"
            " WHERE child.start_ns BETWEEN ? AND ? AND parent.service <> child.service"
            " GROUP BY 1, 2 ORDER BY 1, 2",
            (start_ns, end_ns),
        )
        return tuple(Dependency(*row) for row in rows)

    def _add_to_trace(
        self, trace_id: bytes, spans: Sequence[ReceivedSpan], now_ns: int, stored: StoredAmount
    ) -> Counter[str]:
        execute = self._connection.execute
        row = execute("SELECT spans, bytes FROM traces WHERE trace_id = ?", (trace_id,)).fetchone()
        had_spans, had_bytes = row or (0, 0)
        has_spans, has_bytes = had_spans, had_bytes
        counts: Counter[str] = Counter()
        for span in spans:
            if has_spans >= self._limits.max_spans_per_trace:
                counts["trace_full"] += 1
            elif execute(_INSERT_SPAN, _row(span)).rowcount:
                counts["taken"] += 1
                has_spans += 1
                has_bytes += len(span.body)
                process = span.process
                if execute(_INSERT_PROCESS, (trace_id, process.digest, process.body)).rowcount:
                    has_bytes += len(process.body)
            else:
                counts["duplicates"] += 1
        if counts["taken"]:
            first_ns = min(span.start_ns for span in spans)
            execute(_UPSERT_TRACE, (trace_id, min(first_ns, now_ns), has_spans, has_bytes))
            stored.traces += row is None
            stored.spans += has_spans - had_spans
            stored.bytes += has_bytes - had_bytes
        return counts

    def _make_room(self, stored: StoredAmount) -> int:
        evicted = 0
        while stored.traces > self._limits.max_traces or stored.bytes > self._limits.max_bytes:
            trace_id, spans, size = self._connection.execute(
                "SELECT trace_id, spans, bytes FROM traces ORDER BY rank_ns, trace_id LIMIT 1"
            ).fetchone()
            for table in ("spans", "processes", "traces"):
                self._connection.execute(
                    f"DELETE FROM {table} WHERE trace_id = ?",  # noqa: S608  # of constants
                    (trace_id,),
                )
            stored.traces -= 1
            stored.spans -= spans
            stored.bytes -= size
            evicted += 1
        return evicted

    def _bodies(self, rowid: int) -> tuple[bytes, bytes]:
        bodies: tuple[bytes, bytes] = self._connection.execute(
            "SELECT spans.body, processes.body FROM spans JOIN processes"
            " ON processes.trace_id = spans.trace_id AND digest = process WHERE spans.rowid = ?",
            (rowid,),
        ).fetchone()
        return bodies

    def _open(self) -> sqlite3.Connection:
        connection = open_file(self._path, _SCHEMA, _VERSION)
        row = connection.execute("SELECT count(*), sum(spans), sum(bytes) FROM traces").fetchone()
        self.stored = StoredAmount(*(value or 0 for value in row))
        return connection


def _row(span: ReceivedSpan) -> tuple[object, ...]:
    return (
        *(span.trace_id, span.span_id, span.parent_id, span.process.digest),
        *(span.process.service, span.operation, span.kind),
        *(span.start_ns, span.duration_ns, span.is_error, span.body),
    )


def _conditions(query: TraceQuery) -> tuple[str, list[object]]:
    where = ["spans.start_ns BETWEEN ? AND ?", "duration_ns BETWEEN ? AND ?"]
    values: list[object] = [
        *(query.start_min_ns, query.start_max_ns),
        *(query.duration_min_ns, query.duration_max_ns),
    ]
    for column, value in (("service", query.service), ("operation", query.operation)):
        if value:
            # The plus keeps SQLite from the service index: scanning a trace's few spans is faster.
            where.append(f"+{column} = ?")
            values.append(value)
    return " AND ".join(where), values
