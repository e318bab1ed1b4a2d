"""Simulation: the engine on synthetic traffic, which behaves as it was told."""

import numpy as np
import pytest
from rollout_examples import CANARY

from tidegate.rollout.measures import measures_of
from tidegate.rollout.simulation.behaviour import Behaviour, BehaviourError, Change, parse_facts
from tidegate.rollout.simulation.runs import End, Scenario, run_once
from tidegate.rollout.simulation.summary import run_many, summary_of
from tidegate.rollout.spec.reading import read_rollouts


def _rollout(strategy=None, objectives=None, text=CANARY):
    if strategy is not None:
        text = text.replace(text[text.index("    canary:") : text.index("  objectives:")], strategy)
    if objectives is not None:
        old = text[text.index("  objectives:") : text.index("  decide:")]
        text = text.replace(old, f"  objectives: {objectives}\n")
    return read_rollouts(text, "f.yaml")[0]


def _scenario(rollout, baseline="", candidate="", changes=(), **options):
    usual = parse_facts(baseline)
    return Scenario(
        rollout=rollout,
        baseline=Behaviour(usual),
        candidates={"v2": Behaviour(usual | parse_facts(candidate), tuple(changes))},
        requests_per_s=100.0,
        **options,
    )


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", {}),
        ("failures=2%,latency=30ms", {"grpcFailures": 0.02, "latency": 0.03}),
        ("grpcFailures=0.5 , confidence=70%", {"grpcFailures": 0.5, "confidence": 0.7}),
        ("tokensPerAnswer=100,gpu=80", {"tokensPerAnswer": 100, "gpu": 80}),
    ],
)
def test_facts_are_read(text, facts):
    assert parse_facts(text, ("gpu",)) == facts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("failures", "'failures' is not a fact; write it like failures=2%"),
        ("failure=2%", "'failure=2%' is not a fact"),
        ("failures=", "is not a bound"),
        ("failures=200%", "2 is out of range; 0% to 100%"),
        ("failures=20ms", "write a share like 2%"),
        ("latency=20", "write a duration like 30ms"),
        ("latency=0s", "is out of range; write more than 0"),
        ("failures=1%,grpcFailures=2%", "grpcFailures is there twice"),
        ("gpu=1", "'gpu=1' is not a fact"),
        ("failures=nan", "is out of range"),
    ],
)
def test_facts_that_are_not_right_are_named(text, words):
    with pytest.raises(BehaviourError, match=r".*") as refused:
        parse_facts(text)
    assert words in str(refused.value)


def test_a_behaviour_gives_the_probabilities_that_its_numbers_have():
    objectives = (
        "[{signal: latency, above: 40ms}, {signal: latency, quantile: 99%, name: p99},"
        " {signal: confidence, below: 50%}, {signal: predictionDrift}, {signal: grpcFailures}]"
    )
    above, quantile, below, mix, failures = measures_of(_rollout(objectives=objectives).spec)
    random = np.random.default_rng(1)
    behaviour = Behaviour({"latency": 0.02, "confidence": 0.8, "predictionDrift": 0.1})
    latencies = 0.02 * np.exp(0.5 * random.standard_normal(400_000))
    assert behaviour.rate(above, 0) == pytest.approx(np.mean(latencies > 0.04), abs=0.002)
    logits = np.log(0.8 / 0.2) + random.standard_normal(400_000)
    assert behaviour.rate(below, 0) == pytest.approx(np.mean(logits < 0), abs=0.002)
    assert behaviour.buckets(quantile, 0).sum() == pytest.approx(1)
    assert behaviour.rate(failures, 0) == 0.001
    healthy = Behaviour({})
    distance = np.abs(behaviour.mix(mix, 0) - healthy.mix(mix, 0)).sum() / 2
    assert distance == pytest.approx(0.1)


def test_a_behaviour_changes_at_its_time():
    (measure,) = measures_of(_rollout(objectives="[{signal: grpcFailures}]").spec)
    later = Change(after_s=600.0, facts={"grpcFailures": 0.5})
    first = Change(after_s=60.0, facts={"latency": 1.0})
    behaviour = Behaviour({"grpcFailures": 0.1}, (later, first))
    assert [behaviour.rate(measure, t) for t in (0, 59, 599, 600, 9999)] == [0.1] * 3 + [0.5] * 2


def test_a_good_candidate_is_promoted_and_a_bad_one_aborted():
    good = run_once(_scenario(_rollout()), 1)
    assert good.end is End.PROMOTED
    assert good.approvals == 1
    assert good.points[-1].weight == 100
    bad = run_once(_scenario(_rollout(), candidate="failures=5%"), 1)
    assert bad.end is End.ABORTED
    assert "grpcFailures" in bad.reason
    assert bad.points[-1].weight == 0
    assert bad.extra_bad > 3
    assert bad.time_s < good.time_s


def test_a_candidate_that_turns_bad_is_aborted_after_that():
    later = Change(after_s=120.0, facts={"grpcFailures": 0.2})
    found = run_once(_scenario(_rollout(), changes=[later]), 1)
    assert found.end is End.ABORTED
    assert found.time_s > 120


def test_a_ramp_stays_within_its_budget():
    scenario = _scenario(_rollout("    canary: {ramp: {harmBudget: 20}}\n"), "", "failures=10%")
    costs = [run_once(scenario, seed).extra_bad for seed in range(10)]
    assert max(costs) < 25


def test_copies_hurt_no_user():
    shadow = _rollout("    shadow: {for: 5m}\n", "[{signal: grpcFailures}]")
    found = run_once(_scenario(shadow, candidate="failures=50%"), 1)
    assert found.end is End.ABORTED
    assert (found.extra_bad, found.candidate_requests) == (0, 0)


def test_an_approval_takes_its_time():
    manual = _rollout("    manual: {weights: [1, 10]}\n", "[{signal: grpcFailures}]")
    found = run_once(_scenario(manual, approve_after_s=300.0), 1)
    assert (found.end, found.approvals) == (End.PROMOTED, 2)
    assert 600 <= found.time_s < 700


def test_a_run_without_an_end_is_given_up():
    rollout = _rollout(objectives="[{signal: promql, name: gauge, query: up, above: 1}]")
    found = run_once(_scenario(rollout, limit_s=300.0), 1)
    assert found.end is End.OPEN
    assert 300 <= found.time_s < 310


def test_runs_repeat_with_their_seed_also_over_processes():
    scenario = _scenario(_rollout("    canary: {ramp: {harmBudget: 5}}\n"), "", "failures=10%")
    calls = []
    runs = run_many(scenario, 24, 7, lambda: calls.append(1))
    assert len(calls) == len(runs) == 24
    assert run_many(scenario, 3, 7) == runs[:3]
    assert run_many(scenario, 3, 8) != runs[:3]
    summary = summary_of(runs)
    assert summary.runs == sum(summary.ends.values()) == 24
    assert summary.time_s["aborted"].p10 <= summary.time_s["aborted"].p90


def test_the_numbers_of_runs_are_those_of_all_runs():
    scenario = _scenario(_rollout(), candidate="failures=5%")
    runs = [run_once(scenario, seed) for seed in range(5)]
    summary = summary_of(runs)
    assert summary.ends == {
        "promoted": 0,
        "aborted": 5,
        "paused": 0,
        "completed": 0,
        "still open": 0,
    }
    assert summary.extra_bad.p50 == sorted(each.extra_bad for each in runs)[2]
    assert summary.extra_bad_mean == pytest.approx(np.mean([each.extra_bad for each in runs]))
