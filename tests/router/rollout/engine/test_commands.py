"""What users ask of a rollout, and what follows."""

from rollout_runs import APPROVAL, EVIDENCE, FAILING, HEALTHY, RolloutRun, rollout_of, started

from tidegate.rollout.engine.commands import refusal
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.traffic import TrafficSplit


def test_promotion_approves_the_step_and_full_promotion_skips_the_evidence():
    run = started(APPROVAL)
    run.step(0, CommandKind.PROMOTE)
    assert run.status.stage == 1
    run = started(EVIDENCE)
    run.step(0, CommandKind.PROMOTE)
    assert run.status.stage == 0
    run.step(0, CommandKind.PROMOTE_FULL)
    run.run_until("promoted", seconds=5)
    assert run.weight() == 100


def test_undo_puts_back_what_the_rollout_found():
    run = RolloutRun(rollout_of(strategy=APPROVAL))
    run.split = TrafficSplit(weights={"v1": 80.0, "v2": 20.0})
    run.run(3)
    run.step(0, CommandKind.PROMOTE_FULL)
    run.run_until("promoted", seconds=5)
    run.step(0, CommandKind.UNDO)
    run.run_until("aborted", seconds=5)
    assert run.split.weights == {"v1": 80.0, "v2": 20.0}
    assert run.status.reason == "Undone"
    assert run.owner == ""


def test_undo_after_another_change_asks_for_force():
    run = started(EVIDENCE)
    run.step(0, CommandKind.PROMOTE_FULL)
    run.run_until("promoted", seconds=5)
    later = TrafficSplit(weights={"v3": 100.0})
    run.split = later
    run.step(0, CommandKind.UNDO)
    run.run(5)
    assert run.split == later
    words = refusal(run.rollout, run.status, CommandKind.UNDO, observed=later)
    assert "v3 100%" in words
    assert "--force" in words
    run.step(0, CommandKind.UNDO_FORCE)
    run.run_until("aborted", seconds=5)
    assert run.split.weights == {"v1": 100.0}


def test_a_retry_begins_without_evidence():
    run = RolloutRun(rollout_of(), FAILING)
    run.run_until("aborted", seconds=300)
    run.versions = HEALTHY
    run.step(0, CommandKind.RETRY)
    assert run.status.harm_spent == 0
    run.run_until("promoted")
    assert run.weight() == 100


def test_a_superseded_rollout_gives_the_baseline_everything_first():
    run = started(APPROVAL)
    run.step(0, CommandKind.SUPERSEDE)
    run.run_until("superseded", seconds=5)
    assert run.weight() == 0
    assert run.owner == ""
