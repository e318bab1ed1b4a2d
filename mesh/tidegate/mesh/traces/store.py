"""The trace store: runs SQLite on one thread, so that the event loop never waits for it.

Writes and queries take turns on the thread. The queue for it is bounded. When the queue is full, a
sender of spans is asked to retry, which OTLP's exporters do, and a query fails with a busy error.
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

_TAKEN: Final = Counter("tidegate_traces_spans_taken", "Spans that were stored.")
_DUPLICATES: Final = Counter(
    "tidegate_traces_spans_duplicate", "Spans that were stored before and were sent again."
)
_REFUSED: Final = Counter(
    "tidegate_traces_spans_refused", "Spans that were not stored, by reason.", ("reason",)
)
for _refusal in Refusal:
    # Start each series at 0, so that `rate()` sees the first event.
    _REFUSED.labels(_refusal)
_EVICTED: Final = Counter("tidegate_traces_evicted", "Traces that were evicted for newer ones.")
_STORED_TRACES: Final = Gauge("tidegate_traces_kept", "Stored traces.")
_STORED_SPANS: Final = Gauge("tidegate_traces_kept_spans", "Stored spans.")
_STORED_BYTES: Final = Gauge("tidegate_traces_kept_bytes", "Bytes of stored spans.")


class TraceStore:
    """The newest traces, in a file. An async context manager, used from the event loop.

        async with TraceStore(Path("traces.sqlite")) as store:
            await store.add(request)
            newest = await store.find(TraceQuery(service="vision", limit=1))

    Args:
        path: The file. It is created if it does not exist, and set aside if it is damaged.
        limits: How much to keep, and how much a sender may send.
        clock_ns: Returns the time, in nanoseconds since 1970.

    Raises:
        StoreError: On entering, if the file cannot be opened or another process has it open.
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
        self._update_gauges()
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
        """Stores the spans of a request. Returns when they are committed.

        Args:
            request: The OTLP request.

        Returns:
            The number of spans that were not stored, by reason.

        Raises:
            StoreBusyError: Too many requests wait already.
            StoreError: The file cannot be written.
        """

        def work(database: Database) -> dict[Refusal, int]:
            batch = read_batch(request, self._limits)
            added = database.add(batch.spans, self._clock_ns())
            refused = batch.refused
            if added.trace_full:
                refused[Refusal.TRACE_FULL] += added.trace_full
            _TAKEN.inc(added.taken)
            _DUPLICATES.inc(added.duplicates)
            _EVICTED.inc(added.evicted)
            for reason, count in refused.items():
                _REFUSED.labels(reason).inc(count)
            return dict(refused)

        refused = await self._run(work)
        self._update_gauges()
        return refused

    async def services(self) -> tuple[str, ...]:
        """Returns every service with stored spans, sorted. Raises as `trace` does."""
        return await self._run(Database.services)

    async def operations(self, service: str) -> tuple[Operation, ...]:
        """Returns every operation of a service, sorted. Raises as `trace` does."""
        return await self._run(lambda database: database.operations(service))

    async def find(self, query: TraceQuery) -> tuple[StoredTrace, ...]:
        """Returns the traces that match a query, the newest first. Raises as `trace` does."""

        def work(database: Database) -> tuple[StoredTrace, ...]:
            traces = map(database.trace, database.find(query, partial(has_tags, query.tags)))
            return tuple(trace for trace in traces if trace is not None)

        return await self._run(work)

    async def summaries(self, query: TraceQuery) -> tuple[TraceSummary, ...]:
        """Returns the summaries of these traces. Raises as `trace` does."""

        def work(database: Database) -> tuple[TraceSummary, ...]:
            ids = database.find(query, partial(has_tags, query.tags))
            return tuple(found for found in map(database.summary, ids) if found is not None)

        return await self._run(work)

    async def trace(self, trace_id: bytes) -> StoredTrace | None:
        """Returns a trace by its id of sixteen bytes, or None.

        Raises:
            StoreBusyError: Too many queries wait already.
            StoreError: The file cannot be read.
        """
        return await self._run(lambda database: database.trace(trace_id))

    async def dependencies(self, start_ns: int, end_ns: int) -> tuple[Dependency, ...]:
        """Returns the calls between services in a period. Raises as `trace` does.

        Args:
            start_ns: Start of the period, in nanoseconds since 1970.
            end_ns: End of the period.
        """
        return await self._run(lambda database: database.dependencies(start_ns, end_ns))

    async def _run(self, work: Callable[[Database], _T]) -> _T:
        database = self._database
        if database is None:
            raise StoreError("the trace store is not open")
        if self._waiting >= self._limits.max_waiting:
            raise StoreBusyError(f"{self._waiting} requests wait for the trace store; try again")

        def guarded() -> _T:
            with database.guarded():
                return work(database)

        self._waiting += 1
        job = self._on_thread(guarded)
        # Cancelling the caller cancels its job, unless the job runs already.
        job.add_done_callback(self._job_ended)
        return await job

    def _job_ended(self, job: "asyncio.Future[_T]") -> None:
        self._waiting -= 1
        # Read the exception: the caller that would report it may be gone.
        if not job.cancelled():
            job.exception()

    def _on_thread(self, work: Callable[[], _T]) -> "asyncio.Future[_T]":
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _update_gauges(self) -> None:
        if self._database is not None:
            stored = self._database.stored
            _STORED_TRACES.set(stored.traces)
            _STORED_SPANS.set(stored.spans)
            _STORED_BYTES.set(stored.bytes)
