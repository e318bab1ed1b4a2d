"""The test of a rate: its error rates, its effect, and what it says about extra failures."""

import numpy as np
import pytest
from evidence_traffic import assessed, decided, observed, plan_of, rate_window, simulated_rates

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import Objective, RateTest

EXACT = Objective(metric="failures", test=RateTest())


def judged(plan, *windows):
    said = assessed(plan, [rate_window(i, *each) for i, each in enumerate(windows)])
    return said, said.objectives[0]


def test_few_false_aborts_and_bad_promotions_at_the_limit():
    # Exactly what is tolerated, with a base rate that drifts: the hardest case for both.
    rng = np.random.default_rng(1)
    plan = plan_of(false_abort=0.1, bad_promotion=0.1, within_s=300.0)

    def rates(index):
        rate_b = 0.02 * (1.0 + 0.9 * np.sin(index / 5))
        return 1.2 * rate_b + 0.001, rate_b

    ends = [decided(plan, simulated_rates(rng, 60, rates, 0.3)) for _ in range(150)]
    # A binomial of 150 and 10 % is above 27 with a probability below 0.1 %.
    assert ends.count("abort") <= 27
    assert ends.count("promote") <= 27


def test_worse_candidate_is_aborted_and_a_good_one_promoted():
    rng = np.random.default_rng(2)
    plan = plan_of()
    bad = simulated_rates(rng, 200, lambda _: (0.05, 0.001))
    good = simulated_rates(rng, 200, lambda _: (0.001, 0.001), 0.5)
    assert decided(plan, bad) == "abort"
    assert decided(plan, good) == "promote"


def test_weights_that_change_while_the_base_rate_drifts_do_not_blame_the_candidate():
    # Much traffic while failures are many: pooled over time the candidate looks ten times worse.
    plan = plan_of(EXACT)
    quiet = [((10, 0), (990, 1))] * 40
    busy = [((500, 50), (500, 50))] * 10
    said, objective = judged(plan, *quiet, *busy)
    assert not said.abort
    assert objective.effect == pytest.approx(1.0, rel=0.1)
    assert objective.candidate_value > 3 * objective.baseline_value


def test_stall_of_both_versions_does_not_blame_the_candidate():
    rng = np.random.default_rng(3)
    plan = plan_of(EXACT)
    for _ in range(10):
        stalls = simulated_rates(rng, 100, lambda i: (0.6, 0.6) if 40 <= i < 50 else (0.001, 0.001))
        assert decided(plan, stalls) == "open"


def test_copies_of_the_same_requests_are_no_reason_to_abort():
    # Both versions fail on the same requests, so their counts are not independent.
    rng = np.random.default_rng(9)
    plan = plan_of(EXACT, bad_promotion=1e-12)
    for _ in range(10):
        counts = rng.binomial(300, rng.beta(0.5, 5, 100))
        windows = [rate_window(i, (300, int(n)), (300, int(n)), 0.5) for i, n in enumerate(counts)]
        assert decided(plan, windows) == "open"


@pytest.mark.parametrize("events", [0, 5, 20, 40])
def test_more_failures_of_the_candidate_never_look_better(events):
    plan = plan_of()
    before = [((50, 1), (450, 2))] * 3
    fewer = judged(plan, *before, ((50, events), (450, 2)))[1]
    more = judged(plan, *before, ((50, events + 5), (450, 2)))[1]
    assert more.harm_e >= fewer.harm_e
    assert more.safe_e <= fewer.safe_e


@pytest.mark.parametrize("events", [0, 5, 100])
def test_more_failures_of_the_baseline_never_make_the_candidate_look_worse(events):
    plan = plan_of()
    before = [((50, 1), (450, 2))] * 3
    fewer = judged(plan, *before, ((50, 3), (450, events)))[1]
    more = judged(plan, *before, ((50, 3), (450, events + 20)))[1]
    assert more.harm_e <= fewer.harm_e
    assert more.safe_e >= fewer.safe_e


def test_confidence_sequence_holds_the_true_ratio_at_every_look():
    rng = np.random.default_rng(4)
    plan = plan_of(EXACT, bad_promotion=0.2)
    outside = 0
    for _ in range(60):
        windows = list(simulated_rates(rng, 40, lambda _: (0.06, 0.02), 0.5))
        low, high = 0.0, np.inf
        for count in (5, 10, 20, 40):
            objective = assessed(plan, windows[:count]).objectives[0]
            low = max(low, objective.effect_low or 0.0)
            high = min(high, objective.effect_high or np.inf)
        outside += not low <= 3.0 <= high
    # A binomial of 60 and 20 % is above 22 with a probability below 0.1 %.
    assert outside <= 22
    assert low > 1.0
    assert high < 10.0


def test_best_estimate_and_interval_are_in_the_sentence():
    rng = np.random.default_rng(5)
    said = assessed(plan_of(), simulated_rates(rng, 40, lambda _: (0.05, 0.001)))
    objective = said.objectives[0]
    assert objective.verdict is Verdict.MISSED
    assert objective.effect_low < objective.effect
    assert "4.66% of 1,975 on v2, 0.139% of 18,025 on v1: 32.7 times (" in objective.detail
    assert "1.2 times plus 0.1% is tolerated" in objective.detail
    assert said.reason.startswith("v2 is worse: failures: ")


def test_upper_bound_of_the_excess_falls_from_one_with_healthy_traffic():
    plan = plan_of()
    bounds = [
        assessed(plan, [rate_window(i, (500, 0), (500, 1), 0.5) for i in range(count)])
        for count in (0, 1, 5, 20)
    ]
    highs = [each.excess_rate_high for each in bounds]
    assert highs[0] == 1.0
    assert highs == sorted(highs, reverse=True)
    assert highs[-1] <= 0.001


def test_upper_bound_of_the_excess_is_above_the_truth():
    rng = np.random.default_rng(6)
    plan = plan_of(bad_promotion=0.1)
    below = 0
    for _ in range(60):
        windows = list(simulated_rates(rng, 20, lambda _: (0.03, 0.01), 0.3))
        lowest = min(assessed(plan, windows[:n]).excess_rate_high for n in (2, 5, 10, 20))
        below += lowest < 0.02
    # A binomial of 60 and 10 % is above 14 with a probability below 0.2 %.
    assert below <= 14


@pytest.mark.parametrize(
    ("windows", "extra"),
    [
        ([((100, 10), (900, 9))], 9.0),
        ([((100, 10), (900, 0))], 10.0),
        ([((100, 0), (900, 9))], 0.0),
        ([((100, 1), (900, 9))], 0.0),
        ([((0, 0), (900, 9)), ((100, 10), (0, 0))], 9.0),
        ([], 0.0),
    ],
)
def test_extra_bad_requests_are_those_beyond_the_baselines_rate(windows, extra):
    assert judged(plan_of(), *windows)[0].extra_bad_requests == pytest.approx(extra)


def test_change_after_a_healthy_start_is_found_and_said():
    rng = np.random.default_rng(7)
    windows = list(simulated_rates(rng, 330, lambda i: (0.001 if i < 300 else 0.05, 0.001), 0.05))
    with_detector, without = plan_of(), plan_of(detector_share=0.0)
    assert decided_at(without, windows) > decided_at(with_detector, windows)
    found = decided_at(with_detector, windows)
    assert 300 < found <= 312
    assert "v2 is worse after a healthy start" in assessed(with_detector, windows[:found]).reason


def decided_at(plan, windows):
    """Returns after how many windows the candidate is aborted; one more than all if never."""
    state = begin(plan)
    for count, each in enumerate(windows, 1):
        state = observe(plan, state, each)
        if assess(plan, state).abort:
            return count
    return len(windows) + 1


def test_candidate_that_fails_less_is_promoted_without_any_room():
    said, objective = judged(plan_of(EXACT), *[((250, 5), (250, 25))] * 8)
    assert said.promote
    assert objective.effect_high < 1.0


def test_a_billion_requests_are_no_trouble():
    plan = plan_of()
    state = observed(
        plan, [rate_window(i, (10**8, 10**6 * i), (9 * 10**8, 10**5)) for i in range(10)]
    )
    said = assessed(plan, [rate_window(0, (10**9, 10**9), (10**9, 0))])
    assert np.isfinite(state.objectives[0].stakes).all()
    assert said.abort
    assert np.isfinite(said.harm_e)


def test_counts_of_few_requests_wait_for_more_of_the_same_share():
    plan = plan_of()
    apart = [rate_window(i, (1, i % 2), (9, 0)) for i in range(4)]
    together = [rate_window(0, (4, 2), (36, 0), lasts_s=20.0)]
    assert assessed(plan, apart[:3]).objectives[0].harm_e == pytest.approx(1.0)
    assert assessed(plan, apart).harm_e == pytest.approx(assessed(plan, together).harm_e)
    assert assessed(plan, apart[:3]).objectives[0].candidate_trials == 3


def test_counts_of_different_shares_are_never_compared():
    # The second share's requests all fail, of both versions.
    first = rate_window(0, (0, 0), (100, 0), 0.01)
    second = rate_window(1, (50, 50), (50, 50), 0.5)
    assert not assessed(plan_of(EXACT), [first, second]).abort
    assert assessed(plan_of(EXACT), [first, second]).harm_e <= 1.0


def test_few_requests_in_a_window_cost_little():
    rng = np.random.default_rng(8)
    plan = plan_of(EXACT)

    def requests_until_abort(per_window):
        windows = list(
            simulated_rates(rng, 6000 // per_window, lambda _: (0.3, 0.02), 0.1, per_window)
        )
        return decided_at(plan, windows) * per_window

    few = np.mean([requests_until_abort(3) for _ in range(20)])
    many = np.mean([requests_until_abort(100) for _ in range(20)])
    assert few < 1.5 * many


@pytest.mark.parametrize(
    ("test", "windows", "sentence"),
    [
        (
            RateTest(ratio=1.5, margin=0.001),
            [((4, 1), (100, 5))],
            "25% of 4 on v2, 5% of 100 on v1: 5 times (at most 300); 1.5 times plus 0.1%",
        ),
        (
            RateTest(margin=0.05),
            [((100, 0), (900, 0))],
            "0% of 100 on v2, 0% of 900 on v1: no event on either; 5% more is tolerated",
        ),
        (
            RateTest(ratio=2.0),
            [((100, 1), (900, 0))],
            "1% of 100 on v2, 0% of 900 on v1: events on v2 only; 2 times is tolerated",
        ),
        (
            RateTest(),
            [((0, 0), (300, 3), 0.0), ((100, 1), (0, 0), 1.0)],
            "1% of 100 on v2, 1% of 300 on v1: too few at the same time; 1 times is tolerated",
        ),
    ],
)
def test_sentences(test, windows, sentence):
    objective = Objective(metric="failures", test=test)
    assert sentence in judged(plan_of(objective), *windows)[1].detail


def test_limit_of_the_effect_includes_the_margin_at_the_baselines_rate():
    said = judged(plan_of(), ((100, 1), (1000, 1)))[1]
    assert said.effect_limit == pytest.approx(1.2 + 0.001 / 0.001)
    assert judged(plan_of(), ((100, 1), (1000, 0)))[1].effect_limit == 1.2
