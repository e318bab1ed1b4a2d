"""The messages of a rollout's status: what the engine remembers, in the terms of the protos."""

import itertools
import math

import msgspec
import pytest
from rollout_examples import CANARY

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, SampleRatio, Verdict
from tidegate.evidence.plan import Importance
from tidegate.rollout import traffic
from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.samples import MOST_SAMPLES, Sample, is_due, sample_of, thinned
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.messages import (
    assessment_message,
    event_message,
    rollout_message,
    sample_message,
    status_message,
)
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.v1 import rollout_pb2

_ASSESSMENT = Assessment(
    objectives=(
        ObjectiveAssessment(
            metric="grpcFailures",
            importance=Importance.PAUSE,
            verdict=Verdict.OPEN,
            harm_e=2.5,
            harm_threshold=300.0,
            safe_e=math.inf,
            safe_threshold=20.0,
            effect=1.1,
            effect_low=None,
            effect_high=1.5,
            effect_limit=1.2,
            baseline_trials=1000,
            baseline_value=0.0,
            candidate_trials=10,
            candidate_value=None,
            started_healthy=True,
            detail="1 of 10",
        ),
    ),
    harm_e=3.5,
    harm_threshold=100.0,
    abort=False,
    pause=False,
    promote=False,
    sample_ratio=SampleRatio(e=1.5, threshold=1e6, intended=0.1, observed=None, mismatch=True),
    extra_bad_requests=1.25,
    excess_rate_high=0.5,
    reason="little is known",
)
_STATUS = RolloutStatus(
    generation=3,
    phase=Phase.PROGRESSING,
    reason="WaitingForEvidence",
    message="waits",
    stage=1,
    stage_since_s=1100.25,
    started_s=1000.5,
    clock_s=1000.5,
    original=traffic.TrafficSplit(weights={"v1": 100}),
    desired=traffic.TrafficSplit(
        weights={"v2": 1, "v1": 99},
        mirrors={"v2": 5},
        testers=(
            traffic.TesterMatch(
                kind=traffic.MatchKind.HEADER, name="x-test", value="1", version="v2"
            ),
        ),
        sticky=traffic.Sticky(kind=traffic.MatchKind.COOKIE, name="user"),
    ),
    desired_id=2,
    in_force_id=1,
    observed=traffic.TrafficSplit(weights={"v1": 100}),
    assessments={"v2": _ASSESSMENT},
    harm_spent=4.0,
    harm_forgiven=1.0,
    requests_per_s=12.5,
    lost_requests=7,
)


@pytest.fixture
def rollout():
    return read_rollouts(CANARY, "f.yaml")[0]


def test_a_status_has_its_stage_in_words_and_its_times(rollout):
    found = status_message(rollout, _STATUS)
    assert (found.generation, found.phase) == (3, rollout_pb2.PHASE_PROGRESSING)
    assert (found.stage, found.stages) == (2, 4)
    assert found.stage_text == "v2 10%, v1 90%, until every objective is met"
    assert found.started_at.ToMicroseconds() == 1_000_500_000
    assert found.stage_since.ToMicroseconds() == 1_100_250_000
    assert found.decide_by.ToMicroseconds() == (1000_500 + 7_200_000) * 1000
    assert not found.HasField("ended_at")
    assert not found.in_force
    assert (found.harm_spent, found.requests_per_second) == (3.0, 12.5)
    assert found.lost_requests == 7
    assert not found.HasField("harm_budget")


def test_a_status_has_its_splits(rollout):
    found = status_message(rollout, _STATUS).desired
    assert dict(found.weights) == {"v2": 1, "v1": 99}
    assert dict(found.mirrors) == {"v2": 5}
    assert list(found.testers) == ["header x-test=1 to v2"]
    assert found.sticky == "cookie:user"


def test_a_paused_rollout_has_no_time_left(rollout):
    paused = msgspec.structs.replace(_STATUS, phase=Phase.PAUSED)
    assert not status_message(rollout, paused).HasField("decide_by")


def test_a_rollout_that_has_not_begun_is_before_its_first_stage(rollout):
    found = rollout_message(rollout, RolloutStatus(), problem="no mesh").status
    assert (found.stage, found.stages, found.stage_text) == (0, 4, "")
    assert found.problem == "no mesh"
    assert not found.HasField("desired")
    assert not rollout_message(rollout).HasField("status")


def test_a_ramp_has_its_budget():
    text = CANARY[: CANARY.index("    canary:")] + "    canary: {ramp: {harmBudget: 20}}\n"
    (rollout,) = read_rollouts(text + CANARY[CANARY.index("  objectives:") :], "f.yaml")
    status = msgspec.structs.replace(_STATUS, stage=0)
    assert status_message(rollout, status).harm_budget == 20


def test_an_assessment_says_what_is_unknown_by_absence():
    found = assessment_message("v2", _ASSESSMENT)
    assert (found.candidate, found.harm_e, found.reason) == ("v2", 3.5, "little is known")
    (objective,) = found.objectives
    assert objective.importance == rollout_pb2.IMPORTANCE_PAUSE
    assert objective.verdict == rollout_pb2.VERDICT_OPEN
    assert (objective.safe_e, objective.baseline_value) == (math.inf, 0.0)
    assert objective.HasField("baseline_value")
    assert not objective.HasField("candidate_value")
    assert not objective.HasField("effect_low")
    assert found.sample_ratio.mismatch
    assert not found.sample_ratio.HasField("observed")


@pytest.mark.parametrize(
    ("struct", "message", "left_out"),
    [
        (ObjectiveAssessment, rollout_pb2.ObjectiveAssessment, set()),
        (SampleRatio, rollout_pb2.SampleRatio, set()),
        # The phase and the events say what follows from these.
        (Assessment, rollout_pb2.Assessment, {"abort", "pause", "promote", "excess_rate_high"}),
        (Event, rollout_pb2.Event, {"changes", "time_s"}),
    ],
)
def test_messages_have_the_fields_of_what_they_tell(struct, message, left_out):
    fields = set(message.DESCRIPTOR.fields_by_name) - {"candidate", "time"}
    assert fields == set(struct.__struct_fields__) - left_out


@pytest.mark.parametrize("kind", [Phase, Verdict])
def test_enums_of_the_status_have_the_same_members(kind):
    values = rollout_pb2.DESCRIPTOR.enum_types_by_name[kind.__name__].values[1:]
    assert [each.name for each in values] == [
        f"{kind.__name__.upper()}_{member.name}" for member in kind
    ]


def test_an_event_has_its_numbers():
    event = Event(
        number=4, time_s=10.5, kind=EventKind.PAUSED, message="paused", numbers={"e": math.inf}
    )
    found = event_message(event)
    assert (found.number, found.kind, found.message) == (4, "Paused", "paused")
    assert found.time.ToMicroseconds() == 10_500_000
    assert dict(found.numbers) == {"e": math.inf}


def test_a_sample_comes_through_the_disk_and_the_wire():
    sample = sample_of(_STATUS, 1200.5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sample), type=Sample) == sample
    found = sample_message(sample)
    assert found.time.ToMicroseconds() == 1_200_500_000
    assert dict(found.weights) == {"v2": 1, "v1": 99}
    assert dict(found.observed_weights) == {"v1": 100}
    (objective,) = found.assessments[0].objectives
    assert (objective.metric, objective.effect, objective.safe_e) == ("grpcFailures", 1.1, math.inf)
    assert not objective.HasField("effect_low")


def test_a_series_of_samples_is_bounded_and_spread_over_the_rollout():
    times: list[float] = []
    for second in range(200_000):
        if not times or is_due(times[0], times[-1], second):
            times.append(second)
            removed = set(thinned(times))
            times = [each for each in times if each not in removed]
    assert MOST_SAMPLES / 2 <= len(times) <= MOST_SAMPLES
    assert times[0] == 0
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps) < 200_000 / 50
    assert times[-1] > 199_000
