"""The test of a gauge: how long it may be past its limit, and what no reading means."""

import math

import pytest
from evidence_traffic import assessed, plan_of, window_of

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.plan import Importance, LimitTest, Objective
from tidegate.evidence.window import VersionTraffic


def objective(importance=Importance.ABORT, **given):
    test = LimitTest(limit=0.9, for_s=20.0, **given)
    return Objective(metric="gpu", test=test, importance=importance)


def after(values, *, judged=None):
    """Returns what the evidence says after readings, one every five seconds."""
    windows = [
        window_of(
            index,
            VersionTraffic(gauges={} if value is None else {"gpu": value}),
            VersionTraffic(),
        )
        for index, value in enumerate(values)
    ]
    return assessed(plan_of(judged or objective()), windows)


def verdict(*values, **given):
    return after(values, **given).objectives[0].verdict


def test_gauge_within_its_limit_is_met():
    assert verdict(0.5, 0.9) is Verdict.MET


def test_gauge_past_its_limit_counts_when_it_has_lasted():
    assert verdict(*[0.95] * 4) is Verdict.OPEN
    assert verdict(*[0.95] * 5) is Verdict.MISSED


def test_gauge_that_comes_back_begins_anew():
    assert verdict(*[0.95] * 4, 0.5, *[0.95] * 4) is Verdict.OPEN


def test_small_numbers_can_be_the_bad_ones():
    low = objective(large_is_bad=False)
    assert verdict(*[0.5] * 5, judged=low) is Verdict.MISSED
    assert verdict(*[0.95] * 5, judged=low) is Verdict.MET


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_no_reading_is_no_data(nothing):
    assert verdict(nothing, nothing) is Verdict.NO_DATA
    assert not after([nothing]).promote


def test_single_missing_reading_changes_nothing():
    assert verdict(*[0.95] * 3, None, 0.95) is Verdict.MISSED


def test_reading_becomes_no_data_when_it_is_old():
    assert verdict(0.5, *[None] * 13) is Verdict.NO_DATA


def test_infinite_gauge_is_past_its_limit():
    assert verdict(*[math.inf] * 5) is Verdict.MISSED


@pytest.mark.parametrize(
    ("importance", "abort", "pause"),
    [
        (Importance.ABORT, True, False),
        (Importance.PAUSE, False, True),
        (Importance.REPORT, False, False),
    ],
)
def test_importance_says_what_follows(importance, abort, pause):
    said = after([0.95] * 5, judged=objective(importance))
    assert (said.abort, said.pause) == (abort, pause)


def test_sentence_says_how_long_the_gauge_is_past_its_limit():
    said = after([0.95] * 5)
    assert said.reason == "v2 is worse: gpu: 0.95 on v2, above 0.9 for 20s; 20s are tolerated"
