"""What the benchmark measures: error rates, detection, rules side by side, and cost.

Each function is given a number of runs and a seed, so that a pool of processes can share the runs;
`add` of a result puts the parts together.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from many_runs import ManyRuns, plan_of, replay
from rules import RULES
from traffic import Scenario, Window, drifting, shares_of_steps, stalling, windows

from tidegate.evidence.buckets import BUCKETS
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import EvidencePlan, MixTest, Objective, QuantileTest, RateTest
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "DETECTION",
    "HEALTHY",
    "SIDE_BY_SIDE",
    "Detection",
    "ErrorCount",
    "Stopped",
    "compare_with_engine",
    "count_errors",
    "detect",
    "lower_bound",
    "measure_cost_ms",
    "stop_by_rules",
    "upper_limit",
]

_STEPS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75)


def _alike(time_s: float, rate: float) -> float:
    del time_s
    return rate


_TOLERATED: Final = RateTest(ratio=1.2, margin=0.001)


def _at_the_limit(time_s: float, rate: float) -> float:
    del time_s
    return _TOLERATED.ratio * rate + _TOLERATED.margin


HEALTHY: Final = {
    scenario.name: (scenario, test)
    for scenario, test in (
        (
            Scenario("0.1 % fail on both", lambda _: 0.001, _alike, shares_of_steps(_STEPS, 7200)),
            RateTest(),
        ),
        (
            Scenario(
                "the rate drifts by ±90 %",
                drifting(0.005),
                _alike,
                shares_of_steps(_STEPS, 7200),
            ),
            RateTest(),
        ),
        (
            Scenario(
                "stalls: half of both fail",
                stalling(0.001, 0.5, 1200, 60),
                _alike,
                shares_of_steps(_STEPS, 7200),
            ),
            RateTest(),
        ),
        (
            Scenario(
                "one request a second",
                drifting(0.02),
                _alike,
                shares_of_steps((0.1, 0.5), 7200),
                rate=1.0,
            ),
            RateTest(),
        ),
        (
            Scenario(
                "at the limit of what is tolerated",
                drifting(0.005),
                _at_the_limit,
                shares_of_steps(_STEPS, 7200),
            ),
            _TOLERATED,
        ),
        (
            Scenario(
                "at the limit, 20 % fail",
                drifting(0.2),
                _at_the_limit,
                shares_of_steps(_STEPS, 7200),
                rate=20.0,
            ),
            _TOLERATED,
        ),
    )
}
"""Scenarios in which the candidate meets its objective, but by no room at all.

In each, the candidate's rate is exactly what the objective just tolerates. So an abort is false,
and a promotion is bad.
"""


@dataclass
class ErrorCount:
    """How often a rollout was decided wrongly.

    Attributes:
        runs: Rollouts.
        aborted: Rollouts that were ever aborted.
        promoted: Rollouts that were ever promoted.
        looks: How often each was looked at.
        aborted_by: Rollouts that were aborted by then, after each hundredth of the looks.
        z_aborted: Rollouts that a z-test for one look would have aborted, looking as often.
    """

    runs: int = 0
    aborted: int = 0
    promoted: int = 0
    looks: int = 0
    aborted_by: list[int] = field(default_factory=list)
    z_aborted: int = 0

    def add(self, other: ErrorCount) -> None:
        """Adds the count of other runs."""
        self.runs += other.runs
        self.aborted += other.aborted
        self.promoted += other.promoted
        self.z_aborted += other.z_aborted
        self.looks = other.looks
        ours = self.aborted_by or [0] * len(other.aborted_by)
        self.aborted_by = [a + b for a, b in zip(ours, other.aborted_by, strict=True)]


def count_errors(name: str, runs: int, seed: int, level: float, bad: float) -> ErrorCount:
    """Runs a scenario of `HEALTHY` to its end, whatever is decided, and counts the decisions."""
    scenario, test = HEALTHY[name]
    many = ManyRuns(plan_of(test, false_abort=level), runs)
    z_test = RULES["z-test, peeked at"](runs)
    aborted, promoted, z_aborted = (np.zeros(runs, dtype=bool) for _ in range(3))
    aborted_by, looks = [], round(scenario.lasts_s / scenario.window_s)
    for look, window in enumerate(windows(scenario, runs, np.random.default_rng(seed)), 1):
        many.observe(window)
        aborted |= many.harm_e() >= 1.0 / level
        promoted |= many.safe_e() >= 1.0 / bad
        z_aborted |= z_test.observe(window)
        if look * 100 // looks > (look - 1) * 100 // looks:
            aborted_by.append(int(aborted.sum()))
    return ErrorCount(
        runs, int(aborted.sum()), int(promoted.sum()), looks, aborted_by, int(z_aborted.sum())
    )


DETECTION: Final = (
    (0.001, 0.01, 0.05),
    (0.001, 0.01, 0.5),
    (0.01, 0.02, 0.1),
    (0.01, 0.05, 0.1),
    (0.001, 0.05, 0.05),
)
"""Rates of baseline and candidate, and the candidate's share."""


@dataclass
class Detection:
    """How many requests a candidate takes to be found out.

    Attributes:
        runs: Rollouts.
        requests: Requests of both versions until the abort, summed.
        squares: Their squares, summed.
    """

    runs: int = 0
    requests: float = 0.0
    squares: float = 0.0

    def add(self, other: Detection) -> None:
        """Adds other runs."""
        self.runs += other.runs
        self.requests += other.requests
        self.squares += other.squares

    @property
    def mean(self) -> float:
        """The mean of the requests."""
        return self.requests / self.runs

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(max(self.squares / self.runs - self.mean**2, 0.0) / self.runs)


def detect(
    rates: tuple[float, float, float], runs: int, seed: int, level: float, per_window: int = 100
) -> Detection:
    """Runs until each rollout is aborted: ratio 1, margin 0, no share for the change detector."""
    rate_b, rate_c, share = rates
    rng = np.random.default_rng(seed)
    many = ManyRuns(plan_of(RateTest(), detector_share=0.0), runs, with_safety=False)
    found, used, left = Detection(), 0, runs
    while left:
        trials_c = rng.binomial(per_window, share, left)
        trials_b = per_window - trials_c
        events_c, events_b = rng.binomial(trials_c, rate_c), rng.binomial(trials_b, rate_b)
        many.observe(Window(0.0, 1.0, share, trials_c, events_c, trials_b, events_b))
        used += per_window
        stopped = many.harm_e() >= 1.0 / level
        count = int(stopped.sum())
        found.add(Detection(count, float(used * count), float(used**2 * count)))
        many.keep(~stopped)
        left -= count
    return found


def lower_bound(rates: tuple[float, float, float], level: float) -> float:
    """Returns the requests that any test of this level needs on average (Wald 1945).

    The baseline's rate is unknown, so the null that is nearest counts: both versions at the pooled
    rate p̄. The bound is ln(1/α) ÷ (w·KL(p_c ‖ p̄) + (1 − w)·KL(p_b ‖ p̄)).
    """
    rate_b, rate_c, share = rates
    pooled = share * rate_c + (1 - share) * rate_b
    information = share * _divergence(rate_c, pooled) + (1 - share) * _divergence(rate_b, pooled)
    return math.log(1 / level) / information


def _divergence(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


_STEPS_OF_RULES: Final = shares_of_steps((0.1, 0.25, 0.5, 0.75), 600)


def _of_a_rollout(
    name: str, baseline: float, candidate: float, *, rate: float = 100.0, from_s: float = 0.0
) -> Scenario:
    return Scenario(
        name,
        lambda _: baseline,
        lambda time_s, base: candidate if time_s >= from_s else base,
        _STEPS_OF_RULES,
        rate,
        600.0,
        5.0,
    )


SIDE_BY_SIDE: Final = {
    scenario.name: (scenario, healthy)
    for scenario, healthy in (
        (_of_a_rollout("healthy: 0.1 % fail on both", 0.001, 0.001), True),
        (_of_a_rollout("healthy, 4 requests a second, 0.5 %", 0.005, 0.005, rate=4.0), True),
        (
            Scenario(
                "healthy, a stall: half of both fail for 60 s",
                stalling(0.001, 0.5, 600, 60),
                _alike,
                _STEPS_OF_RULES,
                100.0,
                600.0,
                5.0,
            ),
            True,
        ),
        (_of_a_rollout("0.5 % fail", 0.001, 0.005), False),
        (_of_a_rollout("1 % fail", 0.001, 0.01), False),
        (_of_a_rollout("5 % fail", 0.001, 0.05), False),
        (_of_a_rollout("50 % fail", 0.001, 0.5), False),
        (_of_a_rollout("5 % fail from weight 50 on", 0.001, 0.05, from_s=300.0), False),
    )
}
"""Rollouts of ten minutes (10, 25, 50 and 75 % for 150 s each) and whether they are healthy."""


@dataclass
class Stopped:
    """What a rule did in a scenario.

    Attributes:
        runs: Rollouts.
        early: Rollouts that it aborted before the candidate became worse.
        aborted: Rollouts that it aborted since.
        seconds: How long after the candidate became worse, summed over these.
        harm: Failed calls beyond the baseline's rate until the abort or the end, summed.
    """

    runs: int = 0
    early: int = 0
    aborted: int = 0
    seconds: float = 0.0
    harm: float = 0.0

    def add(self, other: Stopped) -> None:
        """Adds other runs."""
        self.runs += other.runs
        self.early += other.early
        self.aborted += other.aborted
        self.seconds += other.seconds
        self.harm += other.harm


def stop_by_rules(name: str, runs: int, seed: int) -> dict[str, Stopped]:
    """Gives the same windows to every rule."""
    scenario, _ = SIDE_BY_SIDE[name]
    rules = {rule: make(runs) for rule, make in RULES.items()}
    stopped = {rule: np.full(runs, np.inf) for rule in rules}
    harm = {rule: np.zeros(runs) for rule in rules}
    worse_s = math.inf
    for window in windows(scenario, runs, np.random.default_rng(seed)):
        rate_b = scenario.baseline(window.start_s)
        excess = scenario.candidate(window.start_s, rate_b) - rate_b
        if excess > 0:
            worse_s = min(worse_s, window.start_s)
        for rule, decides in rules.items():
            harm[rule] += np.where(np.isinf(stopped[rule]), window.trials_c * excess, 0.0)
            aborts = decides.observe(window) & np.isinf(stopped[rule])
            stopped[rule][aborts] = window.end_s
    since_s = 0.0 if math.isinf(worse_s) else worse_s
    return {rule: _stopped(stopped[rule], harm[rule], since_s) for rule in rules}


def _stopped(
    at_s: npt.NDArray[np.float64], harm: npt.NDArray[np.float64], since_s: float
) -> Stopped:
    late = np.isfinite(at_s) & (at_s > since_s)
    return Stopped(
        runs=len(at_s),
        early=int((at_s <= since_s).sum()),
        aborted=int(late.sum()),
        seconds=float((at_s[late] - since_s).sum()),
        harm=float(harm.sum()),
    )


def compare_with_engine(runs: int, seed: int) -> tuple[float, int]:
    """Returns the largest relative difference between the e-values of the engine and of `ManyRuns`.

    The second number is how many e-values were compared.
    """
    scenario = Scenario(
        "", drifting(0.01), lambda _, base: 2 * base, shares_of_steps(_STEPS, 300), 100.0, 300.0
    )
    seen = list(windows(scenario, runs, np.random.default_rng(seed)))
    return replay(plan_of(_TOLERATED), seen, runs)


def measure_cost_ms(rounds: int = 300) -> float:
    """Returns the median time that a window and an assessment of three objectives take."""
    plan = EvidencePlan(
        baseline="v1",
        candidate="v2",
        objectives=(
            Objective(metric="failures", test=_TOLERATED),
            Objective(metric="latency", test=QuantileTest(quantile=0.99, ratio=1.2)),
            Objective(metric="labels", test=MixTest(distance=0.05)),
        ),
    )
    rng = np.random.default_rng(1)
    state, times = begin(plan), []
    for index in range(rounds):
        seen = _rich_window(index, rng)
        began = time.perf_counter()
        state = observe(plan, state, seen)
        assess(plan, state)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1000


def _rich_window(index: int, rng: np.random.Generator) -> TrafficWindow:
    shape = np.exp(-0.5 * ((np.arange(BUCKETS) - 110) / 6.0) ** 2)
    versions = {}
    for name, trials in (("v1", 450), ("v2", 50)):
        labels = rng.multinomial(trials, np.full(20, 0.05)).tolist()
        versions[name] = VersionTraffic(
            requests=trials,
            rates={"failures": Counted(trials, int(rng.binomial(trials, 0.001)))},
            histograms={"latency": tuple(rng.multinomial(trials, shape / shape.sum()).tolist())},
            categories={"labels": {f"label {place}": n for place, n in enumerate(labels)}},
        )
    return TrafficWindow(
        start_s=5.0 * index,
        end_s=5.0 * index + 5.0,
        shares={"v1": 0.9, "v2": 0.1},
        versions=versions,
    )


def upper_limit(count: int, runs: int, confidence: float) -> float:
    """Returns the upper confidence limit of a probability (Clopper and Pearson 1934)."""
    if count >= runs:
        return 1.0
    low, high = count / runs, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(count, runs, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(count: int, runs: int, rate: float) -> float:
    """Returns the probability of at most so many events."""
    logs = [
        math.lgamma(runs + 1)
        - math.lgamma(k + 1)
        - math.lgamma(runs - k + 1)
        + k * math.log(rate)
        + (runs - k) * math.log1p(-rate)
        for k in range(count + 1)
    ]
    top = max(logs)
    return math.exp(top) * sum(math.exp(each - top) for each in logs)
