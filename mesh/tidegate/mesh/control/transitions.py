"""Changes of objects, one at a time: written down, performed, and remembered.

A change that has begun belongs to nobody: whoever asked for it may leave, and it goes on. Only the
controller's own end interrupts it, and then it goes on at the next start.
"""

import asyncio
import enum
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from prometheus_client import Counter, Histogram

from tidegate.mesh.ads import Distribution
from tidegate.mesh.control.errors import RolledBackError, StateError, UnexpectedChangeError
from tidegate.mesh.control.events import EventKind, Events, TransitionEvent
from tidegate.mesh.control.journal import Begun, Journal, TextChange
from tidegate.mesh.control.performing import Performer
from tidegate.mesh.control.serving import Proposal, Serving
from tidegate.mesh.control.transition import StageKind
from tidegate.runtime.logging import get_logger

__all__ = ["TransitionState", "TransitionStatus", "Transitions"]

_log = get_logger(__name__)

_TRANSITIONS = Counter(
    "tidegate_mesh_transitions_total", "Changes of the mesh that have ended, by how.", ("state",)
)
# How often the end of a change is tried to be written while the state file cannot be.
_WRITE_AGAIN_S: Final = 0.5
_SECONDS = Histogram(
    "tidegate_mesh_transition_seconds",
    "From a change's begin to its end.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)


class TransitionState(enum.Enum):
    """How a change is."""

    RUNNING = "running"
    ROLLING_BACK = "rolling back"
    DONE = "done"
    ROLLED_BACK = "rolled back"


for _state in (TransitionState.DONE, TransitionState.ROLLED_BACK):
    # From 0 on, so that the first change that is taken back is a rise.
    _TRANSITIONS.labels(_state.value)


@dataclass(frozen=True, slots=True)
class TransitionStatus:
    """A change, as the status shows it.

    Attributes:
        id: its id.
        description: what it does.
        state: how it is.
        stage: where it is; ``None`` before its first stage and when it has ended.
        started_at: when it began, in seconds since 1970.
        ended_at: when it ended; ``None`` until then.
        reason: why it was taken back; empty otherwise.
    """

    id: str
    description: str
    state: TransitionState
    stage: StageKind | None
    started_at: float
    ended_at: float | None = None
    reason: str = ""


class Transitions:
    """Makes changes.

    Args:
        distribution: knows the proxies.
        serving: serves the change.
        journal: remembers it.
        performer: performs it.

    Attributes:
        current: the change that is being made.
        last: the change that ended last.
        unwritten: why the end of the current change cannot be written; empty when it can.
    """

    def __init__(
        self,
        distribution: Distribution,
        serving: Serving,
        journal: Journal,
        performer: Performer,
    ) -> None:
        self._distribution = distribution
        self._serving = serving
        self._journal = journal
        self._performer = performer
        self._turn = asyncio.Lock()
        self.current: TransitionStatus | None = None
        self.last: TransitionStatus | None = None
        self._queued = 0
        self.unwritten = ""

    @property
    def waiting(self) -> int:
        """How many changes are to be made and are not begun, one that was interrupted included."""
        return self._queued + (self._turn.locked() and self.current is None)

    @property
    def busy(self) -> bool:
        """Whether a change is being made or prepared."""
        return self._turn.locked()

    @asynccontextmanager
    async def turn(self, events: Events) -> AsyncIterator[str]:
        """Waits until no other change is being made; none is while the context is open.

        Args:
            events: told that the change waits.

        Yields:
            The id for the change.
        """
        if self.unwritten:
            raise StateError(f"no change can begin: {self.unwritten}")
        id_ = uuid.uuid4().hex[:8]
        self._queued += 1
        try:
            if self._turn.locked():
                events.say(TransitionEvent(transition=id_, kind=EventKind.QUEUED))
            await self._turn.acquire()
        finally:
            self._queued -= 1
        try:
            yield id_
        finally:
            self._turn.release()

    async def make(
        self,
        id_: str,
        description: str,
        files: Sequence[TextChange],
        proposal: Proposal,
        events: Events,
        *,
        deadline_s: float,
    ) -> None:
        """Makes a change, in one's turn.

        Args:
            id_: the id of the turn.
            description: what it does.
            files: the files whose text in effect changes.
            proposal: the objects with it.
            events: told what happens.
            deadline_s: how long each stage may take.

        Raises:
            RolledBackError: it could not be completed and was taken back.
            StateError: the journal could not begin it; nothing has changed.
        """
        begun = Begun(
            id=id_,
            description=description,
            files=tuple(files),
            deadline_s=deadline_s,
            proxies=frozenset(each.proxy.node for each in self._distribution.proxies()),
        )
        self._journal.begin(begun)
        try:
            self._serving.enter(proposal)
        except Exception as error:
            _log.exception("a change ends unexpectedly", transition=id_)
            self._serving.leave(made=False)
            await self._end(begun, made=False)
            raise UnexpectedChangeError(_unexpected(error)) from error
        await self.go_on(begun, proposal, events)

    async def go_on(self, begun: Begun, proposal: Proposal, events: Events) -> None:
        """Makes a change that was begun, from where it was. See `make`."""
        self.current = TransitionStatus(
            begun.id, begun.description, TransitionState.RUNNING, begun.reached, time.time()
        )
        _log.info(
            "change begins",
            transition=begun.id,
            description=begun.description,
            reached=begun.reached,
            stages=[each.kind.value for each in proposal.stages],
        )

        def say(event: TransitionEvent) -> None:
            self._note(event)
            events.say(event)

        try:
            await self._performer.perform(begun, proposal, say)
        except RolledBackError as error:
            await self._end(begun, made=False)
            say(
                TransitionEvent(
                    transition=begun.id, kind=EventKind.ROLLED_BACK, message=error.reason
                )
            )
            raise
        except Exception as error:
            _log.exception("a change ends unexpectedly", transition=begun.id)
            reason = _unexpected(error)
            self._serving.reach(None)
            self._serving.leave(made=False)
            await self._end(begun, made=False)
            say(TransitionEvent(transition=begun.id, kind=EventKind.ROLLED_BACK, message=reason))
            raise UnexpectedChangeError(reason) from error
        await self._end(begun, made=True)
        attached = any(self._distribution.proxies())
        message = "" if attached else "no proxy is attached; those that come get it"
        say(TransitionEvent(transition=begun.id, kind=EventKind.COMPLETED, message=message))

    async def _end(self, begun: Begun, *, made: bool) -> None:
        """Writes the end down, however long that takes: only what is written has ended.

        Until then the change is shown as running and no other begins. A controller that is killed
        meanwhile finds the change in its journal and goes on with it, and nobody was told its end.
        """
        try:
            while True:
                try:
                    self._journal.end(begun.files, made=made)
                except StateError as error:
                    if not self.unwritten:
                        _log.warning("the end of a change cannot be written", error=str(error))
                    self.unwritten = str(error)
                    await asyncio.sleep(_WRITE_AGAIN_S)
                else:
                    return
        finally:
            self.unwritten = ""

    def _note(self, event: TransitionEvent) -> None:
        log = _log.warning if event.kind in _TROUBLE else _log.info
        log(
            "change",
            transition=event.transition,
            what=event.kind.value,
            stage=event.stage and event.stage.value,
            proxy=event.proxy or None,
            subject=event.subject or None,
            message=event.message or None,
        )
        assert self.current is not None  # noqa: S101 - events are of the current change
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


_TROUBLE = frozenset({EventKind.STRANDED, EventKind.ROLLING_BACK, EventKind.ROLLED_BACK})


def _unexpected(error: Exception) -> str:
    return f"a fault of the controller, taken back; see its log: {error!r}"
