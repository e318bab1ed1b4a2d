"""Which events are written, and which only counted: a function of what happened and of the time.

The first time that something happens to an object, an Event is created. When it happens again, the
Event becomes a series, and its count is written from time to time. A series ends when it has been
idle for a while. Events that differ each time are limited for each object, as in client-go: some at
once, and then one from time to time.
"""

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from tidegate.kube.queue_policy import TokenBucket
from tidegate.kube.resources import KubeObject, Resource

__all__ = ["EventSeries", "Happening", "Occurrence", "SeriesSettings", "Severity", "Write"]


class Severity(enum.Enum):
    """Whether something is as it should be."""

    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happens to an object, once or again and again.

    Attributes:
        api_version: The object's.
        kind: The object's.
        namespace: The object's.
        name: The object's.
        uid: The object's.
        severity: Whether it is as it should be.
        reason: Why, as one word, such as ``ForeignChange``.
        action: What the controller did, as one word, such as ``Pause``.
        note: What happened, for people.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    severity: Severity
    reason: str
    action: str
    note: str

    @classmethod
    def to(
        cls,
        resource: Resource[Any],
        regarding: KubeObject,
        *,
        severity: Severity,
        reason: str,
        action: str,
        note: str,
    ) -> "Happening":
        """What happens to an object of a resource."""
        of = regarding.metadata
        return cls(
            *(resource.api_version, resource.kind, of.namespace, of.name, of.uid),
            *(severity, reason, action, note),
        )


@dataclass(slots=True)
class Occurrence:
    """A series of the same happening.

    Attributes:
        happening: What happens.
        first_s: When it happened first.
        last_s: When it happened last.
        count: How often.
        written_count: The count that was written.
        written_s: When it was written.
        name: The name of its Event; empty before it was created.
    """

    happening: Happening
    first_s: float
    last_s: float
    count: int = 1
    written_count: int = 0
    written_s: float = float("-inf")
    name: str = ""


class Write(enum.Enum):
    """What is to be written now."""

    CREATE = "create"
    COUNT = "count"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class SeriesSettings:
    """When events are written.

    Attributes:
        refresh_s: Between writes of a growing count.
        idle_s: After how long without a repetition a series ends.
        burst: How many different events of one object may come at once.
        one_in_s: Then one comes in this time.
        series: How many series are remembered.
    """

    refresh_s: float = 300.0
    idle_s: float = 360.0
    burst: int = 25
    one_in_s: float = 300.0
    series: int = 4096


@dataclass(slots=True)
class EventSeries:
    """What happened lately.

    Attributes:
        settings: When events are written.
        limited: How many events were left out because their object had too many.
    """

    settings: SeriesSettings = field(default_factory=SeriesSettings)
    limited: int = 0
    _running: OrderedDict[Happening, Occurrence] = field(default_factory=OrderedDict)
    _limits: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)

    def happened(self, happening: Happening, now_s: float) -> tuple[Write, Occurrence]:
        """Takes note of something, and says what to write of it."""
        known = self._running.get(happening)
        if known is not None and now_s - known.last_s < self.settings.idle_s:
            known.count += 1
            known.last_s = now_s
            return (Write.COUNT if self._is_due(known, now_s) else Write.NOTHING), known
        fresh = Occurrence(happening, now_s, now_s)
        if not self._limit(happening.uid).takes(now_s):
            self.limited += 1
            return Write.NOTHING, fresh
        self._running.pop(happening, None)
        self._running[happening] = fresh
        while len(self._running) > self.settings.series:
            self._running.popitem(last=False)
        return Write.CREATE, fresh

    def due(self, now_s: float) -> list[Occurrence]:
        """The series whose count is to be written now. Series that ended are forgotten."""
        due = []
        for happening, known in list(self._running.items()):
            ended = now_s - known.last_s >= self.settings.idle_s
            if known.count > known.written_count > 0 and (ended or self._is_due(known, now_s)):
                due.append(known)
            if ended:
                del self._running[happening]
        return due

    def _is_due(self, known: Occurrence, now_s: float) -> bool:
        # The second time is told at once: a reader sees that it goes on.
        return known.count == 2 or now_s - known.written_s >= self.settings.refresh_s

    def _limit(self, uid: str) -> TokenBucket:
        limit = self._limits.pop(uid, None)
        if limit is None:
            limit = TokenBucket(1.0 / self.settings.one_in_s, self.settings.burst)
        self._limits[uid] = limit
        while len(self._limits) > self.settings.series:
            self._limits.popitem(last=False)
        return limit
