"""The test of a mix: error rates, many categories, and new categories."""

import numpy as np
import pytest
from evidence_traffic import assessed, decided, labelled, observed, plan_of, window_of

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.plan import MixTest, Objective

DRIFT = Objective(metric="labels", test=MixTest(distance=0.05))


def mixes(rng, count, shares, share=0.3, requests=300):
    """Yields windows of labels drawn from the shares of candidate and baseline."""
    for index in range(count):
        shares_c, shares_b = shares(index)
        trials_c = int(rng.binomial(requests, share))
        drawn = [
            rng.multinomial(trials, each)
            for trials, each in ((trials_c, shares_c), (requests - trials_c, shares_b))
        ]
        counts = [{f"label {place}": int(n) for place, n in enumerate(each) if n} for each in drawn]
        yield window_of(index, labelled(counts[0]), labelled(counts[1]), share)


def test_candidate_with_another_mix_is_aborted():
    rng = np.random.default_rng(1)
    windows = mixes(rng, 60, lambda _: ((0.6, 0.2, 0.2), (0.8, 0.15, 0.05)))
    assert decided(plan_of(DRIFT), windows) == "abort"


def test_candidate_with_the_same_mix_is_promoted():
    rng = np.random.default_rng(2)
    windows = mixes(rng, 100, lambda _: ((0.8, 0.15, 0.05),) * 2)
    assert decided(plan_of(DRIFT), windows) == "promote"


def test_few_wrong_decisions_at_the_limit():
    rng = np.random.default_rng(3)
    plan = plan_of(DRIFT, false_abort=0.1, bad_promotion=0.1, within_s=200.0)
    at_the_limit = (0.45, 0.35, 0.2), (0.5, 0.3, 0.2)
    ends = [decided(plan, mixes(rng, 40, lambda _: at_the_limit)) for _ in range(100)]
    # A binomial of 100 and 10 % is above 20 with a probability below 0.1 %.
    assert ends.count("abort") <= 20
    assert ends.count("promote") <= 20


def test_mix_of_both_that_drifts_does_not_blame_the_candidate():
    rng = np.random.default_rng(4)

    def shares(index):
        part = 0.5 + 0.4 * np.sin(index / 5)
        return ((part, 1.0 - part),) * 2

    plan = plan_of(DRIFT, bad_promotion=1e-12)
    ends = [decided(plan, mixes(rng, 60, shares)) for _ in range(20)]
    assert ends.count("abort") <= 1


def test_noise_of_many_labels_is_no_distance():
    rng = np.random.default_rng(5)
    shares = np.full(1000, 0.001)
    said = assessed(plan_of(DRIFT), mixes(rng, 20, lambda _: (shares, shares))).objectives[0]
    assert said.effect < 0.05
    assert said.verdict is Verdict.OPEN


def test_collapse_to_one_label_without_a_place_of_its_own_is_found():
    rng = np.random.default_rng(6)
    many = np.full(1000, 0.001)
    collapsed = np.full(1000, 0.0006)
    collapsed[990] += 0.4
    windows = mixes(rng, 60, lambda i: (collapsed if i > 10 else many, many))
    assert decided(plan_of(DRIFT), windows) == "abort"


def test_memory_does_not_grow_with_the_labels():
    rng = np.random.default_rng(7)
    shares = np.full(2000, 1 / 2000)
    state = observed(plan_of(DRIFT), mixes(rng, 30, lambda _: (shares, shares)))
    mix = state.objectives[0]
    assert len(mix.names) == 48
    assert len(mix.candidate) == 64
    assert sum(mix.candidate) + sum(mix.baseline) == 30 * 300


def test_sentence_names_the_label_that_moved_most():
    rng = np.random.default_rng(8)
    said = assessed(plan_of(DRIFT), mixes(rng, 60, lambda _: ((0.5, 0.5), (0.8, 0.2))))
    objective = said.objectives[0]
    assert objective.effect == pytest.approx(0.3, abs=0.05)
    assert objective.effect_low <= 0.3 <= objective.effect_high
    assert "label" in objective.detail
    assert "5% is tolerated" in objective.detail


def test_new_category_of_the_candidate_is_found():
    windows = [
        window_of(i, labelled({"stop": 80, "error": 20}), labelled({"stop": 400}), 0.2)
        for i in range(20)
    ]
    assert decided(plan_of(DRIFT), windows) == "abort"


def test_distance_of_zero_is_never_proven_to_be_met():
    windows = [
        window_of(i, labelled({"a": 50, "b": 50}), labelled({"a": 50, "b": 50}), 0.5)
        for i in range(50)
    ]
    exact = Objective(metric="labels", test=MixTest(distance=0.0))
    said = assessed(plan_of(exact), windows)
    assert not said.promote
    assert not said.abort


def test_new_category_counts_in_a_group_until_its_window_is_over():
    # Its place must not depend on the window that is tested with it.
    windows = [
        window_of(0, labelled({"a": 10}), labelled({"a": 10}), 0.5),
        window_of(1, labelled({"a": 10, "new": 5}), labelled({"a": 10}), 0.5),
        window_of(2, labelled({"a": 10, "new": 7}), labelled({"a": 10}), 0.5),
    ]
    second = observed(plan_of(DRIFT), windows[:2]).objectives[0]
    assert second.names == ("a", "new")
    assert second.candidate[1] == 0
    assert sum(second.candidate[48:]) == 5
    third = observed(plan_of(DRIFT), windows).objectives[0]
    assert third.candidate[1] == 7
