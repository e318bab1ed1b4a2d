"""Performs a change stage by stage: serves it, waits until its gate holds, or takes it back.

What is about to be served is written to the journal first. A task that performs a change may be
cancelled at any moment: the change stays in the journal as far as it was, and goes on from there
when it is performed again, be it by another process.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from tidegate.mesh.ads import AckOutcome, AckReport, Distribution, ProxyAck, ProxyId
from tidegate.mesh.control.errors import RolledBackError, StateError
from tidegate.mesh.control.events import EventKind, TransitionEvent
from tidegate.mesh.control.journal import Begun, Journal
from tidegate.mesh.control.loads import Loads
from tidegate.mesh.control.serving import Proposal, Serving
from tidegate.mesh.control.taking_over import TakingOver
from tidegate.mesh.control.transition import Reached, Stage, StageKind, keys_of, wanted
from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType
from tidegate.runtime.logging import get_logger

__all__ = ["Performer", "Say"]

_log = get_logger(__name__)

# How often a wait looks up to tell what has happened so far.
_SLICE_S: Final = 0.2
# Load reports come every second or so; looking more often than this shows nothing new.
_LOAD_LOOK_S: Final = 0.1

# A change is taken back because some proxy does not answer; it is not waited for once more as long.
_PATIENCE_S: Final = 5.0

Say = Callable[[TransitionEvent], None]
"""Takes the events of a change."""


class _StageFailedError(Exception):
    """The gate of a stage did not hold in time, or cannot hold."""


class Performer:
    """Performs changes, one at a time.

    Args:
        distribution: knows who has acknowledged what.
        serving: serves the stages.
        journal: remembers how far a change is.
        loads: tells what runs on a cluster that goes.
        taking_over: tells when proxies act on what they have acknowledged.
        leave_deadline_s: how long requests on clusters that go may take to finish.
        why_unhealthy: says in words why no endpoint of a cluster takes requests.
    """

    def __init__(
        self,
        distribution: Distribution,
        serving: Serving,
        journal: Journal,
        loads: Loads,
        taking_over: TakingOver,
        *,
        leave_deadline_s: float,
        why_unhealthy: Callable[[str], str],
    ) -> None:
        self._distribution = distribution
        self._serving = serving
        self._journal = journal
        self._loads = loads
        self._taking_over = taking_over
        self._leave_deadline_s = leave_deadline_s
        self._why_unhealthy = why_unhealthy

    async def perform(self, begun: Begun, proposal: Proposal, say: Say) -> None:
        """Performs a change that is in the journal and entered in what is served.

        Args:
            begun: the change, from the stage on that it had reached.
            proposal: its stages.
            say: takes its events.

        Raises:
            RolledBackError: it could not be completed and was taken back.
        """
        run = _Run(self, begun, proposal, say)
        if begun.going_back:
            failed = begun.reached or StageKind.CLUSTERS
            cause: Exception = _StageFailedError(begun.reason)
        else:
            try:
                failure = await run.forward()
            except Exception as error:
                run.note_back(f"unexpected: {error!r}")
                await run.back()
                self._serving.leave(made=False)
                raise
            if failure is None:
                self._serving.leave(made=True)
                return
            failed, cause = failure
        await run.back()
        self._serving.leave(made=False)
        raise RolledBackError(failed, str(cause)) from cause


class _Run:
    """One change while it is performed."""

    def __init__(self, performer: Performer, begun: Begun, proposal: Proposal, say: Say) -> None:
        self._of = performer
        self._begun = begun
        self._proposal = proposal
        self._hear = say
        self._reached = begun.reached

    async def forward(self) -> tuple[StageKind, Exception] | None:
        """Goes through the stages that are left.

        Returns:
            Nothing when all were completed, else the stage that was not and why.
        """
        order = list(StageKind)
        for stage in self._proposal.stages:
            if self._reached and order.index(stage.kind) < order.index(self._reached):
                continue
            try:
                self._of._journal.reach(stage.kind)
                self._serve(stage.kind)
                self._say(EventKind.STAGE_STARTED, stage.kind, message=_amount(stage))
                await self._pass(stage)
            except (_StageFailedError, StateError) as failure:
                reason = str(failure)
                # What is not written is not said: a kill would let the next start go on with it.
                if self.note_back(reason):
                    self._say(EventKind.ROLLING_BACK, stage.kind, message=reason)
                return stage.kind, failure
            self._say(EventKind.STAGE_DONE, stage.kind)
        return None

    async def back(self) -> None:
        """Goes back through the stages that were reached, each acknowledged if it can be."""
        patience_s = min(self._begun.deadline_s, _PATIENCE_S)
        while self._reached is not None:
            if self._reached is StageKind.CLUSTERS:
                await self._drain(self._new_clusters(), None)
            undone = self._reached
            keys = self._different_keys(undone, undone.before)
            try:
                self._of._journal.reach(undone.before)
            except StateError as error:
                # Nobody is told of the end before it is written.
                _log.warning("taken back without the state file", error=str(error))
            self._serve(undone.before)
            began = time.monotonic()
            report = await self._of._distribution.acknowledged(keys, patience_s)
            if not report.done:
                _log.warning("taken back without", proxies=_unfinished(report))
            elif undone is StageKind.ROUTES:
                acknowledged_s = time.monotonic() - began
                late = await self._of._taking_over.done(acknowledged_s, patience_s)
                if late:
                    _log.warning("taken back, but not yet taken over", proxies=late)

    def _different_keys(
        self, one: Reached, other: Reached
    ) -> Mapping[ProxyKind, Collection[ResourceKey]]:
        """The names under which two stages want something else."""
        before = self._of._serving.compiled.resources
        after = self._proposal.compiled.resources
        keys: dict[ProxyKind, list[ResourceKey]] = {}
        for proxy_kind, change in self._proposal.changes.items():
            for key in keys_of(change):
                old, new = before[proxy_kind].get(key), after[proxy_kind].get(key)
                if wanted(one, key, old, new) is not wanted(other, key, old, new):
                    keys.setdefault(proxy_kind, []).append(key)
        return keys

    def note_back(self, reason: str) -> bool:
        """Writes down that the change is taken back; tells whether that could be written."""
        try:
            self._of._journal.go_back(reason)
        except StateError as error:
            _log.warning("taken back without the state file", error=str(error))
            return False
        return True

    def _serve(self, reached: Reached) -> None:
        self._reached = reached
        self._of._serving.reach(reached)

    async def _pass(self, stage: Stage) -> None:
        began = time.monotonic()
        deadline = began + self._begun.deadline_s
        if stage.gate.acknowledged:
            await self._acknowledged(stage.kind, stage.gate.acknowledged, deadline)
            if stage.kind is StageKind.ROUTES:
                await self._taken_over(time.monotonic() - began, deadline)
        await self._healthy(stage.gate.healthy, deadline)
        await self._drain(stage.gate.drained, stage.kind)

    async def _acknowledged(
        self,
        stage: StageKind,
        keys: Mapping[ProxyKind, Collection[ResourceKey]],
        deadline: float,
    ) -> None:
        asked = {each.proxy for each in self._of._distribution.proxies() if each.proxy_kind in keys}
        told: set[ProxyId] = set()
        while True:
            left_s = deadline - time.monotonic()
            slice_s = max(0.0, min(_SLICE_S, left_s))
            report = await self._of._distribution.acknowledged(keys, slice_s)
            there = {each.proxy for each in report.proxies}
            for gone in sorted(asked - told - there):
                self._say(EventKind.PROXY_GONE, stage, proxy=gone.node)
            for each in report.of(AckOutcome.DONE):
                if each.proxy not in told:
                    self._say(EventKind.PROXY_ACKNOWLEDGED, stage, proxy=each.proxy.node)
                    told.add(each.proxy)
            asked = there
            if report.done:
                return
            if refused := report.of(AckOutcome.REJECTED):
                raise _StageFailedError("; ".join(map(_refusal, refused)))
            if left_s <= 0:
                raise _StageFailedError(
                    f"no answer within {self._begun.deadline_s:g} s: {_unfinished(report)}"
                )

    async def _taken_over(self, acknowledged_s: float, deadline: float) -> None:
        """Waits until routes that were acknowledged decide about every new request."""
        late = await self._of._taking_over.done(acknowledged_s, deadline - time.monotonic())
        if late:
            raise _StageFailedError(
                f"{', '.join(late)} acknowledged, but not all of its threads have taken over within"
                f" {self._begun.deadline_s:g} s"
            )

    async def _healthy(self, clusters: frozenset[str], deadline: float) -> None:
        left = clusters
        while True:
            unhealthy = self._of._serving.unhealthy(left)
            for name in sorted(left - unhealthy):
                self._say(EventKind.CLUSTER_HEALTHY, StageKind.CLUSTERS, subject=name)
            left = unhealthy
            if not left:
                return
            try:
                async with asyncio.timeout_at(_loop_time(deadline)):
                    await self._of._serving.changed()
            except TimeoutError:
                reasons = "; ".join(
                    f"{name} has no healthy endpoint ({self._of._why_unhealthy(name)})"
                    for name in sorted(left)
                )
                raise _StageFailedError(f"{reasons}; waited {self._begun.deadline_s:g} s") from None

    async def _drain(self, clusters: frozenset[str], stage: StageKind | None) -> None:
        """Waits until nothing runs on clusters that no route names, or for as long as it may."""
        since = time.monotonic()
        left = sorted(clusters)
        with self._of._loads.watch(clusters):
            while left:
                running = {name: self._of._loads.running(name, since) for name in left}
                for name in left:
                    if running[name] == 0:
                        self._say(EventKind.CLUSTER_DRAINED, stage, subject=name)
                left = [name for name in left if running[name] != 0]
                if left and time.monotonic() - since >= self._of._leave_deadline_s:
                    for name in left:
                        count = "requests" if running[name] is None else f"{running[name]} requests"
                        self._say(
                            *(EventKind.STRANDED, stage),
                            subject=name,
                            message=f"{count} may still run there"
                            f" after {self._of._leave_deadline_s:g} s",
                        )
                    return
                if left:
                    await asyncio.sleep(_LOAD_LOOK_S)

    def _new_clusters(self) -> frozenset[str]:
        before = self._of._serving.compiled.resources
        return frozenset(
            each.key.name
            for proxy_kind, change in self._proposal.changes.items()
            for each in change.only(ResourceType.CLUSTER).put
            if each.key not in before[proxy_kind]
        )

    def _say(
        self,
        kind: EventKind,
        stage: StageKind | None,
        *,
        proxy: str = "",
        subject: str = "",
        message: str = "",
    ) -> None:
        event = TransitionEvent(
            transition=self._begun.id,
            kind=kind,
            stage=stage,
            proxy=proxy,
            subject=subject,
            message=message,
        )
        self._hear(event)


def _amount(stage: Stage) -> str:
    put = sum(len(change.put) for change in stage.changes.values())
    deleted = sum(len(change.delete) for change in stage.changes.values())
    parts = (f"{put} resources sent" * bool(put), f"{deleted} removed" * bool(deleted))
    return ", ".join(filter(None, parts))


def _refusal(ack: ProxyAck) -> str:
    return "; ".join(
        f"{ack.proxy.node} refused {', '.join(map(str, sorted(each.versions, key=str)))}:"
        f" {each.message}"
        for each in ack.rejections
    )


def _unfinished(report: AckReport) -> str:
    return "; ".join(
        f"{each.proxy.node} has not acknowledged {_some(map(str, each.waiting))}"
        if each.outcome is AckOutcome.WAITING
        else _refusal(each)
        for each in report.proxies
        if each.outcome is not AckOutcome.DONE
    )


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _loop_time(monotonic: float) -> float:
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
