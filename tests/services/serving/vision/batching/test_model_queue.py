"""What a model queue accepts, and why it refuses."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from tidegate.chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from tidegate.serving.vision.batching.model_queue import QueueLimits

IMAGE_S = 0.002  # decode and run, with one worker on the host


@pytest.fixture
def queue(make_harness):
    """Makes a queue that no worker serves, so that accepted requests stay in it."""

    def make(**how):
        harness = make_harness()
        queue = harness.queue(shares_host=True, **how)
        harness.pool.remove(queue)
        return harness, queue

    return make


def admitted(harness, queue, *marks, **how):
    request = harness.request(*marks, **how)
    queue.admit(request, harness.clock(), workers=1)
    queue.enqueue(request)
    return request


async def test_the_limit_of_images_is_exact(queue):
    harness, queue = queue(limits=QueueLimits(images=4, size_bytes=1 << 20))
    admitted(harness, queue, 1, 2, 3)
    with pytest.raises(ResourceExhausted, match="3 images wait; the limit is 4") as refused:
        admitted(harness, queue, 4, 5)
    assert refused.value.reason == "QUEUE_FULL"
    assert refused.value.retry_after_s == pytest.approx(0.01)
    admitted(harness, queue, 4)
    assert queue.held_images == 4


async def test_the_limit_of_bytes_is_exact(queue):
    harness, queue = queue(limits=QueueLimits(images=100, size_bytes=24))
    admitted(harness, queue, 1)
    with pytest.raises(ResourceExhausted, match="24 bytes"):
        admitted(harness, queue, 2, 3)
    admitted(harness, queue, 2)
    assert queue.held_bytes == 24


async def test_a_finished_request_makes_room(queue):
    harness, queue = queue(limits=QueueLimits(images=2, size_bytes=1 << 20))
    first = admitted(harness, queue, 1, 2)
    assert first.cancel()
    queue.settled(first, harness.clock(), succeeded=False)
    assert (queue.held_images, queue.held_bytes) == (0, 0)
    admitted(harness, queue, 3, 4)


async def test_a_request_that_would_be_late_is_refused_with_a_retry_delay(queue):
    harness, queue = queue()
    admitted(harness, queue, *range(100))
    # 101 images, one decode and one usual batch; a quarter more is the safety margin.
    wait_s = 101 * IMAGE_S + 0.001 + 4 * 0.001
    with pytest.raises(ResourceExhausted, match=r"about 207 ms.*deadline is in 240 ms") as refused:
        admitted(harness, queue, 1, deadline_s=harness.clock() + 0.24)
    assert refused.value.reason == "DEADLINE_WOULD_PASS"
    assert refused.value.retry_after_s == pytest.approx(1.25 * wait_s - 0.24)
    admitted(harness, queue, 1, deadline_s=harness.clock() + 1.26 * wait_s)


async def test_the_queue_of_another_client_does_not_make_a_request_late(queue):
    harness, queue = queue()
    admitted(harness, queue, *range(100), client="greedy")
    admitted(harness, queue, 1, client="modest", deadline_s=harness.clock() + 10 * IMAGE_S)


async def test_images_in_every_stage_count_as_ahead(queue):
    harness, queue = queue()
    admitted(harness, queue, *range(20))
    decoding, _ = queue.next_to_prepare(harness.clock(), 20)
    for image in decoding[:12]:
        queue.prepared(image, image.content.array)
    queue.next_batch(harness.clock())
    assert (queue.preparing, queue.ready + queue.running_images) == (8, 12)
    queue.service_time.prepare_s = 0.001
    # 21 images, one decode and one usual batch.
    with pytest.raises(ResourceExhausted, match="about 47 ms"):
        admitted(harness, queue, 1, deadline_s=harness.clock() + 1.24 * 0.047)


async def test_an_empty_queue_accepts_a_request_that_it_expects_to_be_late(queue):
    harness, queue = queue()
    queue.service_time.run_s = 1e6
    admitted(harness, queue, 1, deadline_s=harness.clock() + 1)
    assert queue.held_images == 1


async def test_a_request_whose_deadline_has_passed_is_refused(queue):
    harness, queue = queue()
    with pytest.raises(DeadlineExceeded, match="had passed"):
        admitted(harness, queue, 1, deadline_s=harness.clock())


async def test_a_closing_queue_refuses_requests(queue):
    harness, queue = queue()
    queue.closing = True
    with pytest.raises(Unavailable) as refused:
        admitted(harness, queue, 1)
    assert refused.value.reason == "MODEL_UNLOADING"


async def test_the_gauge_of_held_images_follows(queue):
    harness, queue = queue(name="gauged 1")
    request = admitted(harness, queue, 1, 2, 3)
    assert held("gauged 1") == 3
    request.cancel()
    queue.settled(request, harness.clock(), succeeded=False)
    assert held("gauged 1") == 0


def held(model):
    labels = {"model": model, "model_version": "1"}
    return REGISTRY.get_sample_value("tidegate_vision_held_images", labels)


async def test_pixels_and_tensors_are_never_run_together(queue):
    harness, queue = queue()
    from tidegate.serving.vision.engines.engine import InputForm

    request = admitted(harness, queue, 1, 2, 3, 4)
    for image in request.images[::2]:
        image.form = InputForm.TENSOR
    for _ in range(4):
        harness.clock.now_s += 1
        (image,), _ = queue.next_to_prepare(harness.clock(), 1)
        image.timestamps.prepare_end_s = harness.clock()
        queue.prepared(image, image.content.array)
    batches = [queue.next_batch(harness.clock())[0] for _ in range(2)]
    assert [[image.index for image in batch] for batch in batches] == [[0, 2], [1, 3]]
    await asyncio.sleep(0)
