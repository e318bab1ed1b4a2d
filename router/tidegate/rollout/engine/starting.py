"""How a rollout begins: what it must find before it touches traffic, and why it may be refused."""

import msgspec

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import Inputs
from tidegate.rollout.engine.moves import Moves
from tidegate.rollout.engine.stages import baseline_split
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
        words = inputs.traffic_problem or "its traffic cannot be read yet"
        draft.explain("WaitingForMesh", f"waits for the mesh: {words}")
        return
    if traffic.owner == moves.rollout.key:
        _give_back(moves, traffic)
        return
    if problem := _problem(moves, traffic):
        _refuse(moves, *problem)
        return
    needed = (moves.spec.baseline, *moves.spec.candidate_names)
    if missing := [name for name in needed if name not in traffic.ready]:
        names = " and ".join(missing)
        draft.explain(
            "WaitingForEndpoints",
            f"waits for a healthy endpoint of {names}",
        )
        return
    draft.record(
        EventKind.STARTED,
        f"started; the traffic of {traffic.host} was {traffic.split}",
        phase=Phase.PROGRESSING,
        reason="Started",
        original=traffic.split,
        desired=None,
        started_s=moves.now_s,
        clock_s=moves.now_s,
    )
    moves.enter_stage(0, "the first")


def _give_back(moves: Moves, traffic: HostTraffic) -> None:
    """Gives the host back that an earlier run of this rollout left, such as one of a lost store.

    What that run found is not known any more, so the baseline gets all traffic, and what the spec
    says that the rollout adds goes.
    """
    draft, status = moves.draft, moves.status
    if not status.is_settled or status.desired is not None:
        draft.explain("GivingBack", f"gives {traffic.host} back first: {status.desired}")
        return
    found = msgspec.structs.replace(
        traffic.split,
        testers=(),
        sticky=None if moves.spec.sticky is not None else traffic.split.sticky,
    )
    split = baseline_split(moves.spec, found)
    text = f"an unknown earlier run of this rollout left {traffic.split}; {split} comes first"
    draft.record(
        EventKind.SPLIT_DECIDED,
        text,
        reason="GivingBack",
        desired=split,
        desired_id=status.desired_id + 1,
    )


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
    weights = traffic.split.weights
    live = [name for name in spec.candidate_names if weights.get(name)]
    if live and not weights.get(spec.baseline):
        message = (
            f"{' and '.join(live)} has the traffic of {host} and the baseline {spec.baseline} has"
            " none, so this rollout would send users back first. If that is meant, make"
            f" {live[0]} the baseline; else shift the traffic to {spec.baseline}, and retry it"
        )
        return "BaselineUnused", message
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
