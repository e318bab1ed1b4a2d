"""What became of a split: it is in force, it failed, or somebody else has changed the traffic."""

from typing import Final

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import Inputs, Outcome
from tidegate.rollout.engine.moves import Moves
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.spec.model import ForeignChange
from tidegate.rollout.spec.quantities import duration_text
from tidegate.rollout.traffic import HostTraffic, TrafficSplit

__all__ = ["DECIDED", "notice_foreign_change", "take_outcome"]

DECIDED: Final = {
    Phase.PROMOTING: (Phase.PROMOTED, EventKind.PROMOTED),
    Phase.ABORTING: (Phase.ABORTED, EventKind.ABORTED),
    Phase.COMPLETING: (Phase.COMPLETED, EventKind.COMPLETED),
}
"""The phases that bring the last split into force, each with the phase and event that follow."""

_RUNNING: Final = (Phase.PROGRESSING, Phase.PAUSED)
_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 60.0
_MOST_REASSERTS: Final = 5
_REASSERT_WHILE_S: Final = 600.0


def take_outcome(moves: Moves, outcome: Outcome) -> None:
    """Takes in what became of the last action. One of an earlier split is ignored."""
    status = moves.status
    if outcome.id != status.desired_id or status.is_settled:
        return
    applied = outcome.applied
    if applied is None:
        _take_failure(moves, outcome)
        return
    moves.draft.note(apply_failures=0, next_try_s=0.0)
    changes: dict[str, object] = {
        "in_force_id": outcome.id,
        "in_force_since_s": applied.since_s,
    }
    if status.phase in _RUNNING and status.stage_since_s is None:
        changes["stage_since_s"] = applied.since_s
    took_s = max(0.0, applied.since_s - applied.requested_s)
    moves.draft.record(
        EventKind.SPLIT_IN_FORCE,
        f"{status.desired} is in force: {applied.detail or applied.known.value}",
        {"took_s": took_s},
        **changes,
    )
    if status.phase in DECIDED:
        phase, kind = DECIDED[status.phase]
        if status.superseding:
            phase, kind = Phase.SUPERSEDED, EventKind.SUPERSEDED
        moves.draft.record(kind, phase.value, phase=phase, ended_s=moves.now_s)
        # The history has the decision once, where it was made.
        moves.draft.note(message=status.decision)


def _take_failure(moves: Moves, outcome: Outcome) -> None:
    status = moves.status
    if outcome.permanent:
        _give_up(moves, outcome.error)
        return
    failures = status.apply_failures + 1
    wait_s = min(_FIRST_RETRY_S * 2 ** min(failures - 1, 10), _LONGEST_RETRY_S)
    message = f"{status.desired} is not in force: {outcome.error}"
    if failures == 1:
        moves.draft.record(EventKind.SPLIT_FAILED, message)
    else:
        # One event is enough for a failure that repeats.
        moves.draft.note(message=message)
    moves.draft.note(apply_failures=failures, next_try_s=moves.now_s + wait_s)


def _give_up(moves: Moves, error: str) -> None:
    """Answers a failure that trying again does not mend."""
    status = moves.status
    message = f"{status.desired} cannot be put in force: {error}"
    moves.draft.record(EventKind.SPLIT_FAILED, message)
    if status.phase in (Phase.ABORTING, Phase.COMPLETING):
        decision = f"{status.decision}; the traffic was not changed: {error}"
        moves.draft.record(
            EventKind.ABORTED,
            "given up: the traffic stays as it is",
            phase=Phase.SUPERSEDED if status.superseding else Phase.ABORTED,
            reason="GivenUp",
            decision=decision,
            in_force_id=status.desired_id,
            ended_s=moves.now_s,
        )
        moves.draft.note(message=decision)
    else:
        moves.abort(message, "SplitImpossible")


def notice_foreign_change(moves: Moves, inputs: Inputs) -> bool:
    """Answers a change of the traffic by somebody else, as the spec says.

    Returns:
        Whether there was one, so that the latest windows are not of the split in force.
    """
    status, traffic = moves.status, inputs.traffic
    if traffic is None or status.desired is None or inputs.applying or inputs.outcome is not None:
        return False
    if status.phase not in _RUNNING or not status.is_settled:
        return False
    if status.pause_cause is PauseCause.FOREIGN_CHANGE:
        return False
    if inputs.traffic_s <= (status.in_force_since_s or 0.0):
        return False
    words = _difference(moves, traffic, status.desired)
    if not words:
        return False
    match moves.spec.on_foreign_change:
        case ForeignChange.REASSERT if _may_reassert(moves):
            since_s, count = _reasserts(moves)
            moves.draft.record(
                EventKind.FOREIGN_CHANGE,
                f"{words}; the rollout puts {status.desired} in force again",
                reason="ForeignChange",
                desired_id=status.desired_id + 1,
                reasserts=count + 1,
                reasserted_s=since_s,
            )
        case ForeignChange.ADOPT if _can_adopt(moves, traffic):
            weight = traffic.split.weights.get(moves.spec.candidate_names[0], 0.0)
            moves.draft.record(
                EventKind.ADOPTED,
                f"{words}; the rollout goes on with that",
                reason="Adopted",
                desired=traffic.split,
                desired_id=status.desired_id + 1,
                ramp_weight=weight if status.ramp_weight else 0.0,
            )
        case _:
            if moves.spec.on_foreign_change is ForeignChange.REASSERT:
                words += f", {_MOST_REASSERTS} times within {duration_text(_REASSERT_WHILE_S)}"
            text = f"{words}; resume the rollout to put {status.desired} in force again"
            moves.pause(
                PauseCause.FOREIGN_CHANGE,
                f"{text}, or abort it",
                "ForeignChange",
                EventKind.FOREIGN_CHANGE,
            )
    return True


def _reasserts(moves: Moves) -> tuple[float, int]:
    """Returns when the present while began, and how often the split was put back in it."""
    status = moves.status
    since_s = status.reasserted_s
    if since_s is None or moves.now_s - since_s > _REASSERT_WHILE_S:
        return moves.now_s, 0
    return since_s, status.reasserts


def _may_reassert(moves: Moves) -> bool:
    """Whether this is no quarrel with another controller, which nobody would win."""
    return _reasserts(moves)[1] < _MOST_REASSERTS


def _difference(moves: Moves, traffic: HostTraffic, desired: TrafficSplit) -> str:
    """Says how the traffic differs from what the rollout put in force; empty if it does not."""
    changed = f"somebody changed the traffic of {traffic.host}"
    if traffic.problem:
        return f"{changed}: {traffic.problem}"
    if traffic.owner and traffic.owner != moves.rollout.key:
        return f"{traffic.owner} has taken over the traffic of {traffic.host}"
    if not traffic.split.same_as(desired):
        return f"{changed} to {traffic.split}"
    if not traffic.owner:
        return f"{changed}: its routes do not name the rollout any more"
    return ""


def _can_adopt(moves: Moves, traffic: HostTraffic) -> bool:
    known = {moves.spec.baseline, *moves.spec.candidate_names}
    named = {name for name, weight in traffic.split.weights.items() if weight}
    ours = not traffic.owner or traffic.owner == moves.rollout.key
    return ours and not traffic.problem and named <= known
