"""Sample-ratio mismatch: found quickly, and not where nothing is wrong."""

import numpy as np
import pytest

from tidegate.evidence.sample_ratio import SampleRatioState


def after(windows, share):
    state = SampleRatioState()
    for candidate, baseline in windows:
        state = state.observe(candidate, baseline, share)
    return state.assess()


def test_candidate_that_gets_nothing_of_ten_percent_is_found_within_500_requests():
    assert after([(0, 50)] * 10, 0.1).mismatch
    # Sixty callers with four requests each might all have been sent to the baseline.
    assert not after([(0, 50)] * 5, 0.1).mismatch


def test_pinned_connections_are_found():
    assert after([(40, 10)] * 10, 0.5).mismatch


def test_no_mismatch_where_the_split_is_right():
    rng = np.random.default_rng(1)
    for share in (0.01, 0.1, 0.5):
        for _ in range(50):
            candidates = rng.binomial(500, share, 200)
            assert not after([(int(n), 500 - int(n)) for n in candidates], share).mismatch


def test_requests_in_clumps_are_no_mismatch():
    # Each caller sends four requests to the version of its first.
    rng = np.random.default_rng(2)
    for _ in range(50):
        candidates = 4 * rng.binomial(125, 0.1, 300)
        assert not after([(int(n), 500 - int(n)) for n in candidates], 0.1).mismatch


def test_small_deviation_is_tolerated_however_long_it_lasts():
    assert not after([(10_400, 89_600)] * 100, 0.1).mismatch
    assert after([(13_000, 87_000)] * 100, 0.1).mismatch


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_version_that_is_meant_to_get_nothing_or_all_says_nothing(share):
    said = after([(5, 100)] * 100, share)
    assert not said.mismatch
    assert said.observed is None


def test_shares_are_averaged_over_the_requests():
    state = SampleRatioState().observe(10, 90, 0.1).observe(150, 150, 0.5)
    said = state.assess()
    assert said.intended == pytest.approx((100 * 0.1 + 300 * 0.5) / 400)
    assert said.observed == pytest.approx(0.4)
