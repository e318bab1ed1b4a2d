"""Tells people what happens to objects, as Events of `events.k8s.io/v1`.

    async with EventRecorder.opened(client, controller="tidegate.dev/router", instance=pod) as to:
        to.record(Happening.to(ROLLOUTS, rollout, severity=Severity.WARNING, reason=..., ...))

Recording never waits and never fails: Events are for people, and no decision may hang on them. They
wait in a queue of bounded length for the one task that writes them.
"""

import asyncio
import contextlib
import datetime as dt
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final, Self

from tidegate.kube.backoff import Backoff
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError, NotFoundError, ThrottledError, UnreachableError
from tidegate.kube.event_series import (
    EventSeries,
    Happening,
    Occurrence,
    SeriesSettings,
    Severity,
    Write,
)
from tidegate.kube.resources import EVENTS
from tidegate.runtime.logging import get_logger

__all__ = ["EventRecorder", "Happening", "Severity"]

_log = get_logger(__name__)

_QUEUED: Final = 1000
_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(first_s=0.5, most_s=8.0)
_LOOK_S: Final = 30.0
# What is queued at the end gets so long.
_FLUSH_S: Final = 1.0
# Kubernetes' limits, in bytes.
_NOTE_BYTES: Final = 1024
_WORD_BYTES: Final = 128
_NAME_BYTES: Final = 253


class EventRecorder:
    """Writes Events. Open it with `opened`.

    Args:
        client: Calls the server.
        controller: Who tells, as a qualified name such as ``tidegate.dev/router``.
        instance: Which replica tells.
        settings: When repeated events are written.

    Attributes:
        dropped: How many Events were not written: the queue was full, or the server refused them.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        controller: str,
        instance: str,
        settings: SeriesSettings | None = None,
    ) -> None:
        self.dropped = 0
        self._client = client
        self._controller = controller
        self._instance = instance
        self._series = EventSeries(settings or SeriesSettings())
        self._queue: deque[tuple[Write, Occurrence]] = deque()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._numbers = time.time_ns()

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(
        cls,
        client: KubeClient,
        *,
        controller: str,
        instance: str,
        settings: SeriesSettings | None = None,
    ) -> AsyncIterator[Self]:
        """Opens a recorder; at the end it tries for a second to write what is queued."""
        recorder = cls(client, controller=controller, instance=instance, settings=settings)
        writing = asyncio.create_task(recorder._write_all())
        try:
            yield recorder
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await recorder.flushed()
        finally:
            writing.cancel()
            await asyncio.wait({writing})
            if not writing.cancelled():
                writing.result()

    @property
    def limited(self) -> int:
        """How many Events were left out because their object had too many."""
        return self._series.limited

    def record(self, happening: Happening) -> None:
        """Tells of something. It never waits and never fails."""
        write, occurrence = self._series.happened(happening, _now_s())
        if write is not Write.NOTHING:
            self._enqueue(write, occurrence)

    async def flushed(self) -> None:
        """Waits until nothing is queued."""
        while self._queue or not self._idle.is_set():
            await self._idle.wait()

    def _enqueue(self, write: Write, occurrence: Occurrence) -> None:
        if len(self._queue) >= _QUEUED:
            self.dropped += 1
            return
        self._queue.append((write, occurrence))
        self._idle.clear()
        self._changed.set()

    async def _write_all(self) -> None:
        while True:
            while self._queue:
                write, occurrence = self._queue.popleft()
                await self._write(write, occurrence)
            self._idle.set()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._changed.wait()
            for occurrence in self._series.due(_now_s()):
                self._enqueue(Write.COUNT, occurrence)

    async def _write(self, write: Write, occurrence: Occurrence) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if write is Write.CREATE or not occurrence.name:
                    await self._create(occurrence)
                else:
                    await self._count(occurrence)
            except (ThrottledError, UnreachableError) as error:
                failure: KubeError = error
            except KubeError as error:
                failure = error
                break
            else:
                return
            if attempt < _ATTEMPTS:
                draw = random.random()  # noqa: S311  (spreads clients, hides nothing)
                await asyncio.sleep(max(_BACKOFF.delay_s(attempt, draw), failure.retry_after_s))
        self.dropped += 1
        _log.warning(
            "an event is not written", reason=occurrence.happening.reason, error=str(failure)
        )

    async def _create(self, occurrence: Occurrence) -> None:
        happening = occurrence.happening
        self._numbers = max(self._numbers + 1, time.time_ns())
        suffix = f".{self._numbers:x}"
        name = happening.name[: _NAME_BYTES - len(suffix)] + suffix
        namespace = happening.namespace or "default"
        count = occurrence.count
        body: dict[str, Any] = {
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _wall_time(occurrence.first_s),
            "type": happening.severity.value,
            "reason": _cut(happening.reason, _WORD_BYTES),
            "action": _cut(happening.action, _WORD_BYTES),
            "note": _cut(happening.note, _NOTE_BYTES),
            "reportingController": self._controller,
            "reportingInstance": _cut(self._instance, _WORD_BYTES),
            "regarding": {
                "apiVersion": happening.api_version,
                "kind": happening.kind,
                "namespace": happening.namespace,
                "name": happening.name,
                "uid": happening.uid,
            },
        }
        if count > 1:
            body["series"] = _series(occurrence)
        await self._client.create(EVENTS, body)
        occurrence.name = name
        occurrence.written_count, occurrence.written_s = count, _now_s()

    async def _count(self, occurrence: Occurrence) -> None:
        namespace = occurrence.happening.namespace or "default"
        count = occurrence.count
        patch = {"series": _series(occurrence)}
        try:
            await self._client.merge(
                EVENTS, occurrence.name, namespace, patch, manager=self._controller
            )
        except NotFoundError:  # the server keeps Events for an hour only
            await self._create(occurrence)
            return
        occurrence.written_count, occurrence.written_s = count, _now_s()


def _series(occurrence: Occurrence) -> dict[str, Any]:
    return {"count": occurrence.count, "lastObservedTime": _wall_time(occurrence.last_s)}


def _now_s() -> float:
    return time.monotonic()


def _wall_time(at_s: float) -> str:
    ago = dt.timedelta(seconds=_now_s() - at_s)
    return (dt.datetime.now(dt.UTC) - ago).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cut(text: str, most_bytes: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= most_bytes else encoded[:most_bytes].decode(errors="ignore")
