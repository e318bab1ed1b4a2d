"""The store of traces: one thread that SQLite runs on, so that the event loop never waits for it.

Writes and queries take turns on the thread. So many may wait for it, and no more: who sends spans
is told to come again, which OTLP's exporters do, and who asks is told that it is busy.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import Counter, Gauge

from tidegate.mesh.traces.database import Database
from tidegate.mesh.traces.errors import StoreBusyError, StoreError
from tidegate.mesh.traces.intake import Refusal, TraceLimits, read_batch
from tidegate.mesh.traces.jaeger_json import has_tags
from tidegate.mesh.traces.query import (
    Dependency,
    Operation,
    StoredTrace,
    TraceQuery,
    TraceSummary,
)

__all__ = ["TraceStore"]

_T = TypeVar("_T")

_TAKEN: Final = Counter("tidegate_traces_spans_taken", "Spans that were kept.")
_DUPLICATES: Final = Counter(
    "tidegate_traces_spans_duplicate", "Spans that were there already, since they were sent again."
)
_REFUSED: Final = Counter(
    "tidegate_traces_spans_refused", "Spans that were not kept, by reason.", ("reason",)
)
for _refusal in Refusal:
    # From 0 on, so that the first refusal is a rise.
    _REFUSED.labels(_refusal)
_EVICTED: Final = Counter(
    "tidegate_traces_evicted", "Traces that went to make room for newer ones."
)
_KEPT_TRACES: Final = Gauge("tidegate_traces_kept", "Traces that are kept.")
_KEPT_SPANS: Final = Gauge("tidegate_traces_kept_spans", "Spans that are kept.")
_KEPT_BYTES: Final = Gauge("tidegate_traces_kept_bytes", "Bytes of spans that are kept.")


class TraceStore:
    """The last traces, in a file. An async context manager; its methods are for the event loop.

        async with TraceStore(Path("traces.sqlite")) as store:
            await store.add(request)
            newest = await store.find(TraceQuery(service="vision", limit=1))

    Args:
        path: the file; it is made when it is not there, and set aside when it is damaged.
        limits: how much is kept, and how much anybody may send.
        clock_ns: the time, in nanoseconds since 1970.

    Raises:
        StoreError: on entering: the file cannot be opened, or another process has it open.
    """

    def __init__(
        self,
        path: Path,
        limits: TraceLimits | None = None,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._limits = limits or TraceLimits()
        self._clock_ns = clock_ns
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="traces")
        self._waiting = 0
        self._database: Database | None = None

    async def __aenter__(self) -> Self:
        try:
            self._database = await self._on_thread(partial(Database, self._path, self._limits))
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        self._show_kept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        database, self._database = self._database, None
        if database is not None:
            await asyncio.shield(self._on_thread(database.close))
        self._thread.shutdown(wait=False)

    async def add(self, request: ExportTraceServiceRequest) -> dict[Refusal, int]:
        """Keeps the spans of a request; returns when they are committed.

        Args:
            request: as it came over OTLP.

        Returns:
            How many spans are not kept, by reason.

        Raises:
            StoreBusyError: too many requests wait already.
            StoreError: the file cannot be written.
        """

        def work(database: Database) -> dict[Refusal, int]:
            batch = read_batch(request, self._limits)
            added = database.add(batch.spans, self._clock_ns())
            refused = batch.refused
            if added.full:
                refused[Refusal.TRACE_FULL] += added.full
            _TAKEN.inc(added.taken)
            _DUPLICATES.inc(added.duplicates)
            _EVICTED.inc(added.evicted)
            for reason, count in refused.items():
                _REFUSED.labels(reason).inc(count)
            return dict(refused)

        refused = await self._run(work)
        self._show_kept()
        return refused

    async def services(self) -> tuple[str, ...]:
        """Every service that spans are kept of, in order. Raises as `trace` does."""
        return await self._run(Database.services)

    async def operations(self, service: str) -> tuple[Operation, ...]:
        """Every operation of a service, in order. Raises as `trace` does."""
        return await self._run(lambda database: database.operations(service))

    async def find(self, query: TraceQuery) -> tuple[StoredTrace, ...]:
        """The traces that a query means, the newest first. Raises as `trace` does."""

        def work(database: Database) -> tuple[StoredTrace, ...]:
            traces = map(database.trace, database.find(query, partial(has_tags, query.tags)))
            return tuple(trace for trace in traces if trace is not None)

        return await self._run(work)

    async def summaries(self, query: TraceQuery) -> tuple[TraceSummary, ...]:
        """The same in one line each. Raises as `trace` does."""

        def work(database: Database) -> tuple[TraceSummary, ...]:
            ids = database.find(query, partial(has_tags, query.tags))
            return tuple(found for found in map(database.summary, ids) if found is not None)

        return await self._run(work)

    async def trace(self, trace_id: bytes) -> StoredTrace | None:
        """A trace by its id of sixteen bytes, or None.

        Raises:
            StoreBusyError: too many queries wait already.
            StoreError: the file cannot be read.
        """
        return await self._run(lambda database: database.trace(trace_id))

    async def dependencies(self, start_ns: int, end_ns: int) -> tuple[Dependency, ...]:
        """Calls between services, by spans that began in a time. Raises as `trace` does.

        Args:
            start_ns: begin of the time, in nanoseconds since 1970.
            end_ns: its end.
        """
        return await self._run(lambda database: database.dependencies(start_ns, end_ns))

    async def _run(self, work: Callable[[Database], _T]) -> _T:
        database = self._database
        if database is None:
            raise StoreError("the store of traces is not open")
        if self._waiting >= self._limits.max_waiting:
            raise StoreBusyError(
                f"{self._waiting} requests wait for the store of traces; try again"
            )

        def guarded() -> _T:
            with database.guarded():
                return work(database)

        self._waiting += 1
        job = self._on_thread(guarded)
        # A caller that is cancelled takes its job along, unless it runs already.
        job.add_done_callback(self._ended)
        return await job

    def _ended(self, job: "asyncio.Future[_T]") -> None:
        self._waiting -= 1
        # Who was to hear of a failure may have left.
        if not job.cancelled():
            job.exception()

    def _on_thread(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _show_kept(self) -> None:
        if self._database is not None:
            kept = self._database.kept
            _KEPT_TRACES.set(kept.traces)
            _KEPT_SPANS.set(kept.spans)
            _KEPT_BYTES.set(kept.bytes)
