"""The batching decisions."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.serving.vision.batching.planning import (
    BatchPlan,
    QueueState,
    ServiceTimeEstimate,
    WorkerStep,
    expected_wait_s,
    images_to_prepare,
    next_step,
)

COUNTS = st.integers(0, 40)


@st.composite
def states(draw):
    largest = draw(st.integers(1, 8))
    slots = draw(st.integers(1, 8))
    return QueueState(
        waiting=draw(COUNTS),
        preparing=draw(COUNTS),
        ready=draw(COUNTS),
        running=draw(st.integers(0, slots)),
        slots=slots,
        parallel=draw(st.integers(1, slots)),
        target=draw(st.integers(1, largest)),
        largest=largest,
        shares_host=draw(st.booleans()),
    )


@given(states())
def test_a_run_needs_a_free_slot_and_an_image_that_is_ready(state):
    if next_step(state) is WorkerStep.RUN:
        assert state.ready
        assert state.running < state.slots


@given(states())
def test_a_worker_decodes_only_while_images_wait(state):
    if next_step(state) is WorkerStep.PREPARE:
        assert state.waiting


@given(states(), st.integers(1, 8))
def test_a_worker_decodes_at_most_a_batch_and_leaves_as_many_for_every_other(state, workers):
    count = images_to_prepare(state, workers)
    assert count >= 1
    if count > 1:
        assert state.shares_host
        assert state.ready + count <= state.target
        assert count * workers <= state.waiting


def test_a_deep_queue_is_decoded_by_the_batch():
    state = QueueState(20, 0, 1, 0, slots=4, parallel=2, target=4, largest=4, shares_host=True)
    assert images_to_prepare(state, 4) == 3


@given(states())
def test_no_worker_idles_while_the_engine_could_compute(state):
    if state.running < state.parallel and (state.waiting or state.ready):
        assert next_step(state) is not WorkerStep.NOTHING


@given(states())
def test_images_that_would_queue_behind_other_runs_wait_for_a_full_batch(state):
    if state.shares_host and state.running >= state.parallel and state.ready < state.target:
        assert next_step(state) is not WorkerStep.RUN


@given(states())
def test_a_full_batch_is_run_as_soon_as_the_engine_is_free(state):
    if state.running < state.slots and state.ready >= state.target:
        assert next_step(state) is WorkerStep.RUN


@given(states())
def test_workers_decode_no_more_than_two_batches_ahead_of_a_busy_engine(state):
    if state.running == state.slots and state.ready + state.preparing >= 2 * state.largest:
        assert next_step(state) is WorkerStep.NOTHING


@given(states())
def test_a_free_device_takes_whatever_is_ready(state):
    if not state.shares_host and state.running < state.slots and state.ready:
        assert next_step(state) is WorkerStep.RUN


RUN_TIMES = st.dictionaries(st.integers(1, 6), st.floats(0.1, 10), min_size=1, max_size=4)


def cheapest(run_s, images):
    """The least total time to run this many images: tries every split."""
    sizes = sorted(run_s)
    best = float("inf")
    for runs in range(1, images + 1):
        for split in itertools.combinations_with_replacement(sizes, runs):
            if sum(split) >= images:
                best = min(best, sum(run_s[size] for size in split))
    return best


@given(RUN_TIMES)
def test_the_planned_split_costs_the_least(run_s):
    plan = BatchPlan.measured(run_s)
    for images in range(1, plan.largest + 1):
        left, cost = images, 0.0
        while left:
            taken = plan.take(left)
            cost += min(seconds for size, seconds in run_s.items() if size >= taken)
            left -= taken
        assert cost == pytest.approx(cheapest(run_s, images))


@given(RUN_TIMES, st.integers(1, 100))
def test_a_run_takes_at_least_one_and_no_more_than_there_are(run_s, ready):
    plan = BatchPlan.measured(run_s)
    assert 1 <= plan.take(ready) <= min(ready, max(run_s))


@given(RUN_TIMES)
def test_the_target_is_nearly_as_efficient_as_the_best_batch(run_s):
    plan = BatchPlan.measured(run_s)
    rate = {size: size / seconds for size, seconds in run_s.items()}
    assert rate[plan.target] >= 0.97 * max(rate.values())
    assert all(rate[size] < 0.97 * max(rate.values()) for size in run_s if size < plan.target)


def test_the_larger_run_goes_first():
    assert BatchPlan.measured({1: 1.0, 2: 1.5, 4: 2.6}).takes == (0, 1, 2, 2, 4)


@pytest.mark.parametrize("run_s", [{}, {0: 1.0}, {1: 0.0}, {1: 1.0, 2: -1.0}])
def test_impossible_run_times_are_refused(run_s):
    with pytest.raises(ValueError, match="positive"):
        BatchPlan.measured(run_s)


SECONDS = st.floats(1e-6, 10)


@given(SECONDS, SECONDS, st.lists(st.tuples(SECONDS, st.integers(1, 8)), max_size=20))
def test_the_estimate_stays_within_the_measured_times(prepare_s, run_s, seen):
    service_time = ServiceTimeEstimate(prepare_s, run_s)
    for seconds, images in seen:
        service_time.prepared(seconds)
        service_time.ran(seconds, images)
    prepared = [prepare_s, *(seconds for seconds, _ in seen)]
    ran = [run_s, *(seconds / images for seconds, images in seen)]
    assert min(prepared) * 0.999 <= service_time.prepare_s <= max(prepared) * 1.001
    assert min(ran) * 0.999 <= service_time.run_s <= max(ran) * 1.001


def test_the_estimate_follows_a_lasting_change():
    service_time = ServiceTimeEstimate(prepare_s=1.0, run_s=1.0)
    for _ in range(400):
        service_time.prepared(0.1)
        service_time.ran(0.4, images=4)
    assert service_time.prepare_s == pytest.approx(0.1, rel=0.01)
    assert service_time.run_s == pytest.approx(0.1, rel=0.01)


def test_the_slower_stage_limits_a_device_and_both_stages_limit_a_host():
    service_time = ServiceTimeEstimate(prepare_s=0.008, run_s=0.003)
    assert service_time.image_s(workers=4, slots=1, shares_host=False) == pytest.approx(0.003)
    assert service_time.image_s(workers=2, slots=1, shares_host=False) == pytest.approx(0.004)
    assert service_time.image_s(workers=2, slots=2, shares_host=True) == pytest.approx(0.0055)


@given(COUNTS, COUNTS, SECONDS, SECONDS, SECONDS, st.integers(1, 8))
def test_more_images_ahead_mean_no_shorter_wait(ahead, more, prepare_s, run_s, image_s, target):
    service_time = ServiceTimeEstimate(prepare_s, run_s)
    wait_s = expected_wait_s(ahead, target, service_time, image_s)
    assert wait_s >= prepare_s + run_s
    assert expected_wait_s(ahead + more, target, service_time, image_s) >= wait_s
