"""What the evidence judges: the objectives of a comparison, and its error rates."""

import enum

import msgspec

from tidegate.evidence.window import MetricName, VersionName

__all__ = [
    "EvidencePlan",
    "Importance",
    "LimitTest",
    "MixTest",
    "Objective",
    "QuantileTest",
    "RateTest",
    "Test",
]


class Importance(enum.Enum):
    """What follows when an objective is proven to be missed."""

    ABORT = "abort"
    PAUSE = "pause"
    REPORT = "report"


class RateTest(msgspec.Struct, frozen=True, kw_only=True, tag="rate"):
    """Compares the rates of a bad event: candidate ≤ ratio × baseline + margin is acceptable.

    Attributes:
        ratio: The tolerated ratio of the candidate's rate to the baseline's.
        margin: The difference that does not matter, as a rate from 0 to 1.
    """

    ratio: float = 1.0
    margin: float = 0.0


class QuantileTest(msgspec.Struct, frozen=True, kw_only=True, tag="quantile"):
    """Compares a quantile of a number: candidate ≤ ratio × baseline is acceptable.

    Attributes:
        quantile: The quantile, between 0 and 1.
        ratio: The tolerated ratio of the candidate's quantile to the baseline's. If small numbers
            are bad, the baseline's to the candidate's.
        large_is_bad: Whether large numbers are bad, as for a latency.
    """

    quantile: float
    ratio: float = 1.0
    large_is_bad: bool = True


class MixTest(msgspec.Struct, frozen=True, kw_only=True, tag="mix"):
    """Compares how answers divide among categories.

    Attributes:
        distance: The tolerated total variation distance between the versions, from 0 to 1: the
            share of answers that would have to change category.
    """

    distance: float = 0.0


class LimitTest(msgspec.Struct, frozen=True, kw_only=True, tag="limit"):
    """Compares a gauge of the candidate with a limit. It has no error rate.

    Attributes:
        limit: The limit.
        large_is_bad: Whether the gauge must stay below the limit.
        for_s: How long the gauge must be past the limit before that counts, in seconds.
    """

    limit: float
    large_is_bad: bool = True
    for_s: float


Test = RateTest | QuantileTest | MixTest | LimitTest


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the candidate must not do worse than the baseline.

    Attributes:
        metric: The measure in the windows, and the objective's name.
        test: How the versions are compared.
        importance: What follows when the objective is proven to be missed.
        least_trials: Trials of the candidate below which the objective has no data.
        is_duration: Whether the compared numbers are durations in seconds, for sentences.
    """

    metric: MetricName
    test: Test
    importance: Importance = Importance.ABORT
    least_trials: int = 20
    is_duration: bool = False


class EvidencePlan(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison of a candidate with a baseline.

    Attributes:
        baseline: The version that is trusted.
        candidate: The version that is judged.
        objectives: What the candidate must not do worse.
        false_abort: The probability that a candidate that meets every objective is ever aborted,
            for all objectives and the change detector together.
        bad_promotion: The probability that a candidate that misses an objective is promoted.
        within_s: The time over which the change detector spreads its share of `false_abort`.
        detector_share: The part of `false_abort` that the change detector gets.
    """

    baseline: VersionName
    candidate: VersionName
    objectives: tuple[Objective, ...]
    false_abort: float = 0.01
    bad_promotion: float = 0.05
    within_s: float = 7200.0
    detector_share: float = 0.25
