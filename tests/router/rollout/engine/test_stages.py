"""Every strategy becomes stages: splits, gates, and what follows the last one."""

import pytest
from rollout_runs import rollout_of

from tidegate.rollout.engine.stages import (
    End,
    GateKind,
    baseline_split,
    plan_of,
    version_split,
)
from tidegate.rollout.traffic import MatchKind, Sticky, TesterMatch, TrafficSplit

ORIGINAL = TrafficSplit(weights={"v1": 100.0})


def stages(strategy, original=ORIGINAL, **spec):
    return plan_of(rollout_of(strategy=strategy, **spec).spec, original)


def words(plan):
    return [(dict(each.split.weights), each.gate.kind) for each in plan.stages]


def test_a_canary_waits_for_evidence_after_its_last_step():
    steps = [{"weight": 1}, {"pause": {"for": "2m"}}, {"weight": 10}, {"weight": 50}]
    plan = stages({"canary": {"steps": steps}})
    assert words(plan) == [
        ({"v2": 1.0, "v1": 99.0}, GateKind.TIME),
        ({"v2": 10.0, "v1": 90.0}, GateKind.NONE),
        ({"v2": 50.0, "v1": 50.0}, GateKind.EVIDENCE),
    ]
    assert plan.stages[0].gate.seconds == 120
    assert plan.end is End.PROMOTE
    assert plan.time_limit_s == 1800


def test_pauses_in_a_row_keep_the_weight():
    steps = [{"weight": 50}, {"pause": {"untilEvidence": True}}, {"pause": {"untilApproved": True}}]
    kinds = [kind for _, kind in words(stages({"canary": {"steps": steps}}))]
    assert kinds == [GateKind.EVIDENCE, GateKind.APPROVAL, GateKind.EVIDENCE]


def test_a_weight_with_decimals_leaves_a_rest_without_noise():
    plan = stages({"canary": {"steps": [{"weight": 0.1}]}})
    assert plan.stages[0].split.weights == {"v2": 0.1, "v1": 99.9}


def test_a_ramp_is_one_stage_that_begins_with_its_start_weight():
    plan = stages({"canary": {"ramp": {"harmBudget": 20, "startWeight": 2}}})
    assert words(plan) == [({"v2": 2.0, "v1": 98.0}, GateKind.RAMP)]


def test_a_shadow_gives_the_candidate_copies_only():
    plan = stages({"shadow": {"mirror": 25, "for": "1h"}})
    (stage,) = plan.stages
    assert stage.split.weights == {"v1": 100.0}
    assert stage.split.mirrors == {"v2": 25.0}
    assert (stage.gate.seconds, stage.gate.until_evidence) == (3600, True)
    assert plan.end is End.COMPLETE


@pytest.mark.parametrize(
    ("blue_green", "kinds"),
    [
        ({"mirror": 10}, [GateKind.EVIDENCE, GateKind.WATCH]),
        ({"untilApproved": True}, [GateKind.APPROVAL, GateKind.WATCH]),
        (
            {"mirror": 10, "untilApproved": True},
            [GateKind.EVIDENCE, GateKind.APPROVAL, GateKind.WATCH],
        ),
    ],
)
def test_a_blue_green_switch_waits_and_then_watches(blue_green, kinds):
    plan = stages({"blueGreen": blue_green})
    assert [kind for _, kind in words(plan)] == kinds
    assert plan.stages[-1].split.weights == {"v2": 95.0, "v1": 5.0}
    assert plan.stages[0].split.weights.get("v2", 0.0) == 0.0


def test_a_blue_green_switch_can_hold_back_some_traffic_to_compare_with():
    plan = stages({"blueGreen": {"untilApproved": True, "holdBack": 0.5}})
    assert plan.stages[-1].split.weights == {"v2": 99.5, "v1": 0.5}
    plan = stages({"blueGreen": {"untilApproved": True, "holdBack": 0}})
    assert plan.stages[-1].split.weights == {"v2": 100.0, "v1": 0.0}


def test_a_manual_rollout_waits_for_approval_of_every_weight():
    plan = stages({"manual": {"weights": [10, 100]}})
    assert words(plan) == [
        ({"v2": 10.0, "v1": 90.0}, GateKind.APPROVAL),
        ({"v2": 100.0, "v1": 0.0}, GateKind.APPROVAL),
    ]
    assert plan.time_limit_s is None


def test_a_test_of_several_candidates_divides_equally_and_sums_to_100():
    plan = stages({"ab": {"for": "1h"}}, candidate=None, candidates=["v2", "v3"])
    (stage,) = plan.stages
    assert stage.split.weights == {"v2": 33.333, "v3": 33.333, "v1": 33.334}
    assert plan.time_limit_s is None


def test_a_test_until_evidence_has_the_time_limit_of_the_decision():
    assert stages({"ab": {"untilEvidence": True}}).time_limit_s == 1800


def test_testers_and_the_sticky_key_are_there_in_every_stage_and_gone_at_the_end():
    rollout = rollout_of(
        testers=[{"header": "x-tester", "value": "yes"}, {"cookie": "tester", "to": "v1"}],
        sticky={"header": "x-user-id"},
    )
    plan = plan_of(rollout.spec, ORIGINAL)
    testers = (
        TesterMatch(kind=MatchKind.HEADER, name="x-tester", value="yes", version="v2"),
        TesterMatch(kind=MatchKind.COOKIE, name="tester", value="", version="v1"),
    )
    for stage in plan.stages:
        assert stage.split.testers == testers
        assert stage.split.sticky == Sticky(kind=MatchKind.HEADER, name="x-user-id")
    for split in (
        baseline_split(rollout.spec, ORIGINAL),
        version_split(rollout.spec, ORIGINAL, "v2"),
    ):
        assert split.testers == ()
        assert split.sticky is None


def test_what_the_rollout_found_comes_back_at_the_end_but_not_the_candidates_mirror():
    sticky = Sticky(kind=MatchKind.HEADER, name="x-session")
    original = TrafficSplit(
        weights={"v1": 90.0, "v2": 10.0}, sticky=sticky, mirrors={"v2": 5.0, "v3": 1.0}
    )
    split = baseline_split(rollout_of().spec, original)
    assert split.weights == {"v1": 100.0, "v2": 0.0}
    assert split.mirrors == {"v3": 1.0}
    assert split.sticky == sticky
    shadow = stages({"shadow": {"mirror": 50}}, original)
    assert shadow.stages[0].split.mirrors == {"v3": 1.0, "v2": 50.0}


def test_every_stage_says_in_words_what_it_waits_for():
    steps = [{"weight": 1}, {"pause": {"for": "90s"}}]
    assert [str(each) for each in stages({"canary": {"steps": steps}}).stages] == [
        "v2 1%, v1 99%, for 1m30s",
        "v2 1%, v1 99%, until every objective is met",
    ]
