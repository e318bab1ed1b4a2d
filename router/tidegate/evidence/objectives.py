"""What the evidence says about one objective: a verdict, and a sentence with the numbers."""

from typing import Final

from tidegate.evidence.assessment import ObjectiveAssessment, Verdict
from tidegate.evidence.buckets import PER_DOUBLING
from tidegate.evidence.limits import LimitState
from tidegate.evidence.mix import MixState
from tidegate.evidence.plan import (
    EvidencePlan,
    LimitTest,
    MixTest,
    Objective,
    QuantileTest,
    RateTest,
)
from tidegate.evidence.processes import HarmEvidence
from tidegate.evidence.quantiles import QuantileState
from tidegate.evidence.rates import RateState
from tidegate.evidence.state import EvidenceState, ObjectiveState
from tidegate.evidence.words import amount, count, interval, number, percent, share_interval, times

__all__ = ["assess_objective"]

_LEAST_PROVABLE_RATIO: Final = 2 ** (1 / PER_DOUBLING)


def _harm_threshold(plan: EvidencePlan, objective: Objective) -> float:
    """Returns the e-value from which an objective alone proves harm.

    The e-values of all objectives of the same importance are averaged, so one of K needs K times
    as much.
    """
    alike = [
        each
        for each in plan.objectives
        if each.importance is objective.importance and not isinstance(each.test, LimitTest)
    ]
    return max(len(alike), 1) / plan.false_abort


def assess_objective(
    plan: EvidencePlan, objective: Objective, remembered: ObjectiveState, state: EvidenceState
) -> ObjectiveAssessment:
    """Returns what the evidence says about an objective."""
    match objective.test, remembered:
        case RateTest() as test, RateState() as rates:
            return _assess_rate(plan, objective, test, rates, state)
        case QuantileTest() as test, QuantileState() as quantiles:
            return _assess_quantile(plan, objective, test, quantiles, state)
        case MixTest() as test, MixState() as mix:
            return _assess_mix(plan, objective, test, mix, state)
        case LimitTest() as test, LimitState() as limit:
            return _assess_limit(plan, objective, test, limit)
    raise AssertionError(f"{objective.metric}: the state is of another test")


def _assess_rate(
    plan: EvidencePlan,
    objective: Objective,
    test: RateTest,
    rates: RateState,
    state: EvidenceState,
) -> ObjectiveAssessment:
    low, high = rates.ratio_interval(plan.bad_promotion)
    candidate, baseline = rates.candidate, rates.baseline
    limit = test.ratio + (test.margin / baseline.rate if baseline.rate else 0.0)
    detail = ""
    if candidate.rate is not None and baseline.rate is not None:
        detail = (
            f"{percent(candidate.rate)} of {count(candidate.trials)} on {plan.candidate},"
            f" {percent(baseline.rate)} of {count(baseline.trials)} on {plan.baseline}:"
            f" {_compared(plan, rates, low, high)}; {_tolerated(test)}"
        )
    return _judged(
        plan,
        objective,
        harm=rates.harm(state.clock, plan.detector_share),
        safe_e=rates.safe_e(),
        effect=(rates.ratio, low, high, limit),
        candidate=(candidate.trials, candidate.rate),
        baseline=(baseline.trials, baseline.rate),
        detail=detail,
    )


def _compared(plan: EvidencePlan, rates: RateState, low: float | None, high: float | None) -> str:
    if rates.ratio is not None:
        return f"{times(rates.ratio)}{interval(low, high)}"
    if rates.candidate.events and not rates.baseline.events:
        return f"events on {plan.candidate} only{interval(low, high)}"
    if not rates.candidate.events and not rates.baseline.events:
        return "no event on either"
    return "too few at the same time"


def _tolerated(test: RateTest) -> str:
    if not test.margin:
        return f"{times(test.ratio)} is tolerated"
    if test.ratio == 1.0:
        return f"{percent(test.margin)} more is tolerated"
    return f"{times(test.ratio)} plus {percent(test.margin)} is tolerated"


def _assess_quantile(
    plan: EvidencePlan,
    objective: Objective,
    test: QuantileTest,
    quantiles: QuantileState,
    state: EvidenceState,
) -> ObjectiveAssessment:
    value_c, value_b = quantiles.quantiles(test)
    low, high = quantiles.interval(test, plan.bad_promotion)
    effect = value_c / value_b if value_c is not None and value_b else None
    if not test.large_is_bad:
        effect = 1.0 / effect if effect else None
        low, high = (1.0 / high if high else None), (1.0 / low if low else None)
    trials_c, trials_b = quantiles.candidate.requests, quantiles.baseline.requests
    detail = ""
    if effect is not None and value_c is not None and value_b is not None:
        way = "" if test.large_is_bad else " lower"
        told_c = amount(value_c, is_duration=objective.is_duration)
        told_b = amount(value_b, is_duration=objective.is_duration)
        detail = (
            f"the {percent(test.quantile)} quantile is {told_c} on {plan.candidate}"
            f" ({count(trials_c)} requests) and {told_b} on {plan.baseline} ({count(trials_b)}):"
            f" {times(effect)}{way}{interval(low, high)}; {times(test.ratio)} is tolerated"
        )
        if test.ratio < _LEAST_PROVABLE_RATIO:
            detail += ", and buckets of 9 % cannot prove a ratio below 1.09 to be met"
    return _judged(
        plan,
        objective,
        harm=quantiles.harm(state.clock, plan.detector_share),
        safe_e=quantiles.safe_e(),
        effect=(effect, low, high, test.ratio),
        candidate=(trials_c, value_c),
        baseline=(trials_b, value_b),
        detail=detail,
    )


def _assess_mix(
    plan: EvidencePlan, objective: Objective, test: MixTest, mix: MixState, state: EvidenceState
) -> ObjectiveAssessment:
    low, high = mix.interval(plan.bad_promotion)
    detail = ""
    if mix.weight:
        detail = "the first answers only tell which categories to compare"
    if (change := mix.largest_change()) is not None and mix.distance is not None:
        name, share_c, share_b = change
        detail = (
            f"{percent(mix.distance)} of the answers have moved{share_interval(low, high)};"
            f" {percent(test.distance)} is tolerated; most of all {name!r}:"
            f" {percent(share_c)} of {count(sum(mix.candidate))} on {plan.candidate},"
            f" {percent(share_b)} of {count(sum(mix.baseline))} on {plan.baseline}"
        )
    return _judged(
        plan,
        objective,
        harm=mix.harm(state.clock, plan.detector_share),
        safe_e=mix.safe_e(test),
        effect=(mix.distance, low, high, test.distance),
        candidate=(sum(mix.candidate), mix.chosen.rate),
        baseline=(sum(mix.baseline), mix.chosen_baseline.rate),
        detail=detail,
    )


def _assess_limit(
    plan: EvidencePlan, objective: Objective, test: LimitTest, limit: LimitState
) -> ObjectiveAssessment:
    verdict = Verdict.NO_DATA
    detail = f"the gauge has no value for {plan.candidate}; look at its query"
    if limit.value is not None:
        past = "above" if test.large_is_bad else "below"
        verdict = Verdict.MET if limit.is_met() else Verdict.OPEN
        detail = f"{number(limit.value)} on {plan.candidate}; the limit is {number(test.limit)}"
        if limit.past_since_s is not None:
            lasted_s = limit.read_s - limit.past_since_s
            detail = (
                f"{number(limit.value)} on {plan.candidate}, {past} {number(test.limit)} for"
                f" {number(lasted_s)}s; {number(test.for_s)}s are tolerated"
            )
        if limit.is_missed(test):
            verdict = Verdict.MISSED
    harm, safe = _harm_threshold(plan, objective), 1.0 / plan.bad_promotion
    return ObjectiveAssessment(
        metric=objective.metric,
        importance=objective.importance,
        verdict=verdict,
        harm_e=harm if verdict is Verdict.MISSED else 1.0,
        harm_threshold=harm,
        safe_e=safe if verdict is Verdict.MET else 1.0,
        safe_threshold=safe,
        effect=limit.value,
        effect_low=None,
        effect_high=None,
        effect_limit=test.limit,
        baseline_trials=0,
        baseline_value=None,
        candidate_trials=limit.readings,
        candidate_value=limit.value,
        detail=detail,
    )


def _judged(
    plan: EvidencePlan,
    objective: Objective,
    *,
    harm: HarmEvidence,
    safe_e: float,
    effect: tuple[float | None, float | None, float | None, float],
    candidate: tuple[int, float | None],
    baseline: tuple[int, float | None],
    detail: str,
) -> ObjectiveAssessment:
    threshold, safe_threshold = _harm_threshold(plan, objective), 1.0 / plan.bad_promotion
    verdict = Verdict.OPEN
    if harm.e >= threshold:
        verdict = Verdict.MISSED
    elif candidate[0] < objective.least_trials or not baseline[0]:
        verdict = Verdict.NO_DATA
        numbers = f" ({detail})" if detail else ""
        detail = _lacking(plan, objective, candidate[0], baseline[0]) + numbers
    elif safe_e >= safe_threshold:
        verdict = Verdict.MET
    value, low, high, limit = effect
    return ObjectiveAssessment(
        metric=objective.metric,
        importance=objective.importance,
        verdict=verdict,
        harm_e=harm.e,
        harm_threshold=threshold,
        safe_e=safe_e,
        safe_threshold=safe_threshold,
        effect=value,
        effect_low=low,
        effect_high=high,
        effect_limit=limit,
        baseline_trials=baseline[0],
        baseline_value=baseline[1],
        candidate_trials=candidate[0],
        candidate_value=candidate[1],
        started_healthy=harm.started_healthy,
        detail=detail,
    )


def _lacking(plan: EvidencePlan, objective: Objective, candidate: int, baseline: int) -> str:
    if candidate < objective.least_trials:
        return (
            f"{plan.candidate} has {count(candidate)} of the {objective.least_trials} that are"
            f" needed; look at whether it gets requests, and whether its answers carry the measure"
        )
    return f"{plan.baseline} has none to compare with ({count(baseline)}); give it some traffic"
