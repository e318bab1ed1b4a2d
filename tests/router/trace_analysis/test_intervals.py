"""Intervals of quantiles and shares: their error is what they promise."""

import math
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tidegate.trace_analysis.intervals import (
    Estimate,
    Sample,
    inflation,
    quantile,
    ranks,
    share,
    shared_inflation,
)


def binomial(count, probability, most):
    return sum(
        math.comb(count, each) * probability**each * (1 - probability) ** (count - each)
        for each in range(most + 1)
    )


@pytest.mark.parametrize("probability", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [10, 20, 60, 150, 500, 1000])
def test_an_interval_covers_the_quantile_as_often_as_it_promises(count, probability):
    low, high = ranks(count, probability, 0.025)
    # A quantile is below a number if fewer numbers than its rank are below the quantile.
    wrong_low = binomial(count, probability, low - 1)
    wrong_high = 1 - binomial(count, probability, high - 1)
    assert max(wrong_low, wrong_high) <= 0.025 + 1e-12
    # The next ranks would be wrong too often.
    assert binomial(count, probability, low) > 0.025 - 1e-12
    assert 1 - binomial(count, probability, high - 2) > 0.025 - 1e-12


def test_few_numbers_say_nothing_about_the_end_of_a_distribution():
    found = quantile(list(range(100)), 0.99, 0.05)
    assert (found.value, found.high) == (98, None)
    assert quantile([7.0], 0.5, 0.05) == Estimate(7.0, None, None)


@pytest.mark.parametrize(
    ("happened", "count", "low", "high"),
    # R: binom.test(x, n)$conf.int
    [(0, 10, 0.0, 0.3084971), (1, 10, 0.002528579, 0.4450161), (5, 10, 0.1870860, 0.8129140)],
)
def test_a_share_has_the_interval_of_clopper_and_pearson(happened, count, low, high):
    events = [place < happened for place in range(count)]
    found = share(events, 0.05)
    assert found.value == happened / count
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_all_or_none_have_an_open_end():
    assert share([True] * 20, 0.05).high == 1.0
    assert share([False] * 20, 0.05).low == 0.0


def test_numbers_that_come_in_runs_tell_less():
    chance = random.Random(3)
    independent = [chance.random() < 0.5 for _ in range(4_000)]
    assert inflation(independent) < 1.6
    runs = [event for event in independent[:200] for _ in range(20)]
    assert 10 < inflation(runs) < 40
    assert inflation([True]) == inflation([False] * 100) == 1.0


def moments(chance):
    return [event for event in (chance.random() < 0.5 for _ in range(100)) for _ in range(40)]


def test_moments_that_two_samples_share_make_no_difference_between_them():
    chance = random.Random(3)
    slow = moments(chance)
    times = range(len(slow))
    first = Sample(times[::2], slow[::2])
    second = Sample(times[1::2], slow[1::2])
    assert inflation(first.numbers) > 5
    assert shared_inflation(first, second) == 1.0
    # Moments of their own do.
    other = moments(chance)
    assert shared_inflation(first, Sample(second.times_us, other[1::2])) > 5


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=200), st.sampled_from((0.5, 0.95, 0.99)))
def test_an_interval_has_its_quantile_inside(numbers, probability):
    found = quantile(numbers, probability, 0.05)
    assert found.value in numbers
    assert found.low is None or found.low <= found.value
    assert found.high is None or found.high >= found.value


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_an_interval_has_its_share_inside(events):
    found = share(events, 0.05)
    assert 0 <= found.low <= found.value <= found.high <= 1
