"""What the evidence says: verdicts with the numbers that made them."""

import enum

import msgspec

from tidegate.evidence.plan import Importance
from tidegate.evidence.window import MetricName

__all__ = ["Assessment", "ObjectiveAssessment", "SampleRatio", "Verdict"]


class Verdict(enum.Enum):
    """What is proven about an objective.

    ``MISSED``: worse than tolerated. ``MET``: not as bad as the limit of what is tolerated.
    ``OPEN``: neither is proven. ``NO_DATA``: too little was measured to say anything.
    """

    NO_DATA = "no data"
    OPEN = "open"
    MET = "met"
    MISSED = "missed"


class ObjectiveAssessment(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence says about one objective.

    Attributes:
        metric: The objective's measure.
        importance: What follows when it is missed.
        verdict: What is proven.
        harm_e: The e-value against "the candidate is acceptable", with its share of the change
            detector; compare with `harm_threshold`.
        harm_threshold: The e-value from which this objective alone proves harm.
        safe_e: The e-value against "the candidate is at or past the limit of what is tolerated".
        safe_threshold: The e-value from which the objective is met.
        effect: The best estimate of the compared quantity; None without data. For a rate or a
            quantile the ratio candidate ÷ baseline (of a quantile of which small numbers are bad,
            baseline ÷ candidate), for a mix the total variation distance, for a limit the gauge.
        effect_low: Lower end of the effect's confidence sequence; None if unknown.
        effect_high: Upper end of the effect's confidence sequence; None if unknown.
        effect_limit: The effect that is tolerated; for a rate with a margin, at the baseline's rate
            so far.
        baseline_trials: Trials of the baseline so far.
        baseline_value: The baseline's rate or quantile, or of a mix its share of answers in the
            categories that the candidate has more of; None without data.
        candidate_trials: Trials of the candidate so far.
        candidate_value: The same of the candidate, or its gauge; None without data.
        started_healthy: Whether the change detector, not the test from the start, has the larger
            e-value: the candidate was fine at first.
        detail: One sentence in words, with the numbers.
    """

    metric: MetricName
    importance: Importance
    verdict: Verdict
    harm_e: float
    harm_threshold: float
    safe_e: float
    safe_threshold: float
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    effect_limit: float
    baseline_trials: int
    baseline_value: float | None
    candidate_trials: int
    candidate_value: float | None
    started_healthy: bool = False
    detail: str = ""


class SampleRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the versions got the shares of requests that they were meant to get.

    Attributes:
        e: The e-value against the intended shares.
        threshold: The e-value from which a mismatch is proven.
        intended: The candidate's intended share, averaged over the requests; None without data.
        observed: The candidate's observed share; None without data.
        mismatch: Whether a mismatch is proven.
    """

    e: float
    threshold: float
    intended: float | None
    observed: float | None
    mismatch: bool


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """What the evidence says about a candidate.

    Attributes:
        objectives: What it says about each objective, in the plan's order.
        harm_e: The combined e-value against "the candidate meets every objective of importance
            abort"; compare with `harm_threshold`.
        harm_threshold: One over the tolerated probability of a false abort.
        abort: Whether harm is proven.
        pause: Whether an objective of importance pause is proven to be missed.
        promote: Whether every objective of importance abort or pause is met, and there is one.
        sample_ratio: Whether the split was as intended.
        extra_bad_requests: The best estimate of how many more requests had a bad event than the
            baseline's rate explains, over the rate objectives of importance abort.
        excess_rate_high: An upper confidence bound of the candidate's rate of extra bad events,
            the largest over these objectives; 1 without data.
        reason: One sentence: why to abort, or what the evidence still lacks.
    """

    objectives: tuple[ObjectiveAssessment, ...]
    harm_e: float
    harm_threshold: float
    abort: bool
    pause: bool
    promote: bool
    sample_ratio: SampleRatio
    extra_bad_requests: float
    excess_rate_high: float
    reason: str
