"""The test from the start and the change detector: fair together, and fast after a change."""

import itertools
import math

import numpy as np
import pytest

from tidegate.evidence.bets import NOTHING, log_growth, log_prior, one_sided_bets
from tidegate.evidence.processes import (
    Clock,
    capped_exp,
    grow_changed,
    harm_evidence,
)

BETS = one_sided_bets(1.0, 0.0, [2.0, 10.0], is_harm=True)
PRIOR = log_prior((1, 1))


def e_after(windows, detector_share, within_s=20.0):
    """The e-value after windows of candidate's and baseline's events in two requests each."""
    clock, start, changed = Clock(), np.zeros(2), np.full(2, NOTHING)
    for index, (x, y) in enumerate(windows):
        clock, stake = clock.pass_window(5.0 * index, 5.0 * index + 5.0, within_s)
        growth = log_growth(BETS, (2, x), (2, y), (0.1, 0.1))
        start, changed = start + growth, grow_changed(changed, growth, stake)
    return harm_evidence(start, changed, PRIOR, clock, detector_share)


@pytest.mark.parametrize("detector_share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("rates", [(0.0,) * 3, (0.1,) * 3, (0.5, 0.01, 0.3)])
def test_mean_is_at_most_one_when_both_versions_are_alike(detector_share, rates):
    mean = 0.0
    for windows in itertools.product(itertools.product(range(3), repeat=2), repeat=3):
        chance = 1.0
        for rate, counts in zip(rates, windows, strict=True):
            for count in counts:
                chance *= math.comb(2, count) * rate**count * (1 - rate) ** (2 - count)
        mean += chance * e_after(windows, detector_share).e
    assert mean <= 1.0 + 1e-9


def test_stake_is_placed_in_proportion_to_the_time_and_once():
    clock, placed = Clock(), []
    for index in range(30):
        clock, stake = clock.pass_window(10.0 * index, 10.0 * index + 10.0, 200.0)
        placed.append(stake)
    assert placed[:20] == pytest.approx([0.05] * 20)
    assert placed[20:] == pytest.approx([0.0] * 10)
    assert clock.placed == pytest.approx(1.0)


def test_gap_between_windows_counts_and_an_overlap_does_not():
    clock, _ = Clock().pass_window(0.0, 10.0, 100.0)
    clock, after_gap = clock.pass_window(40.0, 50.0, 100.0)
    clock, overlapping = clock.pass_window(5.0, 30.0, 100.0)
    assert after_gap == pytest.approx(0.4)
    assert overlapping == 0.0
    assert clock.latest_s == 50.0


def test_detector_sees_a_change_in_the_window_in_which_it_happens():
    assert e_after([(0, 0), (2, 0)], 1.0).e > e_after([(0, 0), (0, 0)], 1.0).e > 0.0
    assert e_after([(2, 0)], 1.0, within_s=5.0).e > 2.0


def test_change_after_a_healthy_start_is_the_detectors():
    healthy, bad = [(0, 1)] * 40, [(2, 0)] * 10
    found = e_after(healthy + bad, 0.25, within_s=250.0)
    assert found.started_healthy
    assert found.e > 100.0
    assert found.e > 10.0 * e_after(healthy + bad, 0.0).e


def test_harm_from_the_start_is_not_the_detectors():
    assert not e_after([(2, 0)] * 10, 0.25, within_s=1000.0).started_healthy


def test_exponential_stays_finite():
    assert math.isfinite(capped_exp(1e9) * 1e3)
