"""A rollout goes through its stages in simulated time, with the real evidence."""

import msgspec
import pytest
from rollout_runs import (
    APPROVAL,
    EVIDENCE,
    FAILING,
    HEALTHY,
    RolloutRun,
    Version,
    rollout_of,
    started,
)

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.plan import Importance
from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import CommandKind, Inputs
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.traffic import TrafficSplit


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
    assert "grpcFailures" in aborting.message
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


# Time


@pytest.mark.parametrize("otherwise", ["promoting", "aborting", "paused"])
def test_the_time_of_a_person_is_not_the_time_of_the_evidence(otherwise):
    words = {"promoting": "promote", "aborting": "abort", "paused": "pause"}
    steps = [{"weight": 10}, {"pause": {"untilApproved": True}}, {"weight": 50}]
    run = started(
        {"canary": {"steps": steps}},
        decide={"within": "10m", "otherwise": words[otherwise]},
        # Nothing fails, so nothing is proven without a margin.
        objectives=[{"signal": "grpcFailures", "tolerate": "1x", "margin": "0%"}],
    )
    run.run(3600, 10)
    assert run.status.reason == "WaitingForApproval"
    run.step(command=CommandKind.PROMOTE)
    run.run(500, 10)
    assert run.status.phase is Phase.PROGRESSING
    run.run_until(otherwise, seconds=200)


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


def test_requests_whose_records_are_lost_are_counted():
    run = started()
    inputs = Inputs(windows=tuple(window(lost) for lost in (3, 0, 4)))
    status = advance(run.rollout, run.status, inputs, run.now_s).status
    assert status.lost_requests == 7
    assert advance(run.rollout, status, inputs, run.now_s).status.lost_requests == 14


def window(lost):
    return TrafficWindow(
        start_s=1.0, end_s=2.0, shares={"v1": 0.9, "v2": 0.1}, versions={}, lost=lost
    )


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
