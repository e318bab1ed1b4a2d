"""What a rollout must find before it touches traffic, and why it may be refused."""

import pytest
from rollout_runs import APPROVAL, RolloutRun, Version, rollout_of

from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.inputs import CommandKind, Inputs
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.traffic import TrafficSplit


def test_a_rollout_waits_for_a_healthy_endpoint_of_the_candidate():
    run = RolloutRun(rollout_of())
    run.ready = ("v1",)
    run.run(10)
    assert run.status.phase is Phase.PENDING
    assert "healthy endpoint of v2" in run.status.message
    assert len(run.events) == 1
    run.ready = ("v1", "v2")
    run.run(2)
    assert run.status.phase is Phase.PROGRESSING


def test_a_rollout_whose_traffic_cannot_be_read_says_why():
    step = advance(rollout_of(), RolloutStatus(), Inputs(traffic_problem="nothing routes it"), 9.0)
    assert step.status.phase is Phase.PENDING
    assert step.status.message == "waits for the mesh: nothing routes it"


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"versions": {"v1": Version()}}, "SubsetUnknown", "has no subset v2; it has v1"),
        (
            {"split": TrafficSplit(weights={"v1": 90.0, "v0": 10.0})},
            "OtherVersions",
            "also sends requests to v0 10%",
        ),
        ({"blocked_by": "models/other"}, "HostTaken", "models/other has the traffic of vision"),
        ({"owner": "models/other"}, "HostTaken", "models/other has the traffic of vision"),
    ],
)
def test_a_rollout_is_refused_with_the_reason(change, reason, words):
    run = RolloutRun(rollout_of())
    for name, value in change.items():
        setattr(run, name, value)
    run.step()
    assert run.status.phase is Phase.REFUSED
    assert run.status.reason == reason
    assert words in run.status.message
    assert run.actions == []


def test_a_refused_rollout_can_be_retried():
    run = RolloutRun(rollout_of())
    run.blocked_by = "models/other"
    run.step()
    run.blocked_by = ""
    run.step(command=CommandKind.RETRY)
    assert run.status.phase is Phase.PROGRESSING


def test_a_live_candidate_is_not_sent_back_to_an_idle_baseline():
    run = RolloutRun(rollout_of())
    run.split = TrafficSplit(weights={"v2": 100.0, "v1": 0.0})
    run.step()
    assert run.status.reason == "BaselineUnused"
    assert "make v2 the baseline" in run.status.message
    assert run.actions == []


def test_a_rollout_gives_back_what_an_unknown_earlier_run_left():
    testers = [{"header": "x-tester"}]
    sticky = {"header": "x-user-id"}
    run = RolloutRun(rollout_of(strategy=APPROVAL, testers=testers, sticky=sticky))
    run.run(3)
    assert run.split.testers
    # The store is lost, and the rollout is applied again.
    run.status, run.events, run._pending = RolloutStatus(), [], None
    run.run(4)
    assert run.status.phase is Phase.PROGRESSING
    assert run.status.original.weights == {"v1": 100.0, "v2": 0.0}
    run.step(command=CommandKind.ABORT)
    run.run_until("aborted", seconds=10)
    assert run.split.testers == ()
    assert run.split.sticky is None
    assert run.owner == ""
