"""What users ask of a rollout, and in which phases they may."""

from typing import Final

from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.stages import GateKind, plan_of
from tidegate.rollout.engine.status import DECIDED, ENDED, RUNNING, Phase, RolloutStatus
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import TrafficSplit

__all__ = ["refusal"]

_ABORTABLE: Final = frozenset(Phase) - ENDED - {Phase.ABORTING}
_UNDOABLE: Final = RUNNING | {Phase.PROMOTED, Phase.ABORTED, Phase.COMPLETED}
_ALLOWED: Final = {
    CommandKind.PAUSE: frozenset({Phase.PROGRESSING}),
    CommandKind.RESUME: frozenset({Phase.PAUSED}),
    CommandKind.PROMOTE: frozenset({Phase.PROGRESSING}),
    CommandKind.PROMOTE_FULL: RUNNING,
    CommandKind.ABORT: _ABORTABLE,
    CommandKind.SUPERSEDE: _ABORTABLE,
    CommandKind.RETRY: ENDED - {Phase.PROMOTED},
    CommandKind.UNDO: _UNDOABLE,
    CommandKind.UNDO_FORCE: _UNDOABLE,
}
_HINTS: Final = {
    (CommandKind.PROMOTE, Phase.PAUSED): "; resume it first, or promote it fully (--full)",
    (CommandKind.RETRY, Phase.PROMOTED): "; undo it before you retry it",
}


def refusal(
    rollout: Rollout,
    status: RolloutStatus,
    kind: CommandKind,
    blocked_by: str = "",
    observed: TrafficSplit | None = None,
) -> str:
    """Returns why a rollout cannot do a command now, and what to do instead; empty if it can.

    Args:
        rollout: The rollout.
        status: Its status.
        kind: The command.
        blocked_by: The other rollout that has the host; empty if none does.
        observed: The host's split as it is now; None if it is not known.
    """
    name, phase = rollout.metadata.name, status.phase
    if phase not in _ALLOWED[kind]:
        return f"{name} is {phase.value}, so you cannot {kind.value} it{_hint(kind, phase)}"
    match kind:
        case CommandKind.PROMOTE:
            return _promote_refusal(rollout, status)
        case CommandKind.PROMOTE_FULL if len(rollout.spec.candidate_names) > 1:
            return f"{name} has several candidates; abort it and shift the traffic by hand"
        case CommandKind.UNDO | CommandKind.UNDO_FORCE:
            is_forced = kind is CommandKind.UNDO_FORCE
            return _undo_refusal(rollout, status, blocked_by, None if is_forced else observed)
        case _:
            return ""


def _undo_refusal(
    rollout: Rollout, status: RolloutStatus, blocked_by: str, observed: TrafficSplit | None
) -> str:
    name, desired = rollout.metadata.name, status.desired
    if status.original is None:
        return f"{name} has not changed any traffic, so there is nothing to undo"
    if blocked_by:
        return f"{blocked_by} has the traffic of {rollout.spec.host}; abort it first"
    if status.phase not in ENDED or observed is None or desired is None:
        return ""
    if observed.same_as(desired):
        return ""
    return (
        f"{name} left {desired}, and the traffic is {observed} now; --force puts {status.original}"
        " back all the same"
    )


def _promote_refusal(rollout: Rollout, status: RolloutStatus) -> str:
    name = rollout.metadata.name
    if not status.is_settled or status.original is None:
        return f"{name} is bringing {status.desired} into force; try again when it is"
    gate = plan_of(rollout.spec, status.original).stages[status.stage].gate
    if gate.kind in (GateKind.EVIDENCE, GateKind.RAMP):
        return f"{name} {status.message}; --full promotes it whatever the evidence says"
    return ""


def _hint(kind: CommandKind, phase: Phase) -> str:
    if hint := _HINTS.get((kind, phase)):
        return hint
    if phase in DECIDED:
        return "; wait until that has ended"
    if phase in ENDED and kind is not CommandKind.RETRY and phase is not Phase.PROMOTED:
        return "; retry it to begin again"
    return ""
