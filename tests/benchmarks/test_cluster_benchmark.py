"""The parts of `make bench-cluster` on which its numbers stand."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "cluster")


def line(agent, verb, resource, at, **more):
    what = {"resource": resource, **more}
    received = f"2026-01-01T00:00:{at:09.6f}Z"
    event = {"userAgent": agent, "verb": verb, "objectRef": what}
    return json.dumps(event | {"requestReceivedTimestamp": received})


def test_only_requests_of_one_controller_in_a_time_count():
    from api_requests import count_requests

    lines = [
        line("tidegate-router", "patch", "rollouts", 1, subresource="status"),
        line("tidegate-router", "patch", "rollouts", 2, subresource="status"),
        line("tidegate-router", "create", "events", 3),
        line("tidegate-router", "create", "events", 9),
        line("rollouts-controller/v0.0.0", "update", "rollouts", 2, name="tidegate-router"),
        '{"userAgent": "tidegate-router", "verb": "cut of',
    ]
    began_s = 1767225600.0
    counts = count_requests(lines, "tidegate-router", began_s, began_s + 5)
    assert counts == {"patch rollouts/status": 2, "create events": 1}


def test_harm_is_what_the_candidate_did_beyond_what_any_version_does():
    from harm import Call, harm_of

    good = [Call(second / 10, 0.01, "v1", ok=True) for second in range(100)]
    bad = [
        Call(2.0, 0.01, "v2", ok=True),
        Call(3.0, 0.2, "v2", ok=False),
        Call(7.0, 0.01, "v2", ok=False),
    ]
    lost = [Call(4.0, 0.01, "", ok=False)]
    harm = harm_of([*good, *bad, *lost], "v2", base=0.1, slow_s=0.05)
    assert harm.calls == 104
    assert harm.candidate_calls == 3
    assert harm.exposed_s == 5.0
    assert harm.extra_failed == pytest.approx(2 - 0.3)
    assert harm.slow == 1
    assert harm.lost == 1


def test_the_time_of_a_late_failure_begins_with_it():
    from harm import Call, harm_of

    calls = [Call(1.0, 0.01, "v2", ok=True), Call(50.0, 0.01, "v2", ok=False)]
    assert harm_of(calls, "v2", base=0.0, slow_s=1.0, bad_after_s=40.0).exposed_s == 9.0
    assert harm_of(calls[:1], "v2", base=0.0, slow_s=1.0, bad_after_s=40.0).exposed_s == 0.0


def test_a_candidate_that_nobody_called_did_no_harm():
    from harm import harm_of

    harm = harm_of([], "v2", base=0.001, slow_s=0.05)
    assert (harm.calls, harm.exposed_s, harm.extra_failed) == (0, 0.0, 0.0)


def test_the_last_call_by_the_old_split_is_compared_with_what_the_router_said():
    from split_changes import Noted, compared
    from timed_calls import TimedCall

    times = [(9.0, "v1"), (10.05, "v1"), (10.1, "v1"), (10.11, "v2"), (10.2, "v2"), (12.5, "v1")]
    calls = [
        TimedCall(began_s=at_s - 0.01, received_s=at_s, version=version, route=f"r@{version}")
        for at_s, version in times
    ]
    calls.append(TimedCall(began_s=11.0, error="UNAVAILABLE: lost"))
    said = {"written_s": 10.0, "known_s": 11.0, "until_s": 12.0, "observed": True}
    for truth in ({"old": "v1"}, {"revision": "v2"}):
        late = compared(Noted(since_s=10.11, **said, **truth), calls)
        assert (late.last_old_s, late.late_s) == pytest.approx((0.1, 0.02))
        assert (late.known_s, late.too_early) == (1.0, 0)
        early = compared(Noted(since_s=10.06, **said, **truth), calls)
        assert early.too_early == 1
    # No call followed the old split.
    none = compared(Noted(since_s=10.11, **said, old="v3"), calls)
    assert none.last_old_s == 0.0
