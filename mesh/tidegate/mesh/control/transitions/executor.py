"""Executes transitions, one at a time: stage by stage to the end, or back.

The executor writes each step to the journal before it acts on it. Its task may be cancelled at any
moment. The transition then stays in the journal as far as it was, and goes on from there at the
controller's next start. A transition does not depend on its caller: a caller may leave, and the
transition goes on.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.ads import Distribution
from tidegate.mesh.control.configuration.journal import Journal, PendingTransition
from tidegate.mesh.control.errors import RolledBackError, StateError, UnexpectedChangeError
from tidegate.mesh.control.served_configuration import ProposedChange, ServedConfiguration
from tidegate.mesh.control.transitions.events import (
    Emit,
    EventKind,
    TransitionEvent,
    TransitionEvents,
    TransitionHistory,
)
from tidegate.mesh.control.transitions.gates import GateError, StageGates
from tidegate.mesh.control.transitions.plan import Reached, Stage, StageKind, keys_of, wanted
from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType
from tidegate.runtime.logging import get_logger

__all__ = ["Terms", "TransitionExecutor"]

_log = get_logger(__name__)

# How often the executor tries to write the end of a transition while the state file refuses it.
_RETRY_WRITE_S: Final = 0.5

# A rollback mostly follows a proxy that does not answer; it does not wait as long once more.
_ROLLBACK_DEADLINE_S: Final = 5.0

# How long a change that gives way goes on, and its rollback waits, while an urgent one waits.
_GIVE_WAY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a change does about proxies that do not answer.

    Attributes:
        deadline_s: How long each stage may take.
        keep: Whether its routes stay in force where they were acknowledged by the deadline. Such a
            change is urgent: one that gives way makes room for it.
        gives_way: Whether it is rolled back while an urgent change waits.
    """

    deadline_s: float
    keep: bool = False
    gives_way: bool = False


class TransitionExecutor:
    """Executes transitions.

    Args:
        distribution: Tells which proxies are connected.
        served: Serves the stages.
        journal: Keeps how far a transition is.
        gates: Waits after each stage.

    Attributes:
        history: The current and the last transition.
        unwritten: Why the end of the current transition cannot be written; empty if it can.
    """

    def __init__(
        self,
        distribution: Distribution,
        served: ServedConfiguration,
        journal: Journal,
        gates: StageGates,
    ) -> None:
        self._distribution = distribution
        self._served = served
        self._journal = journal
        self._gates = gates
        self._turn = asyncio.Lock()
        self._queued = 0
        self._urgent = 0
        # Ends the wait for the current gate of a change that gives way.
        self._patience: asyncio.Timeout | None = None
        self.history = TransitionHistory()
        self.unwritten = ""

    @property
    def waiting(self) -> int:
        """How many transitions have not begun, an interrupted one included."""
        return self._queued + (self._turn.locked() and self.history.current is None)

    @property
    def busy(self) -> bool:
        """Whether a transition runs or is prepared."""
        return self._turn.locked()

    @asynccontextmanager
    async def turn(self, events: TransitionEvents, *, urgent: bool = False) -> AsyncIterator[str]:
        """Waits until no other transition runs; none does while the context is open.

        Args:
            events: Get an event if the transition has to wait.
            urgent: Whether transitions that give way make room for it.

        Yields:
            The id for the transition.

        Raises:
            StateError: The end of the current transition cannot be written.
        """
        if self.unwritten:
            raise StateError(f"no change can begin: {self.unwritten}")
        id_ = uuid.uuid4().hex[:8]
        self._queued += 1
        self._urgent += urgent
        try:
            if self._turn.locked():
                events.add(TransitionEvent(transition=id_, kind=EventKind.QUEUED))
            if urgent:
                self._hurry()
            await self._turn.acquire()
        finally:
            self._queued -= 1
            self._urgent -= urgent
        try:
            yield id_
        finally:
            self._turn.release()

    async def execute(
        self,
        id_: str,
        description: str,
        change: ProposedChange,
        events: TransitionEvents,
        terms: Terms,
    ) -> None:
        """Executes a change. Call it inside of `turn`.

        Args:
            id_: The id that `turn` gave.
            description: What the change does.
            change: The change.
            events: Get what happens.
            terms: What the change does about proxies that do not answer.

        Raises:
            RolledBackError: The change could not be completed and was rolled back.
            StateError: The journal could not begin the change; nothing has changed.
            UnexpectedChangeError: A fault of the controller ended the change.
        """
        pending = PendingTransition(
            id=id_,
            description=description,
            files=change.files,
            deadline_s=terms.deadline_s,
            keep=terms.keep,
            proxies=frozenset(each.proxy.node for each in self._distribution.proxies()),
        )
        self._journal.begin(pending)
        try:
            self._served.enter(change)
        except Exception as error:
            _log.exception("a change ends unexpectedly", transition=id_)
            self._served.leave(made=False)
            await self._end(pending, made=False)
            raise UnexpectedChangeError(_unexpected(error)) from error
        await self.resume(pending, change, events, gives_way=terms.gives_way)

    async def resume(
        self,
        pending: PendingTransition,
        change: ProposedChange,
        events: TransitionEvents,
        *,
        gives_way: bool = False,
    ) -> None:
        """Executes a pending transition from where it was. See `execute`."""
        late: dict[str, None] = {}
        self.history.begin(pending.id, pending.description, pending.reached)
        _log.info(
            "change begins",
            transition=pending.id,
            description=pending.description,
            reached=pending.reached,
            stages=[each.kind.value for each in change.stages],
        )

        def emit(
            kind: EventKind,
            stage: StageKind | None = None,
            *,
            proxy: str = "",
            subject: str = "",
            message: str = "",
        ) -> None:
            event = TransitionEvent(
                transition=pending.id,
                kind=kind,
                stage=stage,
                proxy=proxy,
                subject=subject,
                message=message,
            )
            self.history.take(event)
            events.add(event)
            if kind is EventKind.PROXY_LATE:
                late[proxy] = None

        try:
            await self._run(pending, change, emit, gives_way=gives_way)
        except RolledBackError as error:
            await self._end(pending, made=False)
            emit(EventKind.ROLLED_BACK, message=error.reason)
            raise
        except Exception as error:
            _log.exception("a change ends unexpectedly", transition=pending.id)
            self._served.reach(None)
            self._served.leave(made=False)
            await self._end(pending, made=False)
            emit(EventKind.ROLLED_BACK, message=_unexpected(error))
            raise UnexpectedChangeError(_unexpected(error)) from error
        await self._end(pending, made=True)
        attached = any(self._distribution.proxies())
        message = "" if attached else "no proxy is attached; those that come get it"
        if late:
            message = f"not yet in {', '.join(late)}, which went on with what they had"
        emit(EventKind.COMPLETED, message=message)

    async def _run(
        self, pending: PendingTransition, change: ProposedChange, emit: Emit, *, gives_way: bool
    ) -> None:
        """Goes forward through the stages, and back if one fails.

        Raises:
            RolledBackError: A stage failed, and the transition was rolled back.
        """
        if pending.going_back:
            failed = pending.reached or StageKind.CLUSTERS
            cause: Exception = GateError(pending.reason)
        else:
            try:
                failure = await self._forward(pending, change, emit, gives_way=gives_way)
            except Exception as error:
                self._write_rollback(f"unexpected: {error!r}")
                await self._back(pending, change, emit)
                self._served.leave(made=False)
                raise
            if failure is None:
                self._served.leave(made=True)
                return
            failed, cause = failure
        await self._back(pending, change, emit)
        self._served.leave(made=False)
        raise RolledBackError(failed, str(cause)) from cause

    async def _forward(
        self, pending: PendingTransition, change: ProposedChange, emit: Emit, *, gives_way: bool
    ) -> tuple[StageKind, Exception] | None:
        """Goes through the stages that are left.

        Returns:
            ``None`` if all were completed, else the stage that failed and why.
        """
        order = list(StageKind)
        for stage in change.stages:
            if pending.reached and order.index(stage.kind) < order.index(pending.reached):
                continue
            try:
                self._journal.reach(stage.kind)
                self._served.reach(stage.kind)
                emit(EventKind.STAGE_STARTED, stage.kind, message=_amount(stage))
                async with self._giving_way(gives_way):
                    await self._gates.wait(stage, pending.deadline_s, emit, keep=pending.keep)
            except (GateError, StateError) as failure:
                reason = str(failure)
                # Report a rollback only once the journal has it. Otherwise a restart after a crash
                # would continue the transition.
                if self._write_rollback(reason):
                    emit(EventKind.ROLLING_BACK, stage.kind, message=reason)
                return stage.kind, failure
            emit(EventKind.STAGE_DONE, stage.kind)
        return None

    @asynccontextmanager
    async def _giving_way(self, gives_way: bool) -> AsyncIterator[None]:
        """Ends the wait in it with a GateError once an urgent change has waited for a while."""
        if not gives_way:
            yield
            return
        try:
            async with asyncio.timeout(_GIVE_WAY_S if self._urgent else None) as self._patience:
                try:
                    yield
                finally:
                    self._patience = None
        except TimeoutError:
            raise GateError("it gave way to an urgent change") from None

    def _hurry(self) -> None:
        """Brings the end of the current wait forward, if the change gives way."""
        patience = self._patience
        if patience is not None and patience.when() is None:
            patience.reschedule(asyncio.get_running_loop().time() + _GIVE_WAY_S)

    async def _back(self, pending: PendingTransition, change: ProposedChange, emit: Emit) -> None:
        """Undoes the stages that were reached, and waits for acknowledgement of each."""
        longest_s = _GIVE_WAY_S if self._urgent else _ROLLBACK_DEADLINE_S
        deadline_s = min(pending.deadline_s, longest_s)
        while (undone := self._served.reached) is not None:
            if undone is StageKind.CLUSTERS:
                await self._gates.drained(self._new_clusters(change), None, emit)
            keys = self._different_keys(change, undone, undone.before)
            try:
                self._journal.reach(undone.before)
            except StateError as error:
                # Nobody hears of the end before it is written.
                _log.warning("rolled back without the state file", error=str(error))
            self._served.reach(undone.before)
            await self._gates.wait_undone(undone, keys, deadline_s)

    def _different_keys(
        self, change: ProposedChange, one: Reached, other: Reached
    ) -> Mapping[ProxyKind, Collection[ResourceKey]]:
        """The names under which two stages want different resources."""
        before, after = self._served.compiled.resources, change.compiled.resources
        keys: dict[ProxyKind, list[ResourceKey]] = {}
        for proxy_kind, difference in change.changes.items():
            for key in keys_of(difference):
                old, new = before[proxy_kind].get(key), after[proxy_kind].get(key)
                if wanted(one, key, old, new) is not wanted(other, key, old, new):
                    keys.setdefault(proxy_kind, []).append(key)
        return keys

    def _new_clusters(self, change: ProposedChange) -> frozenset[str]:
        before = self._served.compiled.resources
        return frozenset(
            each.key.name
            for proxy_kind, difference in change.changes.items()
            for each in difference.only(ResourceType.CLUSTER).put
            if each.key not in before[proxy_kind]
        )

    def _write_rollback(self, reason: str) -> bool:
        """Writes down that the transition is rolled back; returns whether that could be written."""
        try:
            self._journal.go_back(reason)
        except StateError as error:
            _log.warning("rolled back without the state file", error=str(error))
            return False
        return True

    async def _end(self, pending: PendingTransition, *, made: bool) -> None:
        """Writes the end down, however long that takes: a transition ends when its end is written.

        Until then the status shows the transition as running, and no other begins. A controller
        that is killed meanwhile finds the transition in its journal and goes on with it; nobody has
        heard of its end.
        """
        try:
            while True:
                try:
                    self._journal.end(pending.files, made=made)
                except StateError as error:
                    if not self.unwritten:
                        _log.warning("the end of a change cannot be written", error=str(error))
                    self.unwritten = str(error)
                    await asyncio.sleep(_RETRY_WRITE_S)
                else:
                    return
        finally:
            self.unwritten = ""


def _amount(stage: Stage) -> str:
    put = sum(len(change.put) for change in stage.changes.values())
    deleted = sum(len(change.delete) for change in stage.changes.values())
    parts = (f"{put} resources sent" * bool(put), f"{deleted} removed" * bool(deleted))
    return ", ".join(filter(None, parts))


def _unexpected(error: Exception) -> str:
    return f"a fault of the controller, rolled back; see its log: {error!r}"
