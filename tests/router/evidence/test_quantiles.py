"""The test of a quantile: error rates, stalls, both directions, and what buckets can prove."""

import numpy as np
import pytest
from evidence_traffic import (
    assessed,
    decided,
    observed,
    plan_of,
    simulated_latencies,
    timed,
    window_of,
)

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.buckets import BUCKETS
from tidegate.evidence.plan import Objective, QuantileTest
from tidegate.evidence.window import VersionTraffic


def p99(ratio=1.2):
    return Objective(metric="latency", test=QuantileTest(quantile=0.99, ratio=ratio))


def median(ratio=1.2, *, large_is_bad=True):
    test = QuantileTest(quantile=0.5, ratio=ratio, large_is_bad=large_is_bad)
    return Objective(metric="latency", test=test)


@pytest.mark.parametrize("objective", [p99(), median()], ids=["p99", "median"])
def test_slower_candidate_is_aborted(objective):
    rng = np.random.default_rng(1)
    windows = simulated_latencies(rng, 100, lambda _: (0.1, 0.05))
    assert decided(plan_of(objective), windows) == "abort"


@pytest.mark.parametrize("objective", [p99(1.5), median(1.5)], ids=["p99", "median"])
def test_equally_fast_candidate_is_promoted(objective):
    rng = np.random.default_rng(2)
    windows = simulated_latencies(rng, 200, lambda _: (0.05, 0.05), 0.5)
    assert decided(plan_of(objective), windows) == "promote"


def test_few_false_aborts_at_the_limit():
    # A ratio of 2 to the 1/4 is two buckets, so nothing is lost by rounding.
    rng = np.random.default_rng(3)
    ratio = 2 ** (1 / 4)
    plan = plan_of(median(ratio), false_abort=0.1, bad_promotion=1e-9, within_s=200.0)
    ends = [
        decided(plan, simulated_latencies(rng, 40, lambda _: (0.05 * ratio, 0.05), 0.3, 300))
        for _ in range(100)
    ]
    # A binomial of 100 and 10 % is above 20 with a probability below 0.1 %.
    assert ends.count("abort") <= 20


@pytest.mark.parametrize("objective", [p99(1.5), median(1.5)], ids=["p99", "median"])
def test_few_bad_promotions_at_the_limit(objective):
    rng = np.random.default_rng(4)
    plan = plan_of(objective, false_abort=1e-9, bad_promotion=0.1)
    ends = [
        decided(plan, simulated_latencies(rng, 40, lambda _: (0.075, 0.05), 0.5, 300))
        for _ in range(80)
    ]
    # A binomial of 80 and 10 % is above 17 with a probability below 0.1 %.
    assert ends.count("promote") <= 17


@pytest.mark.parametrize("objective", [p99(), median()], ids=["p99", "median"])
def test_stall_that_slows_both_versions_alike_does_not_blame_the_candidate(objective):
    rng = np.random.default_rng(5)
    plan = plan_of(objective, bad_promotion=1e-200)
    for _ in range(5):
        windows = simulated_latencies(
            rng, 80, lambda i: (1.0, 1.0) if 40 <= i < 50 else (0.05, 0.05)
        )
        assert decided(plan, windows) == "open"


def test_stall_and_recovery_of_both_do_not_promote_a_slow_candidate():
    # The baseline's quantile falls by a factor of 20 while the candidate stays 1.5 times slower.
    rng = np.random.default_rng(6)
    plan = plan_of(p99(1.2), false_abort=1e-12)
    windows = simulated_latencies(rng, 60, lambda i: (1.5, 1.0) if i < 20 else (0.075, 0.05), 0.5)
    said = assessed(plan, list(windows)[:22])
    assert said.objectives[0].verdict is not Verdict.MET


def test_constant_latencies_can_be_promoted():
    # Every request of both versions is in one bucket, so the tail above it is empty.
    windows = [window_of(i, timed([0.05] * 250), timed([0.05] * 250), 0.5) for i in range(10)]
    assert decided(plan_of(p99(1.2)), windows) == "promote"


def test_candidate_with_a_heavy_tail_is_not_promoted_by_its_fast_half():
    slow = [0.01] * 200 + [1.0] * 50
    windows = [window_of(i, timed(slow), timed([0.05] * 250), 0.5) for i in range(10)]
    assert decided(plan_of(p99(1.2)), windows) == "abort"


def test_small_numbers_can_be_the_bad_ones():
    objective = median(1.2, large_is_bad=False)
    high, low = timed([0.9] * 200), timed([0.5] * 200)
    lower = [window_of(i, low, high, 0.5) for i in range(10)]
    higher = [window_of(i, high, low, 0.5) for i in range(10)]
    assert decided(plan_of(objective), lower) == "abort"
    assert decided(plan_of(objective), higher) == "promote"
    said = assessed(plan_of(objective), lower).objectives[0]
    assert said.effect == pytest.approx(1.8, rel=0.1)
    assert said.effect_low <= 1.8 <= said.effect_high


def test_interval_holds_the_ratio_of_the_quantiles():
    rng = np.random.default_rng(7)
    said = assessed(plan_of(median()), simulated_latencies(rng, 40, lambda _: (0.1, 0.05), 0.5))
    objective = said.objectives[0]
    assert objective.effect == pytest.approx(2.0, rel=0.1)
    assert objective.effect_low <= 2.0 <= objective.effect_high
    assert objective.effect_high / objective.effect_low < 1.6
    assert objective.candidate_value == pytest.approx(0.1, rel=0.1)
    assert "the 50% quantile is 0.0996 on v2 (10,027 requests)" in objective.detail


def test_ratio_that_buckets_cannot_prove_is_said():
    windows = [window_of(i, timed([0.05] * 250), timed([0.05] * 250), 0.5) for i in range(10)]
    said = assessed(plan_of(p99(1.05)), windows)
    assert not said.promote
    assert "cannot prove a ratio below 1.09" in said.objectives[0].detail


def test_version_without_the_measure_is_no_data():
    windows = [window_of(i, VersionTraffic(requests=50), timed([0.05] * 450)) for i in range(5)]
    said = assessed(plan_of(p99()), windows).objectives[0]
    assert said.verdict is Verdict.NO_DATA
    assert said.effect is None


def test_numbers_outside_of_the_grid_are_counted():
    counts = [0] * BUCKETS
    counts[0], counts[-1] = 100, 5
    traffic = VersionTraffic(requests=105, histograms={"latency": tuple(counts)})
    windows = [window_of(i, traffic, traffic, 0.5) for i in range(20)]
    assert not assessed(plan_of(p99()), windows).abort


def test_few_requests_in_a_window_still_find_a_slow_candidate():
    rng = np.random.default_rng(8)
    windows = simulated_latencies(rng, 400, lambda _: (0.15, 0.05), 0.1, 3)
    assert decided(plan_of(p99()), windows) == "abort"


def test_counts_of_different_shares_are_never_compared():
    # Both versions are slow while the candidate has half of the requests.
    quick = [window_of(i, timed([]), timed([0.05] * 100), 0.01) for i in range(3)]
    slow = [window_of(3, timed([1.0] * 50), timed([1.0] * 50), 0.5)]
    said = assessed(plan_of(median(), detector_share=0.0), [*quick, *slow])
    assert said.harm_e <= 1.0


@pytest.mark.parametrize("objective", [p99(), median()], ids=["p99", "median"])
def test_slow_candidate_is_not_promoted_after_both_versions_have_become_fast(objective):
    # The baseline was slow while it was cold and alone, so its remembered quantile is too high.
    rng = np.random.default_rng(9)
    plan = plan_of(objective, false_abort=1e-300)
    cold = simulated_latencies(rng, 20, lambda _: (1.0, 1.0), 0.001, 500)
    warm = simulated_latencies(rng, 60, lambda _: (0.075, 0.05), 0.5, 300)
    assert decided(plan, [*cold, *warm]) == "open"


@pytest.mark.parametrize("objective", [p99(), median()], ids=["p99", "median"])
def test_slow_candidate_is_found_soon_after_both_versions_have_become_fast(objective):
    rng = np.random.default_rng(10)
    cold = simulated_latencies(rng, 40, lambda _: (1.0, 1.0), 0.001, 500)
    warm = simulated_latencies(rng, 30, lambda _: (0.1, 0.05), 0.5, 300)
    assert decided(plan_of(objective), [*cold, *warm]) == "abort"


def test_steady_latencies_are_remembered_for_long():
    rng = np.random.default_rng(11)
    plan = plan_of(p99())
    for medians in ((0.05, 0.05), (0.02, 0.02)):
        steady = simulated_latencies(rng, 60, lambda _, medians=medians: medians, 0.1, 300, 0.02)
        assert sum(observed(plan, steady).objectives[0].recent) > 9_000


def test_effect_compares_the_versions_at_the_same_times():
    # The load grows while the candidate's share does: both versions are five times slower at the
    # end, and the candidate is always twice as slow.
    rng = np.random.default_rng(3)
    windows = [
        window_of(
            i,
            timed(0.02 * load * rng.lognormal(0, 0.3, round(200 * share))),
            timed(0.01 * load * rng.lognormal(0, 0.3, round(200 * (1 - share)))),
            share,
        )
        for i, (load, share) in enumerate([(1.0, 0.02)] * 50 + [(5.0, 0.5)] * 20)
    ]
    said = assessed(plan_of(median()), windows).objectives[0]
    assert said.effect == pytest.approx(2.0, rel=0.15)
    assert said.baseline_trials == sum(round(200 * (1 - s)) for s in [0.02] * 50 + [0.5] * 20)
