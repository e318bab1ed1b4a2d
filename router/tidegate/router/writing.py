"""Writes the status of one rollout, with its history.

A step counts once it is written, or the next process would know nothing of a change of traffic that
this one has begun. There are two exceptions for a disk that is full, or a file that is gone:

- A step that takes traffic away from the candidate counts at once. It is written as soon as that is
  possible, and until then the writer holds its events. Users must not get a bad version because of
  a disk. If the router ends before that, the next one finds traffic at the baseline and takes it
  for a foreign change.
- Evidence counts at once, as always: most of it is never written by itself.
"""

import math
from typing import Final

import msgspec

from tidegate.rollout.engine.draft import VOLATILE
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.inputs import Step
from tidegate.rollout.engine.samples import Sample, sample_of
from tidegate.rollout.engine.status import ACTIVE, PauseCause, Phase, RolloutStatus
from tidegate.router.errors import StoreError
from tidegate.router.registry import RolloutRecord
from tidegate.router.store import Put, PutStatus
from tidegate.router.surroundings import Surroundings
from tidegate.runtime.logging import get_logger

__all__ = ["StatusWriter", "counts_unwritten", "with_evidence"]

_log = get_logger(__name__)

_AWAY_FROM_CANDIDATE: Final = frozenset({Phase.ABORTING, Phase.ABORTED, Phase.SUPERSEDED})
_EVIDENCE: Final = VOLATILE - {"apply_failures", "message", "next_try_s"}


class StatusWriter:
    """Writes the status of one rollout.

    Args:
        record: The rollout.
        around: What the loops share.
    """

    def __init__(self, record: RolloutRecord, around: Surroundings) -> None:
        self._record = record
        self._around = around
        # The events of steps that count and are not written.
        self._owed: tuple[Event, ...] = ()
        self._owed_command_id = ""
        self._written_s = around.clock()
        self._is_unwritten = self._is_writing = False

    @property
    def owes_events(self) -> bool:
        """Whether events of the history are not written."""
        return bool(self._owed)

    @property
    def due_s(self) -> float:
        """When something is to be written although nothing happens; infinity if nothing is."""
        if not self._is_unwritten:
            return math.inf
        return self._written_s + self._around.settings.evidence_interval_s

    async def write(
        self, step: Step, before: RolloutStatus, now_s: float, command_id: str = ""
    ) -> None:
        """Writes a step. What decides nothing, such as evidence, is written now and then.

        Args:
            step: The step.
            before: The status before it.
            now_s: The time, in seconds since the epoch.
            command_id: The id of the command that the step carries out; empty for none.

        Raises:
            StoreError: It could not be written.
        """
        if not self._owed and not step.events and not command_id:
            if step.status == before and not self._is_unwritten:
                return
            self._is_unwritten = True
            if now_s - self._written_s < self._around.settings.evidence_interval_s:
                return
        sample = sample_of(step.status, now_s) if step.status.desired is not None else None
        await self._commit(step.status, step.events, sample=sample, command_id=command_id)
        self._written_s = now_s

    def owe(self, step: Step, command_id: str = "") -> None:
        """Notes that a step counts which could not be written.

        Args:
            step: The step.
            command_id: The id of the command that the step carries out; empty for none.
        """
        self._owed = (*self._owed, *step.events)
        self._owed_command_id = command_id or self._owed_command_id
        self._is_unwritten = True

    async def put(self, put: Put, status: RolloutStatus) -> None:
        """Writes the rollout that takes this one's place, with its first status.

        Raises:
            StoreError: It could not be written.
        """
        await self._commit(status, put=put)

    async def flush(self) -> None:
        """Writes what was not worth a write of its own. Call it when the loop has ended."""
        if not self._is_unwritten or self._is_writing:
            return
        try:
            await self._commit(self._record.status)
        except StoreError as error:
            what = "the last events are lost" if self._owed else "the last evidence is lost"
            _log.warning(what, rollout=self._record.key, error=str(error))

    async def _commit(
        self,
        status: RolloutStatus,
        events: tuple[Event, ...] = (),
        *,
        sample: Sample | None = None,
        put: Put | None = None,
        command_id: str = "",
    ) -> None:
        write = PutStatus(
            key=self._record.key,
            status=status,
            events=(*self._owed, *events),
            sample=sample,
            command_id=command_id or self._owed_command_id,
        )
        # If this is cancelled, nobody knows whether it was written.
        self._is_writing = True
        try:
            await self._around.store.commit(*(() if put is None else (put,)), write)
        except StoreError:
            self._is_writing = False
            raise
        self._is_writing = self._is_unwritten = False
        self._owed, self._owed_command_id = (), ""


def counts_unwritten(step: Step) -> bool:
    """Whether a step counts although it cannot be written; see the module."""
    status = step.status
    return (
        not step.events
        or status.phase in _AWAY_FROM_CANDIDATE
        # A ramp whose budget is spent takes the candidate's traffic away too.
        or (status.phase is Phase.PAUSED and status.pause_cause is PauseCause.HARM_BUDGET)
    )


def with_evidence(before: RolloutStatus, step: Step) -> RolloutStatus:
    """Returns the status before a step that does not count, with the evidence of the step."""
    if before.phase not in ACTIVE or step.status.phase not in ACTIVE:
        return before
    return msgspec.structs.replace(
        before, **{name: getattr(step.status, name) for name in _EVIDENCE}
    )
