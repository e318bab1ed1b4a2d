"""Changes of a host's traffic by somebody else during a rollout, and what follows from them."""

from typing import Final

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import Inputs
from tidegate.rollout.engine.moves import Moves
from tidegate.rollout.engine.status import RUNNING, PauseCause
from tidegate.rollout.spec.model import ForeignChange
from tidegate.rollout.spec.quantities import duration_text
from tidegate.rollout.traffic import HostTraffic, TrafficSplit

__all__ = ["notice_foreign_change"]

_MOST_REASSERTS: Final = 5
_REASSERT_WHILE_S: Final = 600.0


def notice_foreign_change(moves: Moves, inputs: Inputs) -> bool:
    """Answers a change of the traffic by somebody else, as the spec says.

    Returns:
        Whether there was one, so that the latest windows are not of the split in force.
    """
    status, traffic = moves.status, inputs.traffic
    if traffic is None or status.desired is None or inputs.applying or inputs.outcome is not None:
        return False
    if status.phase not in RUNNING or not status.is_settled:
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
