"""States of rollouts survive the status of an object, and the status tells where they are."""

import dataclasses
import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_examples import rollouts
from rollout_runs import START_S, started
from stored_rollouts import canary, largest_state, manifest_of, runs, state_of, varied_run

from tidegate.rollout.crd.command import CommandAnswer
from tidegate.rollout.crd.mapping import (
    bounded,
    rollout_of,
    status_body,
    stored_of,
    with_events,
)
from tidegate.rollout.crd.packing import DamagedStateError
from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.samples import sample_of
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.rollout.spec.reading import SpecError


def read_back(state, manifest=None):
    """A state after its way through JSON."""
    manifest = manifest or manifest_of(state.rollout)
    body = json.loads(json.dumps(status_body(state, manifest, START_S, "w"), allow_nan=False))
    return stored_of({**manifest, "status": body})


def values_of(state):
    """A state without what only the history of a store has."""
    events = [
        (each.number, round(each.time_s, 6), each.kind, each.message, each.numbers)
        for each in state.events
    ]
    return dataclasses.replace(state, events=tuple(events))


@pytest.mark.parametrize("name", runs())
def test_the_state_of_each_phase_comes_back(name):
    run = runs()[name]
    state = bounded(state_of(run, answer=CommandAnswer(id="1", accepted=False, message="no")))
    assert values_of(read_back(state)) == values_of(state)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_any_state_of_the_engine_comes_back_exactly(seed):
    run = varied_run(seed)
    again = read_back(bounded(state_of(run)))
    assert again.status == run.status
    assert msgspec.msgpack.encode(again.status) == msgspec.msgpack.encode(run.status)


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=6))
def test_infinite_and_tiny_numbers_come_back_exactly(numbers):
    run = runs_once()
    (candidate, assessment), *_ = run.status.assessments.items()
    changed = msgspec.structs.replace(assessment, harm_e=numbers[0], excess_rate_high=math.inf)
    status = msgspec.structs.replace(
        run.status, assessments={candidate: changed}, harm_spent=numbers[1]
    )
    state = dataclasses.replace(bounded(state_of(run)), status=status)
    assert msgspec.msgpack.encode(read_back(state).status) == msgspec.msgpack.encode(status)


def runs_once(found=[]):  # noqa: B006 - one run is enough
    if not found:
        found.append(started())
        found[0].run(5)
    return found[0]


@settings(max_examples=50, deadline=None)
@given(rollouts())
def test_an_object_asks_for_the_rollout_that_its_file_has(rollout):
    manifest = manifest_of(rollout, resourceVersion="17", uid="a", managedFields=[])
    assert rollout_of(manifest) == rollout


def test_labels_and_annotations_of_tools_are_left_out():
    manifest = manifest_of(canary())
    manifest["metadata"]["labels"] = {"team": "vision", "tidegate.dev/a": "b"}
    manifest["metadata"]["annotations"] = {
        "why": "faster",
        "tidegate.dev/command": "{}",
        "kubectl.kubernetes.io/last-applied-configuration": "{}",
    }
    metadata = rollout_of(manifest).metadata
    assert metadata.labels == {"team": "vision"}
    assert metadata.annotations == {"why": "faster"}


def test_a_spec_that_the_schema_cannot_judge_is_refused():
    manifest = manifest_of(canary())
    manifest["spec"]["objectives"] = [{"signal": "latency", "above": "1s"}] * 2
    with pytest.raises(SpecError, match=r"spec\.objectives\[1\]: latency above 1s is there twice"):
        rollout_of(manifest)


def test_an_object_without_a_status_keeps_nothing():
    assert stored_of(manifest_of(canary())) is None
    accepted = {"type": "Accepted", "status": "True"}
    assert stored_of(manifest_of(canary(), status={"conditions": [accepted]})) is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("", "damaged"),
        ("no Base64!", "damaged"),
        ("bm90IGNvbXByZXNzZWQ=", "damaged"),
        ("HALF", "damaged"),
    ],
)
def test_a_state_that_somebody_edited_is_reported(state, words):
    manifest = manifest_of(canary())
    body = status_body(bounded(state_of(runs_once())), manifest, START_S)
    kept = body["evidence"]["state"]
    body["evidence"]["state"] = kept[: len(kept) // 8 * 4] if state == "HALF" else state
    with pytest.raises(DamagedStateError, match=words):
        stored_of({**manifest, "status": body})


def test_a_history_that_somebody_edited_is_reported():
    manifest = manifest_of(canary())
    body = status_body(bounded(state_of(runs_once())), manifest, START_S)
    body["history"][0]["kind"] = "Unheard"
    with pytest.raises(DamagedStateError, match="Unheard"):
        stored_of({**manifest, "status": body})


def condition(body, kind):
    (found,) = [each for each in body["conditions"] if each["type"] == kind]
    return found["status"], found["reason"], found["message"]


def test_the_columns_tell_where_the_rollout_is():
    run = runs()["aborted"]
    body = status_body(bounded(state_of(run)), manifest_of(run.rollout, generation=4), START_S)
    assert (body["phase"], body["step"], body["weight"]) == ("Aborted", "1/3", 0)
    assert (body["verdict"], body["observedGeneration"]) == ("missed", 4)
    assert body["split"]["desired"] == "v1 100%, v2 0%"
    assert body["split"]["inForce"] is True
    assert "is in force" in body["split"]["how"]
    (found,) = body["evidence"]["objectives"]
    assert (found["candidate"], found["verdict"]) == ("v2", "missed")
    assert "v2" in found["detail"]


def test_a_changed_spec_is_observed_when_it_waits_for_its_turn():
    run = started()
    changed = run.rollout.model_copy(
        update={"spec": run.rollout.spec.model_copy(update={"candidate": "v3"})}
    )
    manifest = manifest_of(changed, generation=2)
    state = bounded(state_of(run))
    before = {"observedGeneration": 1}
    body = status_body(state, {**manifest, "status": before}, START_S)
    assert body["observedGeneration"] == 1
    assert body["executing"]["spec"]["candidate"] == "v2"
    waiting = dataclasses.replace(state, successor=changed)
    body = status_body(waiting, {**manifest, "status": before}, START_S)
    assert body["observedGeneration"] == 2
    again = stored_of({**manifest, "status": body})
    assert (again.rollout, again.successor) == (run.rollout, changed)
    begun = dataclasses.replace(state, rollout=changed, status=RolloutStatus(generation=2))
    assert "executing" not in status_body(begun, manifest, START_S)


def test_a_refused_change_is_told_while_the_earlier_spec_runs():
    run = started()
    manifest = manifest_of(run.rollout, generation=2)
    manifest["spec"]["objectives"] = [{"signal": "latency", "above": "1s"}] * 2
    refused = {"type": "Accepted", "status": "False", "message": "it is there twice"}
    manifest["status"] = {"conditions": [{**refused, "observedGeneration": 2}]}
    body = status_body(bounded(state_of(run)), manifest, START_S)
    assert body["observedGeneration"] == 2
    assert body["phase"] == "Progressing"
    assert condition(body, "Stalled") == ("True", "SpecRefused", "it is there twice")
    assert body["executing"]["spec"]["candidate"] == "v2"
    assert "Accepted" not in [each["type"] for each in body["conditions"]]
    # An earlier spec was refused, and nobody has judged this one yet.
    manifest["status"] = {"conditions": [{**refused, "observedGeneration": 1}]}
    body = status_body(bounded(state_of(run)), manifest, START_S)
    assert "observedGeneration" not in body or body["observedGeneration"] == 0
    assert condition(body, "Stalled")[0] == "False"


def test_the_time_of_a_condition_changes_with_its_status_only():
    run = started()
    manifest = manifest_of(run.rollout)
    first = status_body(bounded(state_of(run)), manifest, START_S)
    run.run(3)
    manifest["status"] = first
    later = status_body(bounded(state_of(run)), manifest, START_S + 60)
    times = {each["type"]: each["lastTransitionTime"] for each in later["conditions"]}
    assert times["Promoted"] == "1970-01-12T13:46:40Z"
    assert len(set(times.values())) == 1
    run.run_until("promoted", interval_s=5)
    manifest["status"] = later
    last = status_body(bounded(state_of(run)), manifest, START_S + 120)
    times = {each["type"]: each["lastTransitionTime"] for each in last["conditions"]}
    assert times["Promoted"] == times["Ready"] == "1970-01-12T13:48:40Z"
    assert times["Paused"] == "1970-01-12T13:46:40Z"


def event(number, kind=EventKind.WAITING, message="waits"):
    return Event(number=number, time_s=START_S + number, kind=kind, message=message)


def test_the_last_events_are_kept_within_the_room_for_them():
    state = state_of(started())
    short = bounded(with_events(state, [event(number) for number in range(10, 80)], None))
    assert [each.number for each in short.events] == list(range(50, 80))
    long = [event(number, message="x" * 900) for number in range(10, 80)]
    kept = bounded(with_events(state, long, None)).events
    assert 5 < len(kept) < 12
    assert kept[-1].number == 79


def test_samples_thin_out_and_begin_anew_with_the_rollout():
    run = varied_run(1)
    state = state_of(run)
    for number in range(1, 900):
        sample = sample_of(run.status, run.now_s + number)
        state = bounded(with_events(state, (), sample))
    assert 10 < len(state.samples) <= 400
    assert state.samples[0].time_s == run.now_s
    assert state.samples[-1].time_s > run.now_s + 880
    anew = with_events(state, [event(99, EventKind.STARTED)], sample)
    assert anew.samples == (sample,)


@pytest.mark.parametrize(("candidates", "most_kib"), [(1, 44), (2, 64)])
def test_an_object_of_20_objectives_stays_small(candidates, most_kib):
    state = bounded(largest_state(candidates))
    manifest = manifest_of(state.rollout)
    manifest["status"] = status_body(state, manifest, START_S, "router-0")
    assert len(json.dumps(manifest, separators=(",", ":"))) < most_kib << 10
    assert stored_of(manifest).status == state.status
