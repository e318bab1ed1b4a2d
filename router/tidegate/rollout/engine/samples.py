"""Samples of a rollout over time, of which reports draw their plots.

The history has every decision with its numbers, but not how the evidence came about. A series of
samples has that, and its size is bounded: when it is full, every second sample of it goes.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, Verdict
from tidegate.rollout.engine.status import RolloutStatus

__all__ = [
    "MOST_SAMPLES",
    "CandidateSample",
    "ObjectiveSample",
    "Sample",
    "is_due",
    "sample_of",
    "thinned",
]

MOST_SAMPLES: Final = 400
"""A series has at most so many samples, and at least half as many once it was full."""


class ObjectiveSample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The numbers of an `ObjectiveAssessment`, in its terms."""

    metric: str
    verdict: Verdict
    harm_e: float
    harm_threshold: float
    safe_e: float
    safe_threshold: float
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    effect_limit: float
    baseline_value: float | None
    candidate_value: float | None


class CandidateSample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The numbers of an `Assessment`, in its terms."""

    harm_e: float
    harm_threshold: float
    objectives: tuple[ObjectiveSample, ...]


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What the traffic was and what the evidence said at a moment.

    Attributes:
        time_s: When, in seconds since the epoch.
        weights: The shares in percent that the rollout wants, by version.
        observed: The shares that were read.
        harm_spent: Extra bad requests so far, by the best estimate.
        requests_per_s: The host's requests per second, by a moving average.
        candidates: What the evidence said, by candidate.
    """

    time_s: float
    weights: dict[str, float]
    observed: dict[str, float]
    harm_spent: float
    requests_per_s: float
    candidates: dict[str, CandidateSample]


def sample_of(status: RolloutStatus, now_s: float) -> Sample:
    """Returns the sample of a status."""
    return Sample(
        time_s=now_s,
        weights={} if status.desired is None else status.desired.weights,
        observed={} if status.observed is None else status.observed.weights,
        harm_spent=status.harm_spent - status.harm_forgiven,
        requests_per_s=status.requests_per_s,
        candidates={name: _candidate(found) for name, found in status.assessments.items()},
    )


def is_due(first_s: float, last_s: float, now_s: float) -> bool:
    """Whether a series needs a sample now, for samples that are spread evenly.

    Args:
        first_s: The time of its first sample.
        last_s: The time of its last sample.
        now_s: The time.
    """
    return now_s - last_s >= (last_s - first_s) / MOST_SAMPLES


def thinned(times_s: Sequence[float]) -> tuple[float, ...]:
    """Returns the times of the samples to remove from a series, so that it may grow.

    Args:
        times_s: The times of the series, in order.
    """
    return () if len(times_s) <= MOST_SAMPLES else tuple(times_s[1:-1:2])


def _candidate(found: Assessment) -> CandidateSample:
    return CandidateSample(
        harm_e=found.harm_e,
        harm_threshold=found.harm_threshold,
        objectives=tuple(map(_objective, found.objectives)),
    )


def _objective(found: ObjectiveAssessment) -> ObjectiveSample:
    return ObjectiveSample(
        **{name: getattr(found, name) for name in ObjectiveSample.__struct_fields__}
    )
