"""What happens during a change, told as it happens to whoever listens."""

import asyncio
import enum
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

from tidegate.mesh.control.transition import StageKind

__all__ = ["IN_EFFECT", "EventKind", "Events", "TransitionEvent", "in_effect"]

IN_EFFECT: Final = "nothing changes: it is in effect already"
"""The message of a change that was completed before it began."""


class EventKind(enum.Enum):
    """What happened; the words of MeshService."""

    QUEUED = "queued"
    STAGE_STARTED = "stage started"
    PROXY_ACKNOWLEDGED = "proxy acknowledged"
    PROXY_GONE = "proxy gone"
    CLUSTER_HEALTHY = "cluster healthy"
    CLUSTER_DRAINED = "cluster drained"
    STRANDED = "stranded"
    STAGE_DONE = "stage done"
    ROLLING_BACK = "rolling back"
    ROLLED_BACK = "rolled back"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionEvent:
    """Something that happened during a change.

    Attributes:
        transition: the change's id.
        kind: what happened.
        stage: in which stage; ``None`` when it is of the whole change.
        proxy: the proxy's node id, when it is of one.
        subject: the cluster, when it is of one.
        message: more, in words.
        at: when, in seconds since 1970.
    """

    transition: str
    kind: EventKind
    stage: StageKind | None = None
    proxy: str = ""
    subject: str = ""
    message: str = ""
    at: float = field(default_factory=time.time)


def in_effect(transition: str) -> TransitionEvent:
    """The only event of a change that asks for what is in effect."""
    return TransitionEvent(transition=transition, kind=EventKind.COMPLETED, message=IN_EFFECT)


class Events:
    """The events of one change, from its first to its last, for any number of listeners."""

    def __init__(self) -> None:
        self._events: list[TransitionEvent] = []
        self._ended = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    def say(self, event: TransitionEvent) -> None:
        """Tells an event."""
        self._events.append(event)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Says that no event follows.

        Args:
            error: why the change was not made; raised for every listener after the last event.
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
