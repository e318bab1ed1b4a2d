"""Whether two versions differ by more than noise.

Each number is estimated for both versions, with an interval that assumes nothing about its
distribution (`tidegate.trace_analysis.intervals`). The difference of two numbers is within the
difference of their intervals. If that excludes zero, the difference is more than noise.

Many numbers are compared at once, so some would differ by chance. The errors of all intervals add
up to 5 % (Bonferroni): with a probability of 95 % every interval is right. What is compared is
chosen by the time that both versions together spend on a stage, never by how they differ.

This is one look at the data that there are. Somebody who looks again and again, until something
differs, finds it by chance. `tidegate.evidence` has tests for that; rollouts decide by them.
"""

from collections.abc import Sequence
from typing import Final

from tidegate.trace_analysis.calls import Call
from tidegate.trace_analysis.intervals import Estimate, Sample, quantile, share, shared_inflation
from tidegate.trace_analysis.report import Comparison, Difference, Verdict
from tidegate.trace_analysis.stages import Stage

__all__ = ["compare"]

_ERROR: Final = 0.05
_QUANTILES: Final = (0.5, 0.95, 0.99)
_STAGE_QUANTILES: Final = (0.5, 0.95)
_MOST_STAGES: Final = 8
_LEAST_SHARE: Final = 0.01
# Versions of which so many calls were made at the same time share its slow moments.
_SHARED: Final = 0.5


def compare(
    first_name: str, first: Sequence[Call], second_name: str, second: Sequence[Call]
) -> Comparison:
    """Compares the calls of two versions.

    Args:
        first_name: The first version.
        first: Its calls in the order of time. At least one is OK; the same for the second.
        second_name: The second version.
        second: Its calls.
    """
    pair = first, second
    answered = [[call for call in calls if call.is_ok] for calls in pair]
    means = [_stage_means(calls) for calls in answered]
    compared: list[tuple[Stage | None, float]] = [(None, each) for each in _QUANTILES]
    compared += [(each, part) for each in _largest_stages(answered) for part in _STAGE_QUANTILES]
    # Two estimates for each difference, and the share of failed calls.
    error = _ERROR / (len(compared) + 1) / 2.0
    overlap = _overlap(first, second)
    is_shared = overlap >= _SHARED
    differences = [
        _of_quantiles(answered, stage, probability, error, is_shared=is_shared)
        for stage, probability in compared
    ]
    differences.append(_of_failures(pair, error, is_shared=is_shared))
    by_stage = {
        stage.name: means[1].get(stage, 0.0) - means[0].get(stage, 0.0)
        for stage in means[0] | means[1]
    }
    return Comparison(
        first=first_name,
        second=second_name,
        confidence=1.0 - _ERROR,
        mean_us=sum(by_stage.values()),
        mean_by_stage_us=dict(sorted(by_stage.items(), key=lambda each: -abs(each[1]))),
        differences=tuple(differences),
        overlap=overlap,
    )


def _of_quantiles(
    answered: Sequence[Sequence[Call]],
    stage: Stage | None,
    probability: float,
    error: float,
    *,
    is_shared: bool,
) -> Difference:
    """Compares a quantile of a stage's time, or of the calls' without a stage."""
    samples = [
        Sample(
            [call.start_us for call in calls],
            [call.duration_us if stage is None else call.stages.get(stage, 0) for call in calls],
        )
        for calls in answered
    ]
    inflated = None
    if is_shared:
        limits = [quantile(each.numbers, probability, error, 1.0).value for each in samples]
        inflated = shared_inflation(
            *(
                Sample(each.times_us, [number > limit for number in each.numbers])
                for each, limit in zip(samples, limits, strict=True)
            )
        )
    first, second = (quantile(each.numbers, probability, error, inflated) for each in samples)
    return _difference("call" if stage is None else stage.name, probability, first, second)


def _of_failures(pair: Sequence[Sequence[Call]], error: float, *, is_shared: bool) -> Difference:
    samples = [
        Sample([call.start_us for call in calls], [not call.is_ok for call in calls])
        for calls in pair
    ]
    inflated = shared_inflation(*samples) if is_shared else None
    first, second = (share([*map(bool, each.numbers)], error, inflated) for each in samples)
    return _difference("failed calls", None, first, second)


def _difference(
    what: str, probability: float | None, first: Estimate, second: Estimate
) -> Difference:
    low = None if second.low is None or first.high is None else second.low - first.high
    high = None if second.high is None or first.low is None else second.high - first.low
    if low is not None and low > 0:
        verdict = Verdict.MORE
    elif high is not None and high < 0:
        verdict = Verdict.LESS
    else:
        verdict = Verdict.TOO_FEW if low is None or high is None else Verdict.NOISE
    return Difference(
        what=what,
        quantile=probability,
        first=first.value,
        second=second.value,
        low=low,
        high=high,
        verdict=verdict,
    )


def _stage_means(calls: Sequence[Call]) -> dict[Stage, float]:
    means: dict[Stage, float] = {}
    for call in calls:
        for stage, time_us in call.stages.items():
            means[stage] = means.get(stage, 0.0) + time_us / len(calls)
    return means


def _largest_stages(answered: Sequence[Sequence[Call]]) -> list[Stage]:
    totals = _stage_means([call for calls in answered for call in calls])
    least = _LEAST_SHARE * sum(totals.values())
    large = sorted(totals, key=lambda stage: -totals[stage])[:_MOST_STAGES]
    return [stage for stage in large if totals[stage] >= least]


def _overlap(first: Sequence[Call], second: Sequence[Call]) -> float:
    begin = max(first[0].start_us, second[0].start_us)
    end = min(first[-1].start_us, second[-1].start_us)
    within = sum(begin <= call.start_us <= end for calls in (first, second) for call in calls)
    return within / (len(first) + len(second))
