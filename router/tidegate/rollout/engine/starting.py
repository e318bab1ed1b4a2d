"""How a rollout begins: what it must find before it touches traffic, and why it may be refused."""

from tidegate.evidence.judge import begin
from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import Inputs
from tidegate.rollout.engine.moves import Moves
from tidegate.rollout.engine.status import Phase
from tidegate.rollout.traffic import HostTraffic

__all__ = ["start"]


def start(moves: Moves, inputs: Inputs) -> None:
    """Begins the first stage, refuses the rollout, or says what it waits for."""
    draft, traffic = moves.draft, inputs.traffic
    if inputs.blocked_by:
        _refuse(moves, "HostTaken", _taken(moves, inputs.blocked_by))
        return
    if traffic is None:
        draft.explain("WaitingForMesh", "waits for the mesh: its traffic cannot be read yet")
        return
    if problem := _problem(moves, traffic):
        _refuse(moves, *problem)
        return
    needed = (moves.spec.baseline, *moves.spec.candidate_names)
    if missing := [name for name in needed if name not in traffic.ready]:
        names = " and ".join(missing)
        draft.explain(
            "WaitingForEndpoints",
            f"waits for a healthy endpoint of {names}; `tidegate mesh status` shows the endpoints",
        )
        return
    plans = {name: moves.spec.evidence_plan(name) for name in moves.spec.candidate_names}
    draft.note(evidence={name: begin(plan) for name, plan in plans.items()})
    draft.record(
        EventKind.STARTED,
        f"started; the traffic of {traffic.host} was {traffic.split}",
        phase=Phase.PROGRESSING,
        reason="Started",
        original=traffic.split,
        started_s=moves.now_s,
        clock_s=moves.now_s,
    )
    moves.enter_stage(0, "the first")


def _problem(moves: Moves, traffic: HostTraffic) -> tuple[str, str] | None:
    spec, host = moves.spec, traffic.host
    if traffic.owner and traffic.owner != moves.rollout.key:
        return "HostTaken", _taken(moves, traffic.owner)
    if traffic.problem:
        return "TrafficUnclear", f"the traffic of {host} cannot be divided: {traffic.problem}"
    needed = (spec.baseline, *spec.candidate_names)
    if unknown := [name for name in needed if name not in traffic.versions]:
        known = ", ".join(traffic.versions) or "none"
        message = (
            f"{host} has no subset {' and no '.join(unknown)}; it has {known}. Add it to the"
            " DestinationRule, or correct the rollout, and retry it"
        )
        return "SubsetUnknown", message
    others = {n: w for n, w in traffic.split.weights.items() if w and n not in needed}
    if others:
        words = ", ".join(f"{name} {weight:g}%" for name, weight in others.items())
        message = (
            f"{host} also sends requests to {words}, which a rollout between"
            f" {' and '.join(needed)} would take away; shift them first, and retry the rollout"
        )
        return "OtherVersions", message
    return None


def _taken(moves: Moves, other: str) -> str:
    return (
        f"the rollout {other} has the traffic of {moves.spec.host}; abort it or wait until it has"
        " ended, and retry this one"
    )


def _refuse(moves: Moves, reason: str, message: str) -> None:
    moves.draft.record(
        EventKind.REFUSED,
        message,
        phase=Phase.REFUSED,
        reason=reason,
        decision=message,
        ended_s=moves.now_s,
    )
