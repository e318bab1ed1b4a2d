"""Refuses plans and windows that make no sense, with the field, its value and a fix."""

import math
from collections.abc import Iterator

from tidegate.errors import TidegateError
from tidegate.evidence.buckets import BUCKETS
from tidegate.evidence.plan import (
    EvidencePlan,
    LimitTest,
    MixTest,
    Objective,
    QuantileTest,
    RateTest,
)
from tidegate.evidence.window import TrafficWindow, VersionTraffic

__all__ = ["EvidenceError", "check_plan", "check_window"]


class EvidenceError(TidegateError):
    """A plan, a window or a state is wrong; the message names the field, its value and a fix."""


def check_plan(plan: EvidencePlan) -> None:
    """Checks a plan.

    Raises:
        EvidenceError: The plan makes no sense.
    """
    for problem in _plan_problems(plan):
        raise EvidenceError(problem)


def check_window(plan: EvidencePlan, window: TrafficWindow) -> None:
    """Checks a window against the plan that is to judge it.

    Raises:
        EvidenceError: The window makes no sense.
    """
    for problem in _window_problems(plan, window):
        raise EvidenceError(problem)


def _plan_problems(plan: EvidencePlan) -> Iterator[str]:
    if plan.baseline == plan.candidate:
        yield f"candidate: {plan.candidate} is the baseline; name another version"
    for name in ("false_abort", "bad_promotion"):
        value = getattr(plan, name)
        if not 0 < value < 1:
            yield f"{name}: {value} is no error rate; use one between 0 and 1, like 0.01"
    if not 0 <= plan.detector_share <= 1:
        yield f"detector_share: {plan.detector_share} is no share; use one from 0 to 1"
    if not 0 < plan.within_s < math.inf:
        yield f"within_s: {plan.within_s} is no duration; use seconds above 0"
    metrics = [each.metric for each in plan.objectives]
    for index, each in enumerate(plan.objectives):
        if each.metric in metrics[:index]:
            yield f"objectives[{index}].metric: {each.metric} is there twice; keep one"
        for problem in _objective_problems(each):
            yield f"objectives[{index}].{problem}"


def _objective_problems(objective: Objective) -> Iterator[str]:
    if objective.least_trials < 1:
        yield f"least_trials: {objective.least_trials} is too small; use 1 or more"
    test = objective.test
    if isinstance(test, RateTest | QuantileTest) and not 1e-3 <= test.ratio <= 1e6:
        yield f"test.ratio: {test.ratio} is out of range; use 0.001 to 1000000"
    match test:
        case RateTest() if not 0 <= test.margin <= 1:
            yield f"test.margin: {test.margin} is out of range; use a rate from 0 to 1"
        case QuantileTest() if not 0 < test.quantile < 1:
            yield f"test.quantile: {test.quantile} is out of range; use one between 0 and 1"
        case MixTest() if not 0 <= test.distance <= 1:
            yield f"test.distance: {test.distance} is out of range; use one from 0 to 1"
        case LimitTest() if not math.isfinite(test.limit):
            yield f"test.limit: {test.limit} is no number; use a finite one"
        case LimitTest() if not 0 <= test.for_s < math.inf:
            yield f"test.for_s: {test.for_s} is no duration; use seconds from 0"
        case _:
            pass


def _window_problems(plan: EvidencePlan, window: TrafficWindow) -> Iterator[str]:
    if not (math.isfinite(window.start_s) and math.isfinite(window.end_s)):
        yield f"start_s, end_s: {window.start_s}, {window.end_s} are no times; use finite seconds"
    if window.end_s < window.start_s:
        yield f"end_s: {window.end_s} is before start_s, {window.start_s}; swap them"
    if window.lost < 0:
        yield f"lost: {window.lost} is negative; use 0 or more"
    for name, share in window.shares.items():
        if not 0 <= share <= 1:
            yield f"shares[{name!r}]: {share} is no share; use one from 0 to 1"
    for name in (plan.baseline, plan.candidate):
        if (traffic := window.versions.get(name)) is not None:
            for problem in _traffic_problems(plan, traffic):
                yield f"versions[{name!r}].{problem}"


def _traffic_problems(plan: EvidencePlan, traffic: VersionTraffic) -> Iterator[str]:
    if traffic.requests < 0:
        yield f"requests: {traffic.requests} is negative; use 0 or more"
    for each in plan.objectives:
        metric = each.metric
        match each.test:
            case RateTest():
                counted = traffic.rates.get(metric)
                if counted is not None and not 0 <= counted.events <= counted.trials:
                    yield (
                        f"rates[{metric!r}].events: {counted.events} is not between 0 and its"
                        f" trials, {counted.trials}; count each event in a trial"
                    )
            case QuantileTest():
                counts = traffic.histograms.get(metric)
                if counts is not None and len(counts) != BUCKETS:
                    yield (
                        f"histograms[{metric!r}]: has {len(counts)} buckets; give all {BUCKETS} of"
                        " tidegate.evidence.buckets"
                    )
                if counts is not None and min(counts, default=0) < 0:
                    yield f"histograms[{metric!r}]: {min(counts)} is negative; use 0 or more"
            case MixTest():
                for name, count in traffic.categories.get(metric, {}).items():
                    if count < 0:
                        place = f"categories[{metric!r}][{name!r}]"
                        yield f"{place}: {count} is negative; use 0 or more"
            case LimitTest():
                pass
