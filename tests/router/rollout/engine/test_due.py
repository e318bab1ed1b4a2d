"""When time alone makes a rollout do something."""

import math

import msgspec
import pytest
from rollout_runs import APPROVAL, RolloutRun, rollout_of

from tidegate.rollout.engine.due import COUNTDOWN, next_due_s
from tidegate.rollout.engine.status import Phase

TIMED = {"canary": {"steps": [{"weight": 10}, {"pause": {"for": "1h"}}]}}


def waiting(strategy, **spec):
    """A rollout whose first split is in force, and to which no requests come."""
    run = RolloutRun(rollout_of(strategy=strategy, **spec), requests_per_s=0)
    for _ in range(3):
        run.step(0)
    assert run.status.is_settled
    return run


def due_in(run):
    return next_due_s(run.rollout, run.status, run.now_s) - run.now_s


def test_a_rollout_that_waits_for_a_person_is_due_never():
    assert due_in(waiting(APPROVAL)) == math.inf
    assert due_in(waiting({"manual": {"weights": [10]}})) == math.inf


def test_a_pause_is_due_when_its_message_is_old_and_at_last_when_it_is_over():
    run = waiting(TIMED, decide={"within": "1d"})
    assert due_in(run) == pytest.approx(3600 * COUNTDOWN)
    turns = 0
    while run.status.reason == "WaitingForTime":
        run.now_s += max(1.0, due_in(run))
        run.step(0)
        turns += 1
    assert run.now_s - run.status.stage_since_s <= 3602
    # One turn a second would be 3,600.
    assert turns < 400


def test_a_rollout_that_waits_for_evidence_is_due_when_its_time_is_up():
    run = waiting({"canary": {"steps": [{"weight": 50}]}}, decide={"within": "30m"})
    assert due_in(run) == pytest.approx(1800)
    run.now_s += due_in(run)
    run.step(0)
    assert run.status.phase is Phase.PAUSED


def test_a_split_that_failed_is_due_when_it_is_tried_again():
    run = RolloutRun(rollout_of(strategy=APPROVAL), requests_per_s=0)
    run.fail_with = "no proxy answers"
    for _ in range(2):
        run.step(0)
    assert not run.status.is_settled
    assert due_in(run) == pytest.approx(1.0)


def test_a_ramp_is_due_always_once_it_is_in_force():
    assert due_in(waiting({"canary": {"ramp": {"harmBudget": 20}}})) == 0


def test_a_rollout_that_has_ended_is_due_never():
    run = waiting(APPROVAL)
    run.status = msgspec.structs.replace(run.status, phase=Phase.ABORTED)
    assert due_in(run) == math.inf
