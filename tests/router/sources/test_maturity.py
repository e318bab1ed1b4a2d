"""Requests are compared when those of every version have ended, and a hung version is found."""

import heapq
import random

import pytest
from rollout_runs import rollout_of
from source_traffic import NOW_S, epoch, request, watched

from tidegate.evidence.judge import assess, begin, observe
from tidegate.router.sources.epochs import RolloutCounts
from tidegate.router.sources.maturity import Maturity


def learned(**durations_s):
    """What is known of versions that have answered a hundred requests each."""
    maturity = Maturity()
    for version, duration_s in durations_s.items():
        for _ in range(100):
            maturity.note(request(version, duration_s=duration_s))
    return maturity


def waited_s(maturity, shares=None, now_s=NOW_S, **ended):
    """How long ago the latest requests started that can be compared."""
    found = maturity.mature(
        {int(now_s) - age_s: dict(ended) for age_s in range(1, 120)},
        shares or {"v1": 0.9, "v2": 0.1},
        now_s,
    )
    return now_s - found.until


def test_short_requests_wait_for_a_second():
    assert waited_s(learned(v1=0.02, v2=0.03), v1=90, v2=10) == 1


def test_requests_wait_for_the_slower_version():
    assert 25 <= waited_s(learned(v1=2.0, v2=20.0), v1=90, v2=10) <= 30
    assert 25 <= waited_s(learned(v1=20.0, v2=2.0), v1=90, v2=10) <= 30


def test_fast_failures_do_not_tell_how_long_answers_take():
    maturity = learned(v1=20.0, v2=20.0)
    for _ in range(1000):
        maturity.note(request("v2", duration_s=0.01, code="UNAVAILABLE"))
    assert 25 <= waited_s(maturity, v1=90, v2=10) <= 30


def test_a_version_without_answers_fails_fast_if_its_share_has_ended():
    maturity = learned(v1=0.02)
    assert waited_s(maturity, v1=90, v2=9) == 1


def test_a_version_without_answers_is_waited_for_if_few_have_ended():
    assert waited_s(learned(v1=20.0), v1=90, v2=1) == 61
    # Ten times what the other needs, from ten seconds on.
    assert waited_s(learned(v1=0.02), v1=90, v2=1) == 11
    assert 20 <= waited_s(learned(v1=2.0), v1=90, v2=1) <= 30


def test_a_version_that_has_become_slower_is_waited_for():
    assert waited_s(learned(v1=0.02, v2=0.02), v1=90, v2=1) == 11


def test_nobody_is_judged_before_anyone_has_answered():
    assert waited_s(Maturity(), v1=90, v2=10) == 61


def test_a_version_that_is_alone_is_not_waited_for():
    assert waited_s(learned(v1=20.0), {"v1": 1.0, "v2": 0.0}, v1=100) == 1


def test_copies_of_all_requests_are_as_many_as_requests():
    maturity = learned(v1=0.02, v2=0.02)
    assert waited_s(maturity, {"v1": 1.0, "v2": 1.0}, v1=100, v2=97) == 1
    assert waited_s(maturity, {"v1": 1.0, "v2": 1.0}, v1=100, v2=30) == 11


def test_durations_of_long_ago_are_forgotten():
    maturity = learned(v1=0.02, v2=20.0)
    for minute in range(1, 30):
        for _ in range(100):
            maturity.note(request("v2", duration_s=0.02))
        last = waited_s(maturity, now_s=NOW_S + 61 * minute, v1=90, v2=10)
    assert last == 1


@pytest.mark.parametrize("minutes", [1, 5, 500])
def test_durations_are_forgotten_as_fast_while_nobody_asks(minutes):
    asked, alone = (learned(v1=0.02, v2=20.0) for _ in range(2))
    for minute in range(minutes + 1):
        waited_s(asked, now_s=NOW_S + 61 * minute, v1=90, v2=10)
    waited_s(alone, v1=90, v2=10)
    waited_s(alone, now_s=NOW_S + 61 * minutes, v1=90, v2=10)
    for each in (asked, alone):
        each.note(request("v1", duration_s=0.02))
        for _ in range(3):
            each.note(request("v2", duration_s=0.02))
    ages = [waited_s(each, now_s=NOW_S + 61 * minutes, v1=90, v2=10) for each in (asked, alone)]
    assert ages[0] == ages[1]
    assert (ages[0] == 1) == (minutes > 10)


def run(seed, v1_s, v2_s, per_s, share, fail, *, fail_v2=None, seconds=60):
    """Streams of two versions, of which some fail at once; how the rollout ends, and when."""
    draw = random.Random(seed)
    plan = rollout_of(objectives=[{"signal": "grpcFailures"}]).spec.evidence_plan("v2")
    state, counts = begin(plan), RolloutCounts(watched())
    counts.begin_epoch(epoch(v1=1 - share, v2=share))
    running, at_s, number = [], 0.0, 0
    for second in range(1, seconds + 1):
        while at_s < second:
            at_s += draw.expovariate(per_s)
            number += 1
            version = "v2" if draw.random() < share else "v1"
            rate = fail_v2 if version == "v2" and fail_v2 is not None else fail
            bad = draw.random() < rate
            lasts_s = {"v1": v1_s, "v2": v2_s}[version] * draw.uniform(0.9, 1.1)
            lasts_s = min(0.05, lasts_s) if bad else lasts_s
            code = "UNAVAILABLE" if bad else "OK"
            ended = request(version, NOW_S + at_s, lasts_s, code)
            heapq.heappush(running, (at_s + lasts_s, number, ended))
        while running and running[0][0] <= second:
            counts.add(heapq.heappop(running)[2])
        for window in counts.take(NOW_S + second):
            state = observe(plan, state, window)
        found = assess(plan, state)
        if found.abort or found.sample_ratio.mismatch:
            return "aborted" if found.abort else "paused", second, counts.problem
    return "goes on", seconds, counts.problem


@pytest.mark.parametrize(
    "case",
    [
        {"v1_s": 20, "v2_s": 24, "per_s": 100, "share": 0.5, "fail": 0.01},
        {"v1_s": 20, "v2_s": 30, "per_s": 20, "share": 0.5, "fail": 0.01},
        {"v1_s": 20, "v2_s": 24, "per_s": 20, "share": 0.5, "fail": 0.03},
        {"v1_s": 5, "v2_s": 6, "per_s": 100, "share": 0.1, "fail": 0.03},
        {"v1_s": 2, "v2_s": 3, "per_s": 100, "share": 0.5, "fail": 0.0},
    ],
    ids=lambda case: " ".join(f"{name}={value}" for name, value in case.items()),
)
def test_a_version_that_is_slower_and_fails_no_more_is_left_alone(case):
    assert [run(seed, **case)[0] for seed in range(5)] == ["goes on"] * 5


@pytest.mark.parametrize(("fail_v2", "within_s"), [(1.0, 5), (0.5, 5), (0.1, 25)])
def test_a_version_that_fails_is_found_as_soon_as_short_requests_tell(fail_v2, within_s):
    for seed in range(3):
        how, second, _ = run(seed, 0.02, 0.02, 100, 0.1, 0.001, fail_v2=fail_v2)
        assert (how, second <= within_s) == ("aborted", True)


def test_a_version_that_ends_no_request_is_found():
    how, second, problem = run(1, 0.02, 10_000, 200, 0.1, 0.0)
    assert (how, second <= 20) == ("paused", True)
    assert "fewer requests to v2 have ended" in problem
