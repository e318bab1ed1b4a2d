"""Whether each bet is fair: its mean is at most 1 under the null, computed exactly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.evidence.bets import (
    join_bets,
    learning_bets,
    log_growth,
    log_mean,
    one_sided_bets,
)

ODDS = (0.01, 0.3, 0.9)
NULLS = [(1.0, 0.0), (1.2, 0.001), (1.0, 0.05), (3.0, 0.2), (0.5, 0.0), (1.0, 0.7)]


def bets_of(ratio, margin, *, is_harm):
    odds = [1 / each for each in ODDS] if is_harm else ODDS
    return join_bets(
        [
            one_sided_bets(ratio, margin, odds, is_harm=is_harm),
            learning_bets([ratio], [margin], is_harm=is_harm),
        ]
    )


def chances(rates):
    """The distribution of the number of events in trials with these rates."""
    result = np.array([1.0])
    for rate in rates:
        result = np.convolve(result, [1.0 - rate, rate])
    return result


def mean_of(bets, rates_c, rates_b, guess):
    total = np.zeros(len(bets.ratio))
    trials = len(rates_c), len(rates_b)
    for x, chance_c in enumerate(chances(rates_c)):
        for y, chance_b in enumerate(chances(rates_b)):
            growth = log_growth(bets, (trials[0], x), (trials[1], y), guess)
            total += chance_c * chance_b * np.exp(growth)
    return total


@pytest.mark.parametrize("null", NULLS)
@pytest.mark.parametrize("trials", [(1, 1), (3, 5), (6, 1), (0, 4), (4, 0)])
@pytest.mark.parametrize("guess", [(0.02, 0.01), (0.6, 0.3), (1e-9, 1e-9), (0.99, 0.9)])
@pytest.mark.parametrize("is_harm", [True, False])
def test_mean_is_at_most_one_at_the_limit(null, trials, guess, is_harm):
    ratio, margin = null
    bets = bets_of(ratio, margin, is_harm=is_harm)
    for rate_b in (0.0, 1e-4, 0.01, 0.1, 0.3, 0.6, 0.95, 1.0):
        rate_c = ratio * rate_b + margin
        if rate_c <= 1.0:
            mean = mean_of(bets, [rate_c] * trials[0], [rate_b] * trials[1], guess)
            assert (mean <= 1.0 + 1e-9).all(), (rate_b, mean)


@settings(max_examples=200, deadline=None)
@given(
    rates_b=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    null=st.sampled_from(NULLS),
    guess=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    is_harm=st.booleans(),
)
def test_mean_is_at_most_one_within_the_null_if_rates_differ_by_request(
    rates_b, parts, null, guess, is_harm
):
    ratio, margin = null
    limit = min(ratio * sum(rates_b) / len(rates_b) + margin, 1.0)
    # The mean of the candidate's rates is on the null's side of the limit.
    rates_c = [limit * part if is_harm else limit + (1.0 - limit) * part for part in parts]
    mean = mean_of(bets_of(ratio, margin, is_harm=is_harm), rates_c, rates_b, guess)
    if is_harm or ratio * sum(rates_b) / len(rates_b) + margin <= 1.0:
        assert (mean <= 1.0 + 1e-9).all()


@pytest.mark.parametrize(
    ("truth", "null", "trials"),
    [
        ((0.01, 0.001), (1.0, 0.0), (50, 950)),
        ((0.05, 0.001), (1.2, 0.001), (100, 900)),
        ((0.65, 0.5), (1.0, 0.05), (100, 900)),
        ((0.9, 0.9), (1.05, 0.0), (500, 500)),
        ((0.001, 0.001), (1.2, 0.001), (500, 500)),
    ],
)
def test_bet_on_the_truth_grows_almost_as_fast_as_any_bet_can(truth, null, trials):
    (rate_c, rate_b), (ratio, margin) = truth, null
    tolerated = ratio * rate_b + margin
    odds = rate_c / (1 - rate_c) / (tolerated / (1 - tolerated))
    bets = one_sided_bets(ratio, margin, [odds], is_harm=odds > 1)
    grown = log_growth(
        bets, (trials[0], trials[0] * rate_c), (trials[1], trials[1] * rate_b), (0.5, rate_b)
    )
    # No bet can grow faster than the divergence from the nearest member of the null.
    q = np.linspace(1e-6, min(1.0, (1 - margin) / ratio) - 1e-6, 100_001)
    nearest = trials[0] * divergence(rate_c, ratio * q + margin) + trials[1] * divergence(rate_b, q)
    assert 0.98 * nearest.min() <= grown[0] <= nearest.min() + 1e-9


def divergence(p, q):
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_rare_events_with_ratio_one_give_the_formula_of_lindon_and_malek():
    candidate, baseline, psi = (50, 3), (950, 2), 4.0
    share = candidate[0] / (candidate[0] + baseline[0])
    events = candidate[1] + baseline[1]
    expected = candidate[1] * math.log(psi) - events * math.log(1 - share + share * psi)
    bets = one_sided_bets(1.0, 0.0, [psi], is_harm=True)
    assert log_growth(bets, candidate, baseline, (0.0, 0.0))[0] == pytest.approx(expected, rel=1e-3)


def test_no_failure_at_all_proves_safety_as_fast_as_the_margin_says():
    bets = one_sided_bets(1.2, 0.001, [0.01], is_harm=False)
    grown = log_growth(bets, (1000, 0), (1000, 0), (0.0, 0.0001))
    assert grown[0] == pytest.approx(1000 * 0.001 * 0.99, rel=0.02)


@given(
    trials=st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)),
    parts=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    guess=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    null=st.sampled_from([*NULLS, (1.0, 1.0), (1000.0, 0.0), (0.001, 0.0)]),
    is_harm=st.booleans(),
)
def test_growth_is_always_finite(trials, parts, guess, null, is_harm):
    events = [int(count * part) for count, part in zip(trials, parts, strict=True)]
    bets = bets_of(*null, is_harm=is_harm)
    grown = log_growth(bets, (trials[0], events[0]), (trials[1], events[1]), guess)
    assert np.isfinite(grown).all()


@pytest.mark.parametrize("absent", [(0, 100), (100, 0), (0, 0)])
def test_harm_needs_both_versions(absent):
    bets = bets_of(1.0, 0.0, is_harm=True)
    events = absent[0] // 2, absent[1] // 2
    grown = log_growth(bets, (absent[0], events[0]), (absent[1], events[1]), (0.1, 0.1))
    assert (grown <= 1e-6).all()


def test_many_runs_are_columns():
    bets = bets_of(1.2, 0.001, is_harm=True)
    counts = [((50, 1), (450, 3)), ((70, 0), (430, 1))]
    together = log_growth(
        bets,
        (np.array([[50], [70]]), np.array([[1], [0]])),
        (np.array([[450], [430]]), np.array([[3], [1]])),
        (np.array([[0.01], [0.01]]), np.array([[0.002], [0.003]])),
    )
    for row, (candidate, baseline), rate in zip(together, counts, (0.002, 0.003), strict=True):
        assert row == pytest.approx(log_growth(bets, candidate, baseline, (0.01, rate)))


def test_mean_of_huge_stakes_does_not_overflow():
    assert log_mean(np.array([1e6, 0.0]), np.log([0.5, 0.5])) == pytest.approx(1e6 - math.log(2))
