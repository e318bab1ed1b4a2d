"""The three functions that everything else calls: begin, observe a window, assess.

The e-values of all objectives of importance abort are averaged, each with the test from the start
and the change detector in it. The average is an e-process of "every objective is met", so it ever
reaches 1/false_abort with a probability of at most false_abort, whatever the objectives have to do
with each other. Objectives of importance pause have an average of their own at the same level, and
so have those that are only reported.

Promotion needs the proof that each objective is met. A candidate that misses one is promoted only
if that one's proof is wrong, so each is tested at the full level bad_promotion (an
intersection-union test: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling").
"""

from collections.abc import Iterator
from typing import Final

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, Verdict
from tidegate.evidence.checks import EvidenceError, check_plan, check_window
from tidegate.evidence.limits import LimitState
from tidegate.evidence.mix import MixState
from tidegate.evidence.objectives import assess_objective
from tidegate.evidence.plan import (
    EvidencePlan,
    Importance,
    LimitTest,
    MixTest,
    Objective,
    QuantileTest,
    RateTest,
)
from tidegate.evidence.quantiles import QuantileState
from tidegate.evidence.rates import NO_TRIALS, RateState
from tidegate.evidence.sample_ratio import SampleRatioState
from tidegate.evidence.state import EvidenceState, ObjectiveState, begin_objectives
from tidegate.evidence.window import TrafficWindow, VersionTraffic
from tidegate.evidence.words import number

__all__ = ["assess", "begin", "observe"]

_NO_TRAFFIC: Final = VersionTraffic()


def begin(plan: EvidencePlan) -> EvidenceState:
    """Returns the state before any traffic.

    Raises:
        EvidenceError: The plan makes no sense.
    """
    check_plan(plan)
    return EvidenceState(
        metrics=tuple(each.metric for each in plan.objectives),
        objectives=begin_objectives(plan),
    )


def observe(plan: EvidencePlan, state: EvidenceState, window: TrafficWindow) -> EvidenceState:
    """Returns the state after a window. The cost does not grow with the requests or the windows.

    Raises:
        EvidenceError: The window makes no sense, or the state is of another plan.
    """
    _check_state(plan, state)
    check_window(plan, window)
    clock, stake = state.clock.pass_window(window.start_s, window.end_s, plan.within_s)
    return EvidenceState(
        metrics=state.metrics,
        objectives=tuple(
            _observed(plan, objective, remembered, window, stake)
            for objective, remembered in zip(plan.objectives, state.objectives, strict=True)
        ),
        sample_ratio=_split_observed(plan, state.sample_ratio, window),
        clock=clock,
    )


def assess(plan: EvidencePlan, state: EvidenceState) -> Assessment:
    """Returns what the evidence says now.

    Raises:
        EvidenceError: The state is of another plan.
    """
    _check_state(plan, state)
    each_says = tuple(
        assess_objective(plan, objective, remembered, state)
        for objective, remembered in zip(plan.objectives, state.objectives, strict=True)
    )
    sample_ratio = state.sample_ratio.assess()
    abort_e, abort = _combined(plan, each_says, Importance.ABORT)
    _, pause = _combined(plan, each_says, Importance.PAUSE)
    deciding = [each for each in each_says if each.importance is not Importance.REPORT]
    promote = (
        bool(deciding)
        and not abort
        and not pause
        and all(each.verdict is Verdict.MET for each in deciding)
    )
    aborting_rates = [
        remembered
        for objective, remembered in zip(plan.objectives, state.objectives, strict=True)
        if objective.importance is Importance.ABORT and isinstance(remembered, RateState)
    ]
    return Assessment(
        objectives=each_says,
        harm_e=abort_e,
        harm_threshold=1.0 / plan.false_abort,
        abort=abort,
        pause=pause,
        promote=promote,
        sample_ratio=sample_ratio,
        extra_bad_requests=sum(each.extra_events() for each in aborting_rates),
        excess_rate_high=max(
            (each.excess_high(plan.bad_promotion) for each in aborting_rates), default=1.0
        ),
        reason=_reason(plan, each_says, abort=abort, pause=pause, promote=promote),
    )


def _check_state(plan: EvidencePlan, state: EvidenceState) -> None:
    metrics = tuple(each.metric for each in plan.objectives)
    kinds = [type(each) for each in begin_objectives(plan)]
    if state.metrics != metrics or [type(each) for each in state.objectives] != kinds:
        raise EvidenceError(
            f"state.metrics: {', '.join(state.metrics) or 'none'} are the objectives of another"
            f" plan, not {', '.join(metrics) or 'none'}; begin anew with the changed plan"
        )


def _observed(
    plan: EvidencePlan,
    objective: Objective,
    remembered: ObjectiveState,
    window: TrafficWindow,
    stake: float,
) -> ObjectiveState:
    candidate = window.versions.get(plan.candidate, _NO_TRAFFIC)
    baseline = window.versions.get(plan.baseline, _NO_TRAFFIC)
    metric = objective.metric
    match objective.test, remembered:
        case RateTest() as test, RateState() as rates:
            counts = [each.rates.get(metric, NO_TRIALS) for each in (candidate, baseline)]
            return rates.observe(
                test, counts[0], counts[1], share=_share(plan, window), stake=stake
            )
        case QuantileTest() as test, QuantileState() as quantiles:
            buckets = [each.histograms.get(metric) for each in (candidate, baseline)]
            return quantiles.observe(
                test, buckets[0], buckets[1], share=_share(plan, window), stake=stake
            )
        case MixTest() as test, MixState() as mix:
            answers = [each.categories.get(metric, {}) for each in (candidate, baseline)]
            return mix.observe(test, answers[0], answers[1], stake)
        case LimitTest() as test, LimitState() as limit:
            return limit.observe(test, candidate.gauges.get(metric), window.end_s)
    raise AssertionError(f"{metric}: the state is of another test")


def _split_observed(
    plan: EvidencePlan, remembered: SampleRatioState, window: TrafficWindow
) -> SampleRatioState:
    if window.lost:
        return remembered
    candidate = window.versions.get(plan.candidate, _NO_TRAFFIC)
    baseline = window.versions.get(plan.baseline, _NO_TRAFFIC)
    return remembered.observe(candidate.requests, baseline.requests, _share(plan, window))


def _share(plan: EvidencePlan, window: TrafficWindow) -> float:
    """Returns the candidate's intended share of both versions' requests."""
    candidate = window.shares.get(plan.candidate, 0.0)
    total = candidate + window.shares.get(plan.baseline, 0.0)
    return candidate / total if total else 0.0


def _combined(
    plan: EvidencePlan, assessed: tuple[ObjectiveAssessment, ...], importance: Importance
) -> tuple[float, bool]:
    """Returns the combined e-value of an importance, and whether a miss is proven."""
    pairs = [
        (objective, each)
        for objective, each in zip(plan.objectives, assessed, strict=True)
        if each.importance is importance
    ]
    e_values = [
        each.harm_e for objective, each in pairs if not isinstance(objective.test, LimitTest)
    ]
    e = sum(e_values) / len(e_values) if e_values else 1.0
    past_limit = any(
        each.verdict is Verdict.MISSED
        for objective, each in pairs
        if isinstance(objective.test, LimitTest)
    )
    return e, past_limit or e >= 1.0 / plan.false_abort


def _reason(
    plan: EvidencePlan,
    assessed: tuple[ObjectiveAssessment, ...],
    *,
    abort: bool,
    pause: bool,
    promote: bool,
) -> str:
    if abort or pause:
        importance = Importance.ABORT if abort else Importance.PAUSE
        guilty = [each for each in assessed if each.importance is importance]
        worst = max(guilty, key=lambda each: (each.verdict is Verdict.MISSED, each.harm_e))
        since = " after a healthy start" if worst.started_healthy else ""
        told = f"{plan.candidate} is worse{since}: {worst.metric}: {worst.detail}"
        limits = {each.metric for each in plan.objectives if isinstance(each.test, LimitTest)}
        if worst.metric not in limits and worst.harm_e >= worst.harm_threshold:
            odds, needed = number(min(worst.harm_e, 1e9)), number(worst.harm_threshold)
            return f"{told} (evidence of harm {odds} to 1; {needed} to 1 is enough)"
        return told
    if promote:
        return f"{plan.candidate} is proven to meet every objective"
    return "; ".join(_lacks(assessed)) or "no objective decides"


def _lacks(assessed: tuple[ObjectiveAssessment, ...]) -> Iterator[str]:
    for each in assessed:
        if each.importance is Importance.REPORT or each.verdict is Verdict.MET:
            continue
        if each.verdict is Verdict.NO_DATA:
            yield f"{each.metric} has no data: {each.detail}"
        else:
            yield (
                f"{each.metric} is not decided: the e-value of its proof is {number(each.safe_e)},"
                f" and {number(each.safe_threshold)} are needed"
            )
