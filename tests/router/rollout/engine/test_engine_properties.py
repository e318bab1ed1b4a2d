"""Whatever happens to a rollout, in whatever order, these things stay true."""

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rollout_runs import RolloutRun, Version, rollout_of

from tidegate.evidence.assessment import Verdict
from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.draft import VOLATILE
from tidegate.rollout.engine.due import next_due_s
from tidegate.rollout.engine.history import EventKind, replay
from tidegate.rollout.engine.inputs import CommandKind, Inputs
from tidegate.rollout.engine.status import ENDED, Phase, RolloutStatus
from tidegate.rollout.traffic import HostTraffic, TrafficSplit

STRATEGIES = (
    {"canary": {"steps": [{"weight": 1}, {"pause": {"for": "10s"}}, {"weight": 25}]}},
    {"canary": {"steps": [{"weight": 10}, {"pause": {"untilApproved": True}}]}},
    {"canary": {"ramp": {"harmBudget": 20}}},
    {"blueGreen": {"mirror": 50, "untilApproved": True, "watch": "10s"}},
    {"shadow": {"mirror": 100, "for": "5m"}},
    {"ab": {"for": "1m", "then": "winner"}},
    {"manual": {"weights": [5, 50, 100]}},
)
POLICIES = ("pause", "reassert", "adopt")
OTHERWISE = ("pause", "abort")


class RolloutMachine(RuleBasedStateMachine):
    """Commands, traffic, failures, foreign changes and crashes in any order."""

    @initialize(
        strategy=st.sampled_from(STRATEGIES),
        policy=st.sampled_from(POLICIES),
        otherwise=st.sampled_from(OTHERWISE),
        seed=st.integers(0, 2**16),
    )
    def begin(self, strategy, policy, otherwise, seed):
        rollout = rollout_of(
            strategy=strategy,
            onForeignChange=policy,
            objectives=[{"signal": "grpcFailures", "margin": "2%"}],
            decide={"within": "20m", "otherwise": otherwise},
        )
        self.run = RolloutRun(rollout, requests_per_s=40, seed=seed)
        self.checked = 0
        self.replayed = self.run.status

    @rule(seconds=st.sampled_from([1.0, 5.0, 30.0]), steps=st.integers(1, 12))
    def time_passes(self, seconds, steps):
        for _ in range(steps):
            self.run.step(seconds)

    @rule(kind=st.sampled_from([k for k in CommandKind if k is not CommandKind.SUPERSEDE]))
    def a_user_commands(self, kind):
        self.run.step(1.0, kind)

    @rule(rate=st.sampled_from([0.0, 0.0, 0.01, 0.3]))
    def the_candidate_changes(self, rate):
        self.run.versions = self.run.versions | {"v2": Version({"grpcFailures": rate})}

    @rule(weight=st.integers(0, 100))
    def somebody_shifts(self, weight):
        self.run.split = TrafficSplit(weights={"v2": float(weight), "v1": 100.0 - weight})

    @rule(message=st.sampled_from(["", "", "the proxy rejected it"]), permanent=st.booleans())
    def the_mesh_fails_or_recovers(self, message, permanent):
        self.run.fail_with, self.run.is_permanent = message, permanent

    @rule()
    def the_program_crashes_before_it_acts(self):
        """The action is lost, and the status is read from the store."""
        self.run._pending = None
        stored = msgspec.json.encode(self.run.status)
        self.run.status = msgspec.json.decode(stored, type=RolloutStatus)

    @invariant()
    def wanted_weights_sum_to_100(self):
        for action in self.run.actions[self.checked :]:
            assert abs(sum(action.split.weights.values()) - 100) < 1e-6
            assert all(0 <= weight <= 100 for weight in action.split.weights.values())
        self.checked = len(self.run.actions)

    @invariant()
    def nothing_is_promoted_without_evidence(self):
        manual = self.run.rollout.spec.strategy.manual is not None
        if self.run.status.phase is not Phase.PROMOTED or manual:
            return
        promoting = [each for each in self.run.events if each.kind is EventKind.PROMOTING]
        if "promoted by a user" in promoting[-1].message:
            return
        (assessment,) = self.run.status.assessments.values()
        assert all(each.verdict is Verdict.MET for each in assessment.objectives)

    @invariant()
    def an_ended_rollout_has_no_weight_of_its_own(self):
        status = self.run.status
        if status.phase is Phase.ABORTED and status.original:
            assert status.is_settled
            if status.reason not in ("Undone", "GivenUp"):
                assert status.desired.weights["v2"] == 0
        if status.phase in ENDED and status.phase is not Phase.REFUSED and status.original:
            assert status.ended_s is not None

    @invariant()
    def the_history_has_no_gaps_and_replays(self):
        fresh = tuple(e for e in self.run.events if e.number > self.replayed.events)
        assert [e.number for e in self.run.events] == list(range(1, len(self.run.events) + 1))
        self.replayed = replay(self.replayed, fresh)
        for name in RolloutStatus.__struct_fields__:
            if name not in VOLATILE:
                assert getattr(self.replayed, name) == getattr(self.run.status, name), name

    @invariant()
    def stages_are_entered_in_order(self):
        stages: list[int] = []
        for event in self.run.events:
            if event.kind is EventKind.RETRIED:
                stages = []
            if event.kind is EventKind.STAGE_ENTERED:
                stages.append(int(event.changes["stage"]))
        assert stages == list(range(len(stages)))

    @invariant()
    def an_ended_rollout_acts_no_more(self):
        if self.run.status.phase in ENDED:
            assert self.run._pending is None

    @invariant()
    def a_step_before_its_time_does_what_the_last_one_did(self):
        run, status = self.run, self.run.status
        if run._pending is not None:
            return
        traffic = HostTraffic(
            host="vision.models.svc.cluster.local",
            split=run.split,
            versions=tuple(run.versions),
            ready=run.ready,
            owner=run.owner,
        )

        def step_at(now_s):
            # The reading is of after the last change.
            inputs = Inputs(traffic=traffic, traffic_s=now_s)
            return advance(run.rollout, status, inputs, now_s)

        now_s = run.now_s + 0.1
        first = step_at(now_s)
        if first.status != status or first.events or first.actions:
            return
        due_s = next_due_s(run.rollout, status, now_s)
        assert due_s >= now_s
        last_s = min(due_s, now_s + 100 * 86400)
        for part in (0.001, 0.5, 0.999):
            later = step_at(now_s + part * (last_s - now_s))
            assert not later.events
            assert not later.actions
            # The time that is left may be in the message.
            assert msgspec.structs.replace(later.status, message=status.message) == status

    def teardown(self):
        """An abort always reaches 0, from wherever the rollout is."""
        if not hasattr(self, "run"):
            return
        if self.run.status.phase in ENDED:
            # The traffic is not the rollout's any more.
            return
        self.run.fail_with = ""
        self.run.step(1.0, CommandKind.ABORT)
        for _ in range(200):
            if self.run.status.phase in ENDED:
                break
            self.run.step(1.0)
        status = self.run.status
        assert status.phase in ENDED
        if status.phase is Phase.ABORTED and status.reason != "Undone" and status.original:
            assert status.reason != "GivenUp"
            assert self.run.weight() == 0
            assert self.run.owner == ""


TestRolloutMachine = RolloutMachine.TestCase
TestRolloutMachine.settings = settings(stateful_step_count=30)
