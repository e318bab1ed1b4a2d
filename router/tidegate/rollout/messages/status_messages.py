"""Converts the status of a rollout, what the evidence says, and its history to messages."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, Verdict
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.messages.spec_messages import IMPORTANCES, enum_number, spec_message
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import TrafficSplit
from tidegate.rollout.v1 import rollout_pb2

__all__ = [
    "assessment_message",
    "event_message",
    "rollout_message",
    "split_message",
    "status_message",
]

_PHASES: Final = {each: enum_number(rollout_pb2.Phase.DESCRIPTOR, each) for each in Phase}
_VERDICTS: Final = {each: enum_number(rollout_pb2.Verdict.DESCRIPTOR, each) for each in Verdict}


def rollout_message(
    rollout: Rollout,
    status: RolloutStatus | None = None,
    stages: Sequence[str] = (),
    last_events: Sequence[Event] = (),
) -> rollout_pb2.Rollout:
    """Returns a rollout and its status as a message.

    Args:
        rollout: The rollout.
        status: Its status; None leaves the message without one.
        stages: The stages in words, in order.
        last_events: The last events of the history, in order.
    """
    message = spec_message(rollout)
    if status is not None:
        message.status.CopyFrom(status_message(rollout, status, stages, last_events))
    return message


def status_message(
    rollout: Rollout,
    status: RolloutStatus,
    stages: Sequence[str] = (),
    last_events: Sequence[Event] = (),
) -> rollout_pb2.RolloutStatus:
    """Returns a status as a message; the arguments are those of `rollout_message`."""
    has_begun = status.started_s is not None
    message = rollout_pb2.RolloutStatus(
        generation=status.generation,
        phase=_PHASES[status.phase],  # type: ignore[arg-type]
        reason=status.reason,
        message=status.message,
        stage=status.stage + 1 if has_begun else 0,
        stages=len(stages),
        stage_text=stages[status.stage] if has_begun and status.stage < len(stages) else "",
        in_force=status.is_settled and status.desired is not None,
        assessments=(assessment_message(*each) for each in status.assessments.items()),
        harm_spent=status.harm_spent,
        winner=status.winner,
        last_events=map(event_message, last_events),
    )
    canary = rollout.spec.strategy.canary
    if canary is not None and canary.ramp is not None:
        message.harm_budget = canary.ramp.harm_budget
    for name, time_s in (
        ("started_at", status.started_s),
        ("ended_at", status.ended_s),
        ("in_force_since", status.in_force_since_s),
    ):
        if time_s is not None:
            getattr(message, name).CopyFrom(_timestamp(time_s))
    for name, split in (
        ("original", status.original),
        ("desired", status.desired),
        ("observed", status.observed),
    ):
        if split is not None:
            getattr(message, name).CopyFrom(split_message(split))
    return message


def split_message(split: TrafficSplit) -> rollout_pb2.Split:
    """Returns a split as a message."""
    return rollout_pb2.Split(
        weights=split.weights,
        mirrors=split.mirrors,
        testers=[f"{match} to {match.version}" for match in split.testers],
        sticky="" if split.sticky is None else str(split.sticky),
    )


def assessment_message(candidate: str, assessment: Assessment) -> rollout_pb2.Assessment:
    """Returns what the evidence says about a candidate as a message."""
    ratio = assessment.sample_ratio
    return rollout_pb2.Assessment(
        candidate=candidate,
        objectives=map(_objective_message, assessment.objectives),
        harm_e=assessment.harm_e,
        harm_threshold=assessment.harm_threshold,
        sample_ratio=rollout_pb2.SampleRatio(
            e=ratio.e,
            threshold=ratio.threshold,
            mismatch=ratio.mismatch,
            **_known(intended=ratio.intended, observed=ratio.observed),
        ),
        extra_bad_requests=assessment.extra_bad_requests,
        reason=assessment.reason,
    )


def event_message(event: Event) -> rollout_pb2.Event:
    """Returns an entry of the history as a message."""
    return rollout_pb2.Event(
        number=event.number,
        time=_timestamp(event.time_s),
        kind=event.kind.value,
        message=event.message,
        numbers=event.numbers,
    )


def _objective_message(objective: ObjectiveAssessment) -> rollout_pb2.ObjectiveAssessment:
    return rollout_pb2.ObjectiveAssessment(
        metric=objective.metric,
        importance=IMPORTANCES[objective.importance],  # type: ignore[arg-type]
        verdict=_VERDICTS[objective.verdict],  # type: ignore[arg-type]
        harm_e=objective.harm_e,
        harm_threshold=objective.harm_threshold,
        safe_e=objective.safe_e,
        safe_threshold=objective.safe_threshold,
        effect_limit=objective.effect_limit,
        baseline_trials=objective.baseline_trials,
        candidate_trials=objective.candidate_trials,
        started_healthy=objective.started_healthy,
        detail=objective.detail,
        **_known(
            effect=objective.effect,
            effect_low=objective.effect_low,
            effect_high=objective.effect_high,
            baseline_value=objective.baseline_value,
            candidate_value=objective.candidate_value,
        ),
    )


def _known(**numbers: float | None) -> Mapping[str, Any]:
    return {name: number for name, number in numbers.items() if number is not None}


def _timestamp(time_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(time_s * 1e6))
    return stamp
