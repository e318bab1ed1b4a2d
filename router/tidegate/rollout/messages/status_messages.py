"""Converts the status of a rollout, what the evidence says, and its history to messages."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, Verdict
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.samples import ObjectiveSample, Sample
from tidegate.rollout.engine.stages import plan_of
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.messages.spec_messages import IMPORTANCES, enum_number, spec_message
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.texts import escaped
from tidegate.rollout.traffic import TrafficSplit
from tidegate.rollout.v1 import rollout_pb2

__all__ = [
    "assessment_message",
    "event_message",
    "rollout_message",
    "sample_message",
    "split_message",
    "status_message",
]

_PHASES: Final = {each: enum_number(rollout_pb2.Phase.DESCRIPTOR, each) for each in Phase}
_VERDICTS: Final = {each: enum_number(rollout_pb2.Verdict.DESCRIPTOR, each) for each in Verdict}


def rollout_message(
    rollout: Rollout,
    status: RolloutStatus | None = None,
    last_events: Iterable[Event] = (),
    problem: str = "",
) -> rollout_pb2.Rollout:
    """Returns a rollout and its status as a message.

    Args:
        rollout: The rollout.
        status: Its status; None leaves the message without one.
        last_events: The last events of the history, in order.
        problem: Why the rollout could not be evaluated; empty if it could.
    """
    message = spec_message(rollout)
    if status is not None:
        message.status.CopyFrom(status_message(rollout, status, last_events, problem))
    return message


def status_message(
    rollout: Rollout,
    status: RolloutStatus,
    last_events: Iterable[Event] = (),
    problem: str = "",
) -> rollout_pb2.RolloutStatus:
    """Returns a status as a message; the arguments are those of `rollout_message`."""
    has_begun = status.started_s is not None
    plan = plan_of(rollout.spec, status.original or TrafficSplit(weights={}))
    message = rollout_pb2.RolloutStatus(
        generation=status.generation,
        phase=_PHASES[status.phase],  # type: ignore[arg-type]
        reason=status.reason,
        message=escaped(status.message),
        stage=status.stage + 1 if has_begun else 0,
        stages=len(plan.stages),
        stage_text=str(plan.stages[status.stage]) if has_begun else "",
        in_force=status.is_settled and status.desired is not None,
        assessments=(assessment_message(*each) for each in status.assessments.items()),
        harm_spent=status.harm_spent - status.harm_forgiven,
        winner=status.winner,
        last_events=map(event_message, last_events),
        requests_per_second=status.requests_per_s,
        problem=escaped(problem),
        lost_requests=status.lost_requests,
    )
    canary = rollout.spec.strategy.canary
    if canary is not None and canary.ramp is not None:
        message.harm_budget = canary.ramp.harm_budget
    is_timed = status.phase is Phase.PROGRESSING and plan.time_limit_s is not None
    clock_s = status.clock_s if is_timed else None
    for name, time_s in (
        ("started_at", status.started_s),
        ("ended_at", status.ended_s),
        ("in_force_since", status.in_force_since_s),
        ("stage_since", status.stage_since_s),
        ("decide_by", None if clock_s is None else clock_s + (plan.time_limit_s or 0.0)),
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


def sample_message(sample: Sample) -> rollout_pb2.Sample:
    """Returns what the evidence said at a moment as a message."""
    return rollout_pb2.Sample(
        time=_timestamp(sample.time_s),
        weights=sample.weights,
        observed_weights=sample.observed,
        harm_spent=sample.harm_spent,
        requests_per_second=sample.requests_per_s,
        assessments=(
            rollout_pb2.Assessment(
                candidate=name,
                harm_e=found.harm_e,
                harm_threshold=found.harm_threshold,
                objectives=map(_numbers_message, found.objectives),
            )
            for name, found in sample.candidates.items()
        ),
    )


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
        message=escaped(event.message),
        numbers=event.numbers,
    )


def _objective_message(objective: ObjectiveAssessment) -> rollout_pb2.ObjectiveAssessment:
    message = _numbers_message(objective)
    message.importance = IMPORTANCES[objective.importance]  # type: ignore[assignment]
    message.baseline_trials = objective.baseline_trials
    message.candidate_trials = objective.candidate_trials
    message.started_healthy = objective.started_healthy
    message.detail = objective.detail
    return message


def _numbers_message(
    found: ObjectiveAssessment | ObjectiveSample,
) -> rollout_pb2.ObjectiveAssessment:
    return rollout_pb2.ObjectiveAssessment(
        metric=found.metric,
        verdict=_VERDICTS[found.verdict],  # type: ignore[arg-type]
        harm_e=found.harm_e,
        harm_threshold=found.harm_threshold,
        safe_e=found.safe_e,
        safe_threshold=found.safe_threshold,
        effect_limit=found.effect_limit,
        **_known(
            effect=found.effect,
            effect_low=found.effect_low,
            effect_high=found.effect_high,
            baseline_value=found.baseline_value,
            candidate_value=found.candidate_value,
        ),
    )


def _known(**numbers: float | None) -> Mapping[str, Any]:
    return {name: number for name, number in numbers.items() if number is not None}


def _timestamp(time_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(time_s * 1e6))
    return stamp
