"""Lint of rollouts: each rule finds its mistake, and nothing in what is right."""

from pathlib import Path

import pytest
from rollout_examples import CANARY

from tidegate.rollout.linting import Severity, lint
from tidegate.rollout.spec.reading import read_files, read_placed

ROOT = Path(__file__).parents[3]
_STEPS = CANARY[CANARY.index("      steps:") : CANARY.index("  objectives:")]
_FAILURES = "    - {signal: grpcFailures, tolerate: 1.2x}\n"


def _found(text, subsets=None, requests_per_s=None):
    return lint(read_placed([(text, "f.yaml")]), subsets, requests_per_s)


def _subsets(host):
    if host != "vision":
        raise ValueError(f"there is no host {host}; did you mean vision?")
    return ["v1", "v2"]


def test_a_good_rollout_has_no_findings():
    assert _found(CANARY, _subsets, 100.0) == []


# What is right, the nearest thing that is not, and the finding.
@pytest.mark.parametrize(
    ("written", "right", "wrong", "line", "rule", "path"),
    [
        ("weight: 50", "weight: 50", "weight: 49", 10, "steps-end-low", "steps"),
        ("weight: 10", "weight: 1", "weight: 0.5", 13, "steps-shrink", "steps[2].weight"),
        ("{for: 2m}", "{for: 119m}", "{for: 2h}", 21, "pauses-too-long", "decide.within"),
        ("otherwise: pause", "otherwise: abort", "otherwise: promote", 21, "promotes-unproven", ""),
        ("host: vision", "host: vision", "host: visio", 5, "host-unknown", "spec.host"),
        ("baseline: v1", "baseline: v1", "baseline: v0", 6, "subset-unknown", "spec.baseline"),
        ("candidate: v2", "candidate: v2", "candidate: v3", 7, "subset-unknown", "spec.candidate"),
        (_FAILURES, _FAILURES, "", 17, "failures-unwatched", "spec.objectives"),
        (
            "tolerate: 1.2x",
            "tolerate: 1.2x",
            "importance: report",
            17,
            "failures-unwatched",
            "spec.objectives",
        ),
    ],
)
def test_a_mistake_is_found_where_it_is(written, right, wrong, line, rule, path):
    assert CANARY.count(written) >= 1
    assert _found(CANARY.replace(written, right, 1), _subsets) == []
    (found,) = _found(CANARY.replace(written, wrong, 1), _subsets)
    assert (found.source, found.line, found.rule) == ("f.yaml", line, rule)
    assert found.path.endswith(path)


def test_a_ramp_that_counts_no_failures_is_found():
    ramp = CANARY.replace(_STEPS, "      ramp: {harmBudget: 20}\n")
    assert _found(ramp) == []
    (found,) = _found(ramp.replace(_FAILURES, ""))
    assert found.rule == "harm-without-failures"


def test_two_rollouts_on_a_host_are_found():
    other = CANARY.replace("vision-int8", "other")
    (found,) = _found(f"{CANARY}---\n{other}")
    assert (found.rule, found.line) == ("host-shared", 27)
    assert "models/vision-int8 is on this host too" in found.text
    assert _found(f"{CANARY}---\n{other.replace('host: vision', 'host: llm')}") == []


def test_traffic_too_little_for_any_data_is_an_error():
    # 0.005 requests/s for two hours, half of them to the candidate, are 18.
    found = _found(CANARY, requests_per_s=0.005)
    assert {each.rule for each in found} == {"too-little-traffic"}
    assert {each.severity for each in found} == {Severity.ERROR}
    assert "0.005 requests/s give v2 at most 18 within 2h" in found[0].text
    rules = {each.rule for each in _found(CANARY, requests_per_s=0.006)}
    assert "too-little-traffic" not in rules


def test_traffic_too_little_to_prove_anything_is_found():
    found = _found(CANARY, requests_per_s=0.3)
    assert [(each.rule, each.path) for each in found] == [
        ("undecidable", "spec.objectives[0]"),
        ("undecidable", "spec.objectives[1]"),
    ]
    # About 3,000 requests without an event prove a margin of 0.1 %.
    assert _found(CANARY, requests_per_s=2.0) == []
    generous = CANARY.replace("tolerate: 1.2x", "margin: 5%").replace("1.5x", "1.5x, margin: 5%")
    assert _found(generous, requests_per_s=0.3) == []


def test_the_examples_of_the_documentation_have_no_findings():
    files = sorted((ROOT / "docs/rollout-examples").glob("*.yaml"))
    assert {each.stem for each in files} == {
        "canary-steps",
        "canary-ramp",
        "ab-test",
        "blue-green",
        "shadow",
        "manual",
    }
    for path in files:
        assert lint(read_files([path]), requests_per_s=100.0) == [], path
