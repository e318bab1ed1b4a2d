"""What became of a split: it is in force, it will be tried again, or it is impossible."""

from typing import Final

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import Outcome
from tidegate.rollout.engine.moves import Moves
from tidegate.rollout.engine.status import RUNNING, Phase

__all__ = ["LONGEST_RETRY_S", "take_outcome"]

_ENDS: Final = {
    Phase.PROMOTING: (Phase.PROMOTED, EventKind.PROMOTED),
    Phase.ABORTING: (Phase.ABORTED, EventKind.ABORTED),
    Phase.COMPLETING: (Phase.COMPLETED, EventKind.COMPLETED),
}
_FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 60.0
"""How long the engine waits at most before it tries to put a split in force again."""


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
    if status.phase in RUNNING and status.stage_since_s is None:
        changes["stage_since_s"] = applied.since_s
    took_s = max(0.0, applied.since_s - applied.requested_s)
    moves.draft.record(
        EventKind.SPLIT_IN_FORCE,
        f"{status.desired} is in force: {applied.detail or applied.known.value}",
        {"took_s": took_s},
        **changes,
    )
    if status.phase in _ENDS:
        phase, kind = _ENDS[status.phase]
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
    wait_s = min(_FIRST_RETRY_S * 2 ** min(failures - 1, 10), LONGEST_RETRY_S)
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
