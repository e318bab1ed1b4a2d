"""Splits that fail or come late."""

from rollout_runs import APPROVAL, EVIDENCE, FAILING, RolloutRun, kinds, rollout_of, started

from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import Phase


def test_a_split_that_fails_is_tried_again_later_and_later():
    run = RolloutRun(rollout_of(strategy=APPROVAL))
    run.fail_with = "v2 has no healthy endpoint"
    run.run(100)
    assert run.weight() == 0
    assert "v2 has no healthy endpoint" in run.status.message
    assert kinds(run).count(EventKind.SPLIT_FAILED) == 1
    assert 5 <= len(run.actions) <= 12
    run.fail_with = ""
    run.run_until("WaitingForApproval", seconds=120)
    assert run.weight() == 10
    assert run.status.apply_failures == 0


def test_a_clock_that_is_set_back_does_not_keep_a_split_from_being_tried_again():
    run = RolloutRun(rollout_of(strategy=APPROVAL))
    run.fail_with = "v2 has no healthy endpoint"
    run.run(30)
    run.fail_with = ""
    run.now_s -= 3600
    run.run_until("WaitingForApproval", seconds=120)
    assert run.weight() == 10


def test_a_split_that_never_comes_into_force_does_not_make_the_rollout_wait_for_ever():
    run = RolloutRun(rollout_of(strategy=EVIDENCE, decide={"within": "2m", "otherwise": "abort"}))
    run.fail_with = "v2 has no healthy endpoint"
    run.run(130)
    assert run.status.phase is Phase.ABORTING
    run.fail_with = ""
    run.run_until("aborted", seconds=100)


def test_a_late_outcome_of_an_earlier_split_is_ignored():
    run = RolloutRun(rollout_of(strategy=APPROVAL))
    run.step()
    run.step(command=CommandKind.ABORT)
    # The outcome of the first split came with the abort; the baseline's split is still to come.
    assert run.status.phase is Phase.ABORTING
    assert not run.status.is_settled
    run.run_until("aborted", seconds=10)
    assert run.weight() == 0


def test_an_abort_that_is_impossible_ends_and_says_so():
    run = started(APPROVAL)
    run.fail_with, run.is_permanent = "vision has no subset v1", True
    run.step(command=CommandKind.ABORT)
    run.run_until("aborted", seconds=10)
    assert run.status.reason == "GivenUp"
    assert "the traffic was not changed: vision has no subset v1" in run.status.message


def test_a_split_that_is_impossible_aborts_the_rollout():
    run = started(APPROVAL)
    run.fail_with, run.is_permanent = "vision has no subset v2", True
    run.step(command=CommandKind.PROMOTE_FULL)
    run.step()
    assert run.status.phase is Phase.ABORTING
    run.fail_with, run.is_permanent = "", False
    run.run_until("aborted", seconds=300)
    assert run.weight() == 0


def test_harm_aborts_a_promotion_that_is_on_its_way():
    run = started(EVIDENCE)
    run.run_until("promoting", seconds=300)
    run.fail_with = "a proxy does not answer"
    run.versions = FAILING
    run.run(120)
    assert run.status.phase is Phase.ABORTING
    run.fail_with = ""
    run.run_until("aborted", seconds=100)


def test_a_promotion_by_a_user_is_not_aborted_for_harm():
    run = started(EVIDENCE)
    run.versions = FAILING
    run.step(0, CommandKind.PROMOTE_FULL)
    run.fail_with = "a proxy does not answer"
    run.run(60)
    assert run.status.phase is Phase.PROMOTING
    run.fail_with = ""
    run.run_until("promoted", seconds=100)
