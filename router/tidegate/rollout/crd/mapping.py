"""Rollouts between the objects of a cluster and the values that the controller works with.

An object's spec is what its owner wants. What runs may be another spec for a while: the rollout
first brings traffic back to the baseline. So the status has the rollout that runs, and a
controller that starts goes on with that one, also if the spec was edited while none ran.
"""

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tidegate.evidence.assessment import Verdict
from tidegate.rollout.crd.command import CommandAnswer
from tidegate.rollout.crd.conditions import (
    ConditionType,
    conditions_of,
    instant_text,
    merged,
    verdict_of,
)
from tidegate.rollout.crd.packing import (
    DamagedStateError,
    EngineState,
    pack_samples,
    pack_state,
    unpack_samples,
    unpack_state,
)
from tidegate.rollout.crd.status_schema import MOST_EVENTS, PHASES
from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.samples import Sample, is_due, thinned
from tidegate.rollout.engine.stages import plan_of
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.rollout.spec.faults import SpecError
from tidegate.rollout.spec.model import Rollout, RolloutSpec
from tidegate.rollout.spec.reading import rollout_of_values
from tidegate.rollout.texts import escaped
from tidegate.rollout.traffic import TrafficSplit

__all__ = [
    "StoredState",
    "answer_of",
    "bounded",
    "refusal_of",
    "rollout_of",
    "status_body",
    "stored_of",
    "with_events",
]

_OTHERS: Final = ("tidegate.dev/", "kubectl.kubernetes.io/")
_LONGEST_MESSAGE: Final = 1024
_HISTORY_BYTES: Final = 8 << 10
_DETAIL_BYTES: Final = 3 << 10
_SAMPLES_BYTES: Final = 4 << 10
_FEW_SAMPLES: Final = 4
_URGENCY: Final = (Verdict.MISSED, Verdict.OPEN, Verdict.NO_DATA, Verdict.MET)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """What the status of an object keeps for the controller.

    Attributes:
        rollout: The rollout that runs.
        status: Its status.
        successor: The rollout that replaces it once its traffic is back at the baseline.
        events: The last events of its history.
        samples: What the evidence said over time.
        answer: The answer to the last command; None before the first.
        problem: Why the rollout cannot be evaluated now; empty if it can.
    """

    rollout: Rollout
    status: RolloutStatus
    successor: Rollout | None = None
    events: tuple[Event, ...] = ()
    samples: tuple[Sample, ...] = ()
    answer: CommandAnswer | None = None
    problem: str = ""


def rollout_of(manifest: Mapping[str, Any]) -> Rollout:
    """Returns the rollout that an object asks for.

    Labels and annotations of Tidegate and of kubectl are left out.

    Args:
        manifest: The object, as JSON has it.

    Raises:
        SpecError: The object has faults that its schema does not find.
    """
    metadata = manifest.get("metadata") or {}
    kept: dict[str, Any] = {key: metadata[key] for key in ("name", "namespace") if key in metadata}
    for field in ("labels", "annotations"):
        found = metadata.get(field) or {}
        kept[field] = {key: found[key] for key in found if not key.startswith(_OTHERS)}
    values = {key: manifest[key] for key in ("apiVersion", "kind", "spec") if key in manifest}
    return rollout_of_values({**values, "metadata": kept})


def stored_of(manifest: Mapping[str, Any]) -> StoredState | None:
    """Returns what the status of an object keeps; None if it keeps nothing.

    Events come back without their `changes`, and their times in microseconds.

    Args:
        manifest: The object, as JSON has it.

    Raises:
        DamagedStateError: The status is not what the controller wrote.
    """
    status = manifest.get("status") or {}
    packed = (status.get("evidence") or {}).get("state")
    if packed is None:
        return None
    state = unpack_state(packed)
    samples = status.get("samples")
    try:
        return StoredState(
            rollout=Rollout.model_validate_json(state.rollout),
            status=state.status,
            successor=(Rollout.model_validate_json(state.successor) if state.successor else None),
            events=tuple(map(_event_of, status.get("history", ()))),
            samples=() if samples is None else unpack_samples(samples),
            answer=answer_of(status),
            problem=status.get("problem", ""),
        )
    except DamagedStateError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStateError(f"it is damaged: {error!r}") from error


def answer_of(status: Mapping[str, Any]) -> CommandAnswer | None:
    """Returns the answer to the last command in a status; None if there is none."""
    try:
        return msgspec.convert(status.get("lastCommand"), CommandAnswer | None)
    except msgspec.ValidationError:
        # Somebody edited it.
        return None


def status_body(
    state: StoredState, manifest: Mapping[str, Any], now_s: float, writer: str = ""
) -> dict[str, Any]:
    """Returns the status of an object, but for the condition ``Accepted``.

    That condition is about the spec as it is now, and what runs may be an earlier one. So whoever
    reads the spec writes it, with a field manager of its own; see `refusal_of`.

    Args:
        state: What it keeps; see `bounded`.
        manifest: The object as it is, for its generation and for the times of its conditions.
        now_s: The time, in seconds since the epoch.
        writer: Names the process of the controller.
    """
    before = manifest.get("status") or {}
    status = state.status
    refusal = refusal_of(manifest)
    wanted = None if refusal else _spec_of(manifest)
    generation = int(before.get("observedGeneration", 0))
    if refusal or wanted == (state.successor or state.rollout).spec:
        generation = int((manifest.get("metadata") or {}).get("generation", 0))
    begun = status.started_s is not None
    plan = plan_of(state.rollout.spec, status.original or TrafficSplit(weights={}))
    found: dict[str, Any] = {
        "observedGeneration": generation,
        "phase": PHASES[status.phase],
        "step": f"{status.stage + 1 if begun else 0}/{len(plan.stages)}",
        "weight": _weight(state),
        "verdict": verdict_of(status),
        "reason": status.reason,
        "message": escaped(status.message)[:_LONGEST_MESSAGE],
        "problem": escaped(state.problem)[:_LONGEST_MESSAGE],
        "startedAt": _instant(status.started_s),
        "endedAt": _instant(status.ended_s),
        "winner": status.winner,
        "conditions": merged(
            conditions_of(status, refusal), before.get("conditions", ()), generation, now_s
        ),
        "split": _split(state),
        "executing": {} if wanted == state.rollout.spec else _executing(state),
        "evidence": {
            "objectives": _objectives(status),
            **({"lostRequests": status.lost_requests} if status.lost_requests else {}),
            "state": pack_state(
                EngineState(
                    rollout=state.rollout.model_dump_json(by_alias=True),
                    status=status,
                    successor=(
                        state.successor.model_dump_json(by_alias=True) if state.successor else ""
                    ),
                )
            ),
        },
        "history": [_event_values(each) for each in state.events],
        "writer": writer,
    }
    if state.answer is not None:
        found["lastCommand"] = msgspec.to_builtins(state.answer)
    if state.samples:
        found["samples"] = pack_samples(state.samples)
    return {key: value for key, value in found.items() if value not in (None, "", {}, [])}


def refusal_of(manifest: Mapping[str, Any]) -> str:
    """Returns why the spec of an object, as it is now, is refused; empty if nobody has refused it.

    Args:
        manifest: The object, as JSON has it.
    """
    generation = (manifest.get("metadata") or {}).get("generation", 0)
    for each in (manifest.get("status") or {}).get("conditions", ()):
        is_refused = each.get("type") == ConditionType.ACCEPTED and each.get("status") == "False"
        if is_refused and each.get("observedGeneration") == generation:
            return str(each.get("message", "")) or "the spec is refused"
    return ""


def with_events(state: StoredState, events: Sequence[Event], sample: Sample | None) -> StoredState:
    """Returns a state with more events, and with a sample if the series needs one."""
    samples = state.samples
    if any(each.kind is EventKind.STARTED for each in events):
        samples = ()
    if sample is not None:
        times = [each.time_s for each in samples]
        if not times or events or is_due(times[0], times[-1], sample.time_s):
            samples = (*(each for each in samples if each.time_s != sample.time_s), sample)
        gone = set(thinned([each.time_s for each in samples]))
        samples = tuple(each for each in samples if each.time_s not in gone)
    return dataclasses.replace(state, events=(*state.events, *events), samples=samples)


def bounded(state: StoredState) -> StoredState:
    """Returns a state with as many events and samples as an object keeps."""
    events = state.events[-MOST_EVENTS:]
    sizes = [_bytes(_event_values(each)) for each in events]
    while len(events) > 1 and sum(sizes) > _HISTORY_BYTES:
        events, sizes = events[1:], sizes[1:]
    samples = state.samples
    while len(samples) > _FEW_SAMPLES and len(pack_samples(samples)) > _SAMPLES_BYTES:
        samples = (*samples[:-1:2], samples[-1])
    return dataclasses.replace(state, events=events, samples=samples)


def _spec_of(manifest: Mapping[str, Any]) -> RolloutSpec | None:
    try:
        return rollout_of(manifest).spec
    except SpecError:
        return None


def _weight(state: StoredState) -> float | None:
    split = state.status.desired or state.status.observed
    if split is None:
        return None
    total = sum(split.weights.get(name, 0.0) for name in state.rollout.spec.candidate_names)
    return round(total, 3)


def _split(state: StoredState) -> dict[str, Any]:
    status = state.status
    found: dict[str, Any] = {}
    if status.observed is not None:
        found["observed"] = str(status.observed)
    if status.desired is not None:
        found |= {"desired": str(status.desired), "inForce": status.is_settled}
    if status.is_settled and status.in_force_since_s is not None:
        found["since"] = instant_text(status.in_force_since_s)
        known = [each for each in state.events if each.kind is EventKind.SPLIT_IN_FORCE]
        found |= {"how": known[-1].message} if known else {}
    return found


def _executing(state: StoredState) -> dict[str, Any]:
    spec = state.rollout.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {"spec": spec}


def _objectives(status: RolloutStatus) -> list[dict[str, Any]]:
    """Returns what is known about the objectives; the most urgent ones keep their numbers."""
    found = [
        (
            each.verdict,
            {
                "candidate": candidate,
                "objective": str(each.metric),
                "verdict": each.verdict.value,
                "detail": each.detail,
            },
        )
        for candidate, assessment in status.assessments.items()
        for each in assessment.objectives
    ]
    left = _DETAIL_BYTES
    for _, each in sorted(found, key=lambda pair: _URGENCY.index(pair[0])):
        left -= _bytes(each["detail"])
        if left < 0:
            del each["detail"]
    return [each for _, each in found]


def _event_values(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {
        "number": event.number,
        "time": instant_text(event.time_s),
        "kind": event.kind.value,
        "message": escaped(event.message)[:_LONGEST_MESSAGE],
    }
    # JSON has no infinity.
    numbers = {key: each for key, each in event.numbers.items() if math.isfinite(each)}
    return found | ({"numbers": numbers} if numbers else {})


def _event_of(values: Mapping[str, Any]) -> Event:
    return Event(
        number=int(values["number"]),
        time_s=dt.datetime.fromisoformat(values["time"]).timestamp(),
        kind=EventKind(values["kind"]),
        message=values["message"],
        numbers={key: float(each) for key, each in values.get("numbers", {}).items()},
    )


def _instant(time_s: float | None) -> str | None:
    return None if time_s is None else instant_text(time_s)


def _bytes(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode())
