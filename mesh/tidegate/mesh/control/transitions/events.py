"""The events of a transition: listeners follow them, the log and the status keep them."""

import asyncio
import enum
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from prometheus_client import Counter, Histogram

from tidegate.mesh.control.transitions import IN_EFFECT
from tidegate.mesh.control.transitions.plan import StageKind
from tidegate.runtime.logging import get_logger

__all__ = [
    "Emit",
    "EventKind",
    "TransitionEvent",
    "TransitionEvents",
    "TransitionHistory",
    "TransitionState",
    "TransitionStatus",
    "in_effect",
]

_log = get_logger(__name__)

_TRANSITIONS: Final = Counter(
    "tidegate_mesh_transitions_total", "Transitions that have ended, by state.", ("state",)
)
_SECONDS: Final = Histogram(
    "tidegate_mesh_transition_seconds",
    "Time from the start of a transition to its end.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)


class EventKind(enum.Enum):
    """What happened. The names are those of ``TransitionEvent.Kind`` in MeshService."""

    QUEUED = "queued"
    STAGE_STARTED = "stage started"
    PROXY_ACKNOWLEDGED = "proxy acknowledged"
    PROXY_GONE = "proxy gone"
    PROXY_LATE = "proxy late"
    CLUSTER_HEALTHY = "cluster healthy"
    CLUSTER_DRAINED = "cluster drained"
    STRANDED = "stranded"
    STAGE_DONE = "stage done"
    ROLLING_BACK = "rolling back"
    ROLLED_BACK = "rolled back"
    COMPLETED = "completed"


_WARNINGS: Final = frozenset(
    {
        EventKind.PROXY_LATE,
        EventKind.STRANDED,
        EventKind.ROLLING_BACK,
        EventKind.ROLLED_BACK,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionEvent:
    """Something that happened during a transition.

    Attributes:
        transition: The transition's id.
        kind: What happened.
        stage: The stage; ``None`` for an event of the whole transition.
        proxy: The node id of the proxy that the event is about, if any.
        subject: The cluster that the event is about, if any.
        message: More, in words.
        at: When it happened, in seconds since 1970.
    """

    transition: str
    kind: EventKind
    stage: StageKind | None = None
    proxy: str = ""
    subject: str = ""
    message: str = ""
    at: float = field(default_factory=time.time)


class Emit(Protocol):
    """Takes the events of one transition."""

    def __call__(
        self,
        kind: EventKind,
        stage: StageKind | None = None,
        *,
        proxy: str = "",
        subject: str = "",
        message: str = "",
    ) -> None:
        """Takes one event; see `TransitionEvent`."""


def in_effect(transition: str) -> TransitionEvent:
    """The only event of a transition that has nothing to change."""
    return TransitionEvent(transition=transition, kind=EventKind.COMPLETED, message=IN_EFFECT)


class TransitionEvents:
    """The events of one transition, from the first to the last, for any number of listeners."""

    def __init__(self) -> None:
        self._events: list[TransitionEvent] = []
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def add(self, event: TransitionEvent) -> None:
        """Adds an event."""
        self._events.append(event)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Ends the events.

        Args:
            error: Why the change was not made. Every listener gets it after the last event.
        """
        self._ended, self._error = True, error
        self._wake()

    async def __aiter__(self) -> AsyncIterator[TransitionEvent]:
        index = 0
        while True:
            news = self._news
            while index < len(self._events):
                yield self._events[index]
                index += 1
            if self._error is not None:
                raise self._error
            if self._ended:
                return
            await news.wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class TransitionState(enum.Enum):
    """The state of a transition."""

    RUNNING = "running"
    ROLLING_BACK = "rolling back"
    DONE = "done"
    ROLLED_BACK = "rolled back"


for _state in (TransitionState.DONE, TransitionState.ROLLED_BACK):
    # The counters start at 0, so that the first rollback shows as an increase.
    _TRANSITIONS.labels(_state.value)


@dataclass(frozen=True, slots=True)
class TransitionStatus:
    """A transition, as the status shows it.

    Attributes:
        id: Its id.
        description: What it does.
        state: Its state.
        stage: The stage; ``None`` before the first and after the end.
        started_at: When it began, in seconds since 1970.
        ended_at: When it ended; ``None`` until then.
        reason: Why it was rolled back; empty otherwise.
    """

    id: str
    description: str
    state: TransitionState
    stage: StageKind | None
    started_at: float
    ended_at: float | None = None
    reason: str = ""


class TransitionHistory:
    """Logs and counts transitions, and keeps the status of the last two.

    Attributes:
        current: The transition that runs.
        last: The transition that ended last.
    """

    def __init__(self) -> None:
        self.current: TransitionStatus | None = None
        self.last: TransitionStatus | None = None

    def begin(self, id_: str, description: str, stage: StageKind | None) -> None:
        """Takes a transition that begins, or goes on in a stage."""
        self.current = TransitionStatus(
            id_, description, TransitionState.RUNNING, stage, time.time()
        )

    def take(self, event: TransitionEvent) -> None:
        """Takes an event of the current transition."""
        log = _log.warning if event.kind in _WARNINGS else _log.info
        log(
            "change",
            transition=event.transition,
            what=event.kind.value,
            stage=event.stage and event.stage.value,
            proxy=event.proxy or None,
            subject=event.subject or None,
            message=event.message or None,
        )
        assert self.current is not None  # noqa: S101 - events are of the current transition
        status = replace(self.current, stage=event.stage or self.current.stage)
        match event.kind:
            case EventKind.ROLLING_BACK:
                status = replace(status, state=TransitionState.ROLLING_BACK, reason=event.message)
            case EventKind.ROLLED_BACK | EventKind.COMPLETED:
                done = event.kind is EventKind.COMPLETED
                self.last = replace(
                    status,
                    state=TransitionState.DONE if done else TransitionState.ROLLED_BACK,
                    stage=None,
                    ended_at=event.at,
                    reason="" if done else event.message,
                )
                self.current = None
                _TRANSITIONS.labels(self.last.state.value).inc()
                _SECONDS.observe(event.at - status.started_at)
                return
        self.current = status
