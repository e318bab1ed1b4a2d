"""The metrics of rollouts: what they say while one is in progress, and what remains at its end."""

import math

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from router_harness import manual

from tidegate.evidence.assessment import (
    Assessment,
    ObjectiveAssessment,
    SampleRatio,
    Verdict,
)
from tidegate.evidence.plan import Importance
from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.status import PauseCause, Phase, RolloutStatus
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.traffic import TrafficSplit
from tidegate.router.metrics import RolloutCollector, count_events
from tidegate.router.registry import RolloutRecord
from tidegate.router.store import Stored

ALL_TO_V1 = TrafficSplit(weights={"v1": 100.0, "v2": 0.0})
TENTH = TrafficSplit(weights={"v1": 90.0, "v2": 10.0})
FAILURES = ObjectiveAssessment(
    metric="grpcFailures",
    importance=Importance.ABORT,
    verdict=Verdict.OPEN,
    harm_e=3.5,
    harm_threshold=200.0,
    safe_e=math.inf,
    safe_threshold=20.0,
    effect=1.5,
    effect_low=0.5,
    effect_high=None,
    effect_limit=1.2,
    baseline_trials=900,
    baseline_value=0.01,
    candidate_trials=100,
    candidate_value=0.015,
)
ASSESSMENT = Assessment(
    objectives=(FAILURES,),
    harm_e=3.25,
    harm_threshold=100.0,
    abort=False,
    pause=False,
    promote=False,
    sample_ratio=SampleRatio(e=0.5, threshold=1000.0, intended=0.1, observed=0.11, mismatch=False),
    extra_bad_requests=0.5,
    excess_rate_high=0.1,
    reason="",
)
RUNNING = RolloutStatus(
    phase=Phase.PROGRESSING,
    reason="WaitingForEvidence",
    started_s=1_000.0,
    clock_s=1_000.0,
    stage_since_s=1_005.0,
    original=ALL_TO_V1,
    desired=TENTH,
    observed=ALL_TO_V1,
    desired_id=1,
    in_force_id=1,
    assessments={"v2": ASSESSMENT},
    harm_spent=2.5,
    harm_forgiven=1.0,
)
RAMP = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy: {canary: {ramp: {harmBudget: 20}}}
  objectives: [{signal: grpcFailures}]
"""


def samples(rollout, status, now_s=1_060.0, **attributes):
    """The values of the metrics, by name and the labels beyond the rollout's own."""
    record = RolloutRecord(Stored(rollout=rollout, status=status))
    for name, value in attributes.items():
        setattr(record, name, value)
    registry = CollectorRegistry()
    registry.register(RolloutCollector([record], lambda: now_s))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for each in family.samples:
            labels = dict(each.labels)
            assert (labels.pop("namespace"), labels.pop("name")) == ("models", "vision")
            key = each.name.removeprefix("tidegate_rollout_"), tuple(labels.values())
            assert key not in found
            found[key] = each.value
    return found


def ramp():
    return read_rollouts(RAMP, "test")[0]


def test_a_rollout_in_progress_shows_what_is_intended_written_and_counted():
    found = samples(
        ramp(), RUNNING, counted={"v1": 900, "v2": 100}, host="vision.models.svc.cluster.local"
    )
    description = ("v1", "v2", "vision.models.svc.cluster.local", "canary")
    assert found["info", description] == 1
    assert found["phase", ("progressing",)] == 1
    assert found["reason", ("WaitingForEvidence",)] == 1
    assert (found["stage", ()], found["stages", ()]) == (1, 1)
    assert (found["weight_percent", ("v2",)], found["weight_percent", ("v1",)]) == (10, 90)
    assert found["written_weight_percent", ("v2",)] == 0
    assert found["requests_total", ("v2",)] == 100
    assert found["problem", ()] == 0
    assert samples(ramp(), RUNNING, problem="no evidence")["problem", ()] == 1


def test_evidence_stands_beside_its_thresholds():
    found = samples(ramp(), RUNNING)
    assert (found["harm_e_value", ("v2",)], found["harm_threshold", ("v2",)]) == (3.25, 100)
    assert found["sample_ratio_e_value", ("v2",)] == 0.5
    assert found["sample_ratio_threshold", ("v2",)] == 1000
    objective = ("v2", "grpcFailures")
    assert found["objective_harm_e_value", objective] == 3.5
    assert found["objective_safe_e_value", objective] == math.inf
    assert found["objective_effect_low", objective] == 0.5
    # An end that is not known is no series.
    assert ("objective_effect_high", objective) not in found
    assert found["objective_value", (*objective, "v1")] == 0.01
    assert found["objective_trials", (*objective, "v2")] == 100
    assert found["objective_verdict", (*objective, "open")] == 1


def test_harm_that_was_forgiven_does_not_count_and_only_a_ramp_has_a_budget():
    found = samples(ramp(), RUNNING)
    assert (found["harm_spent_requests", ()], found["harm_budget_requests", ()]) == (1.5, 20)
    assert ("harm_budget_requests", ()) not in samples(manual(), RUNNING)


def test_a_pause_stops_the_time_of_the_decision_and_waits_for_a_person():
    running = samples(ramp(), RUNNING)
    assert running["duration_seconds", ()] == 60
    assert running["progression_duration_seconds", ()] == 60
    assert running["manual_pause_duration_seconds", ()] == 0
    paused = msgspec.structs.replace(
        RUNNING, phase=Phase.PAUSED, pause_cause=PauseCause.USER, pause_began_s=1_040.0
    )
    found = samples(ramp(), paused)
    assert found["duration_seconds", ()] == 60
    assert found["progression_duration_seconds", ()] == 40
    assert found["manual_pause_duration_seconds", ()] == 20
    # A stage that somebody has to approve.
    assert samples(manual(), RUNNING)["manual_pause_duration_seconds", ()] == 55


@pytest.mark.parametrize("phase", [Phase.PROMOTED, Phase.ABORTED, Phase.REFUSED])
def test_a_rollout_that_has_ended_keeps_its_description_and_its_phase_only(phase):
    ended = msgspec.structs.replace(RUNNING, phase=phase, ended_s=1_050.0)
    found = samples(ramp(), ended, counted={"v1": 900})
    assert {name for name, _ in found} == {"info", "phase"}


def test_the_end_of_a_rollout_is_timed_once():
    def count():
        found = generate_latest().decode().splitlines()
        (line,) = (each for each in found if each.startswith(ENDED_COUNT))
        (events,) = (each for each in found if each.startswith(ABORTED_EVENTS))
        return float(line.split()[-1]), float(events.split()[-1])

    ended = msgspec.structs.replace(RUNNING, phase=Phase.ABORTED, ended_s=1_050.0)
    events = [Event(number=1, time_s=1_050.0, kind=EventKind.ABORTED, message="")]
    before = count()
    count_events(events, Phase.ABORTING, ended)
    count_events((), Phase.ABORTED, ended)
    assert count() == (before[0] + 1, before[1] + 1)


ENDED_COUNT = 'tidegate_rollout_ended_after_seconds_count{phase="aborted"}'
ABORTED_EVENTS = 'tidegate_rollout_events_total{kind="Aborted"}'
