"""Changes of the traffic by others during a rollout."""

from rollout_runs import APPROVAL, FAILING, RolloutRun, kinds, rollout_of, started

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.traffic import TrafficSplit


def foreign(policy, weight=30.0):
    run = RolloutRun(rollout_of(strategy=APPROVAL, onForeignChange=policy))
    run.run(3)
    assert run.weight() == 10
    run.split = TrafficSplit(weights={"v2": weight, "v1": 100 - weight})
    run.step()
    return run


def test_a_foreign_change_pauses_and_resuming_puts_the_split_back():
    run = foreign("pause")
    assert run.status.pause_cause is PauseCause.FOREIGN_CHANGE
    assert "changed the traffic" in run.status.message
    assert "v2 30%" in run.status.message
    run.run(20)
    assert run.weight() == 30
    run.step(command=CommandKind.RESUME)
    run.run(2)
    assert run.weight() == 10
    assert run.status.phase is Phase.PROGRESSING


def test_the_time_of_a_stage_begins_again_after_a_foreign_change():
    steps = [{"weight": 10}, {"pause": {"for": "1m"}}, {"weight": 50}]
    steps.append({"pause": {"untilApproved": True}})
    run = started({"canary": {"steps": steps}})
    run.run(50)
    run.split = TrafficSplit(weights={"v2": 30.0, "v1": 70.0})
    run.run(100)
    run.step(command=CommandKind.RESUME)
    run.run(40)
    assert run.weight() == 10
    run.run(40)
    assert run.weight() == 50


def test_harm_aborts_a_rollout_that_a_foreign_change_has_paused():
    run = foreign("pause")
    run.versions = FAILING
    run.run_until("aborted", seconds=300)
    assert run.weight() == 0


def test_a_foreign_change_is_reasserted():
    run = foreign("reassert")
    run.run(2)
    assert run.weight() == 10
    assert run.status.phase is Phase.PROGRESSING
    assert kinds(run).count(EventKind.FOREIGN_CHANGE) == 1


def test_a_quarrel_with_another_controller_ends_in_a_pause():
    run = RolloutRun(rollout_of(strategy=APPROVAL, onForeignChange="reassert"))
    run.run(3)
    for _ in range(40):
        run.split = TrafficSplit(weights={"v2": 30.0, "v1": 70.0})
        run.run(3)
    assert run.status.pause_cause is PauseCause.FOREIGN_CHANGE
    assert "5 times within 10m" in run.status.message
    assert len(run.events) < 30
    # An hour later it may put its split back again.
    run.run(3600, 10)
    run.step(command=CommandKind.RESUME)
    run.run(3)
    run.split = TrafficSplit(weights={"v2": 30.0, "v1": 70.0})
    run.run(3)
    assert run.weight() == 10


def test_a_foreign_change_is_adopted():
    run = foreign("adopt")
    run.run(5)
    assert run.weight() == 30
    assert run.status.phase is Phase.PROGRESSING
    assert run.status.desired.weights["v2"] == 30


def test_a_change_to_a_version_that_the_rollout_does_not_know_is_not_adopted():
    run = RolloutRun(rollout_of(strategy=APPROVAL, onForeignChange="adopt"))
    run.run(3)
    run.split = TrafficSplit(weights={"v0": 100.0})
    run.step()
    assert run.status.pause_cause is PauseCause.FOREIGN_CHANGE


def test_a_lost_mark_of_the_owner_is_a_foreign_change():
    run = RolloutRun(rollout_of(strategy=APPROVAL))
    run.run(3)
    run.owner = ""
    run.step()
    assert "do not name the rollout" in run.status.message


def test_an_abort_of_a_paused_rollout_wins_over_the_foreign_change():
    run = foreign("pause")
    run.step(command=CommandKind.ABORT)
    run.run_until("aborted", seconds=10)
    assert run.weight() == 0
