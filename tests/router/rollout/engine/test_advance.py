"""Steps of a rollout in simulated time, with the real evidence."""

import msgspec
import pytest
from rollout_runs import RolloutRun, Version, rollout_of

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.plan import Importance
from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.commands import refusal
from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind, Inputs
from tidegate.rollout.engine.status import PauseCause, Phase, RolloutStatus
from tidegate.rollout.traffic import TrafficSplit

HEALTHY = {"v1": Version(), "v2": Version()}
FAILING = {"v1": Version(), "v2": Version({"grpcFailures": 0.2})}
EVIDENCE = {"canary": {"steps": [{"weight": 50}]}}
APPROVAL = {"canary": {"steps": [{"weight": 10}, {"pause": {"untilApproved": True}}]}}


def kinds(run):
    return [each.kind for each in run.events]


def started(strategy=EVIDENCE, versions=HEALTHY, **spec):
    run = RolloutRun(rollout_of(strategy=strategy, **spec), versions)
    run.step()
    run.step()
    assert run.status.phase is Phase.PROGRESSING
    assert run.status.is_settled
    return run


def test_a_healthy_canary_goes_from_one_to_a_hundred_per_cent_by_itself():
    run = RolloutRun(rollout_of(), HEALTHY)
    run.run_until("promoted")
    assert run.split.weights == {"v2": 100.0, "v1": 0.0}
    assert run.owner == ""
    weights = [action.split.weights["v2"] for action in run.actions]
    assert weights == [1, 10, 50, 100]
    assert [each.number for each in run.events] == list(range(1, len(run.events) + 1))


def test_a_failing_canary_is_rolled_back_with_the_numbers():
    run = RolloutRun(rollout_of(), FAILING)
    run.run_until("aborted", seconds=300)
    assert run.split.weights == {"v1": 100.0, "v2": 0.0}
    assert run.status.reason == "HarmProven"
    aborting = next(each for each in run.events if each.kind is EventKind.ABORTING)
    assert "grpcFailures" in aborting.message or "failed" in aborting.message
    assert aborting.numbers["harm_e"] >= aborting.numbers["harm_threshold"]
    assert run.status.decision == aborting.message


def test_a_split_that_takes_traffic_from_a_bad_version_is_urgent_and_waits_for_no_other():
    run = RolloutRun(rollout_of(), FAILING)
    run.run_until("HarmProven")
    *earlier, abort = run.actions
    assert abort.urgent
    assert not any(each.urgent for each in earlier)
    waiting = Inputs(applying=True)
    assert advance(run.rollout, run.status, waiting, run.now_s).actions == (abort,)
    run = started()
    run.step(command=CommandKind.PROMOTE_FULL)
    assert not run.actions[-1].urgent
    assert not advance(run.rollout, run.status, waiting, run.now_s).actions


def test_a_canary_is_rolled_back_while_it_waits_for_approval_or_is_paused():
    for command in (None, CommandKind.PAUSE):
        run = started(APPROVAL)
        run.run(5)
        run.versions = FAILING
        run.step(command=command)
        run.run_until("aborted", seconds=300)
        assert run.weight() == 0


def test_a_timed_step_waits_for_data():
    steps = [{"weight": 10}, {"pause": {"for": "1m"}}]
    run = RolloutRun(rollout_of(strategy={"canary": {"steps": steps}}), requests_per_s=0)
    run.run(600)
    assert run.status.reason == "WaitingForData"
    assert "too few data yet: grpcFailures" in run.status.message
    assert run.weight() == 10


def test_without_a_decision_in_time_the_rollout_does_what_the_spec_says():
    for otherwise, phase in (("pause", "paused"), ("abort", "aborted"), ("promote", "promoted")):
        decide = {"within": "2m", "otherwise": otherwise}
        run = RolloutRun(rollout_of(strategy=EVIDENCE, decide=decide), requests_per_s=1)
        run.run_until(phase, seconds=300)
        assert "nothing is proven" in next(
            each.message for each in reversed(run.events) if "proven" in each.message
        )


def test_a_rollout_whose_time_was_up_gets_it_again_when_it_is_resumed():
    run = RolloutRun(rollout_of(strategy=EVIDENCE, decide={"within": "2m"}), requests_per_s=1)
    run.run_until("paused", seconds=300)
    assert run.status.pause_cause is PauseCause.TIME_UP
    run.step(command=CommandKind.RESUME)
    run.run(100)
    assert run.status.phase is Phase.PROGRESSING


def test_a_pause_does_not_count_as_time_of_the_stage():
    steps = [{"weight": 10}, {"pause": {"for": "1m"}}, {"weight": 50}]
    steps.append({"pause": {"untilApproved": True}})
    run = started({"canary": {"steps": steps}})
    run.run(10)
    run.step(command=CommandKind.PAUSE)
    run.run(600)
    run.step(command=CommandKind.RESUME)
    run.run(40)
    assert run.weight() == 10
    run.run(20)
    assert run.weight() == 50


def test_the_harm_of_a_paused_objective_pauses_and_resuming_accepts_it():
    objectives = [
        {"signal": "grpcFailures"},
        {"signal": "truncatedAnswers", "importance": "pause"},
    ]
    bad = Version({"truncatedAnswers": 0.3})
    versions = {"v1": Version({"truncatedAnswers": 0.01}), "v2": bad}
    run = RolloutRun(rollout_of(strategy=EVIDENCE, objectives=objectives), versions)
    run.run_until("paused", seconds=300)
    assert run.status.pause_cause is PauseCause.OBJECTIVE
    assert "truncatedAnswers" in run.status.message
    run.step(command=CommandKind.RESUME)
    run.run(30)
    assert run.status.phase is Phase.PROGRESSING
    # It is still not met, so nothing promotes it.
    assert run.weight() == 50


def test_weak_evidence_of_several_objectives_pauses_together():
    signals = ("emptyAnswers", "truncatedAnswers")
    objectives = [{"signal": "grpcFailures"}]
    objectives += [{"signal": each, "importance": "pause"} for each in signals]
    versions = {name: Version(dict.fromkeys(signals, 0.0)) for name in ("v1", "v2")}
    run = RolloutRun(rollout_of(strategy=EVIDENCE, objectives=objectives), versions)
    run.run(10)
    said = run.status.assessments["v2"]
    weak = tuple(
        msgspec.structs.replace(each, verdict=Verdict.OPEN, harm_e=0.9 * each.harm_threshold)
        if each.importance is Importance.PAUSE
        else each
        for each in said.objectives
    )
    said = msgspec.structs.replace(said, objectives=weak, pause=True)
    run.status = msgspec.structs.replace(run.status, assessments={"v2": said})
    run.step(0.0)
    assert run.status.pause_cause is PauseCause.OBJECTIVE
    assert all(each in run.status.message for each in signals)
    run.step(0.0, CommandKind.RESUME)
    assert run.status.phase is Phase.PROGRESSING
    assert run.status.accepted == signals


def test_a_mismatch_of_the_split_pauses():
    run = started()

    def pinned(name, requests, traffic=run._traffic):
        return traffic(name, requests * 4 if name == "v2" else requests)

    run._traffic = pinned
    run.run_until("paused", seconds=300)
    assert run.status.pause_cause is PauseCause.SAMPLE_RATIO
    assert "was meant to get 50.0%" in run.status.message


# Before it begins


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


# Changes by others


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


# Failures of the mesh


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


# Time


@pytest.mark.parametrize("otherwise", ["promote", "abort", "pause"])
def test_the_time_of_a_person_is_not_the_time_of_the_evidence(otherwise):
    decide = {"within": "10m", "otherwise": otherwise}
    steps = [{"weight": 10}, {"pause": {"untilApproved": True}}, {"weight": 50}]
    run = started({"canary": {"steps": steps}}, decide=decide)
    run.run(3600, 10)
    assert run.status.reason == "WaitingForApproval"
    run.requests_per_s = 0.1
    run.step(command=CommandKind.PROMOTE)
    run.run(300, 10)
    assert run.status.phase is Phase.PROGRESSING or run.status.phase is Phase.PROMOTED


def test_a_comparison_whose_time_is_up_promotes_nobody_unproven():
    run = RolloutRun(
        rollout_of(
            strategy={"ab": {"untilEvidence": True}},
            candidate=None,
            candidates=["v2", "v3"],
            objectives=[{"signal": "grpcFailures", "tolerate": "1x", "margin": "0%"}],
            decide={"within": "10m", "otherwise": "promote"},
        ),
        {"v1": Version(), "v2": Version(), "v3": Version()},
        requests_per_s=5,
    )
    run.run_until("completed", seconds=700)
    assert run.status.winner == ""
    assert run.weight("v1") == 100


def test_requests_of_several_epochs_are_added_before_they_are_averaged():
    run = RolloutRun(rollout_of(), requests_per_s=100)
    run.split_windows = 5
    run.run(60)
    assert run.status.requests_per_s == pytest.approx(100, rel=0.1)


# What a rollout finds


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


# Commands


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


# Comparisons


def test_a_shadow_compares_and_gives_the_candidate_no_user():
    run = RolloutRun(rollout_of(strategy={"shadow": {"mirror": 100}}))
    run.run_until("completed", seconds=2000)
    assert run.status.winner == "v2"
    assert run.split.mirrors == {}
    assert all(action.split.weights.get("v2", 0) == 0 for action in run.actions)


def test_a_shadow_that_finds_harm_is_aborted():
    run = RolloutRun(rollout_of(strategy={"shadow": {"mirror": 100}}), FAILING)
    run.run_until("aborted", seconds=2000)
    assert run.split.mirrors == {}


def test_a_test_ends_at_its_horizon_and_says_who_won():
    versions = {"v1": Version(), "v2": Version(), "v3": Version({"truncatedAnswers": 0.5})}
    run = RolloutRun(
        rollout_of(
            strategy={"ab": {"for": "10m", "then": "winner"}},
            candidate=None,
            candidates=["v2", "v3"],
            objectives=[
                {"signal": "grpcFailures", "margin": "1%"},
                {"signal": "truncatedAnswers", "margin": "1%", "importance": "pause"},
            ],
        ),
        versions,
    )
    run.split = TrafficSplit(weights={"v1": 100.0})
    for version in versions.values():
        version.rates = {"truncatedAnswers": 0.0} | dict(version.rates)
    run.run_until("paused", "completed", seconds=700)
    run.step(0, CommandKind.RESUME)
    run.run_until("completed", seconds=700)
    assert run.status.winner == "v2"
    assert run.split.weights == {"v2": 100.0, "v3": 0.0, "v1": 0.0}


def test_a_test_that_keeps_its_split_keeps_users_where_they_are():
    sticky = {"header": "x-user-id"}
    run = RolloutRun(
        rollout_of(
            strategy={"ab": {"for": "1m", "then": "keep"}},
            sticky=sticky,
            testers=[{"header": "x-tester"}],
        )
    )
    run.run_until("completed", seconds=100)
    assert run.split.weights == {"v2": 50.0, "v1": 50.0}
    assert str(run.split.sticky) == "header:x-user-id"
    assert run.split.testers == ()


def test_harm_after_a_switch_is_found_with_the_traffic_held_back():
    strategy = {"blueGreen": {"untilApproved": True, "watch": "30m"}}
    run = RolloutRun(rollout_of(strategy=strategy))
    run.run(5)
    run.step(0, CommandKind.PROMOTE)
    run.run(60)
    assert run.weight() == 95
    run.versions = FAILING
    run.run_until("aborted", seconds=300)
    assert run.weight() == 0


def test_a_blue_green_switch_moves_everything_at_once_and_watches():
    run = RolloutRun(rollout_of(strategy={"blueGreen": {"untilApproved": True, "watch": "1m"}}))
    run.run(10)
    assert run.weight() == 0
    run.step(0, CommandKind.PROMOTE)
    run.run(5)
    assert run.weight() == 95
    assert run.status.phase is Phase.PROGRESSING
    run.run_until("promoted", seconds=120)
    assert run.weight() == 100
