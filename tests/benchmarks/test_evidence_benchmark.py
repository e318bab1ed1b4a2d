"""The parts of `make bench-evidence` on which its verdict stands."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "evidence")


@pytest.mark.parametrize(
    ("count", "runs", "expected"),
    [(0, 100, 0.04501), (5, 100, 0.12627), (200, 20_000, 0.01182), (100, 100, 1.0)],
)
def test_upper_limit_is_that_of_clopper_and_pearson(count, runs, expected):
    from measures import upper_limit

    # Expected: the 99 % quantile of Beta(count + 1, runs − count).
    assert upper_limit(count, runs, 0.99) == pytest.approx(expected, rel=0.01)


def test_lower_bound_is_that_of_the_field():
    from measures import DETECTION, lower_bound

    bounds = [round(lower_bound(rates, 0.01)) for rates in DETECTION]
    assert bounds == [7495, 2145, 13448, 1350, 827]


def test_simulation_and_engine_agree():
    from measures import compare_with_engine

    difference, compared = compare_with_engine(4, seed=1)
    assert compared == 4 * 30 * 2
    assert difference < 1e-9


def window_at(index, trials_c, events_c, seconds=5.0):
    from traffic import Window

    counts = [np.array([n]) for n in (trials_c, events_c, 900, 1)]
    return Window(seconds * index, seconds * (index + 1), 0.1, *counts)


def aborted_after(rule, windows):
    for window in windows:
        if rule.observe(window)[0]:
            return window.end_s
    return None


@pytest.mark.parametrize(
    ("name", "bad", "seconds"),
    [
        ("Argo Rollouts, expert", 0.05, 30.0),
        ("Flagger, documented", 0.05, 300.0),
        ("Argo Rollouts, documented", 0.05, None),
        ("Argo Rollouts, documented", 0.6, 120.0),
    ],
)
def test_rules_abort_when_the_tools_did(name, bad, seconds):
    from rules import RULES

    windows = [window_at(i, 100, int(100 * bad)) for i in range(120)]
    assert aborted_after(RULES[name](1), windows) == seconds


def test_no_rule_aborts_where_both_versions_fail_alike():
    from rules import RULES

    windows = [window_at(i, 100, 0) for i in range(120)]
    for make in RULES.values():
        assert aborted_after(make(1), windows) is None


def test_tidegate_aborts_a_bad_candidate():
    from rules import RULES

    windows = [window_at(i, 100, 5) for i in range(120)]
    assert aborted_after(RULES["Tidegate"](1), windows) <= 15.0


def test_scenarios_are_at_the_limit():
    from measures import HEALTHY

    for scenario, test in HEALTHY.values():
        for time_s in np.linspace(0.0, scenario.lasts_s, 50):
            rate = scenario.baseline(time_s)
            candidate = scenario.candidate(time_s, rate)
            assert candidate == pytest.approx(test.ratio * rate + test.margin)
            assert 0.0 < candidate < 1.0


def test_stalls_come_once_in_each_period():
    from traffic import stalling

    rate = stalling(0.001, 0.5, 600.0, 60.0)
    stalled = [time_s for time_s in range(0, 1200, 5) if rate(time_s) == 0.5]
    assert stalled[0] == 300
    assert len(stalled) == 2 * 12
