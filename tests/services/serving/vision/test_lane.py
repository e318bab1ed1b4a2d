"""What a lane takes in, and why not."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from tidegate.chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from tidegate.serving.vision.lane import Bounds

IMAGE_S = 0.002  # decode and run, with one worker on the host


@pytest.fixture
def lane(workshop):
    """A lane that no worker serves: what it takes in stays."""

    def make(**how):
        shop = workshop()
        lane = shop.lane(shares_host=True, **how)
        shop.pool.remove(lane)
        return shop, lane

    return make


def admitted(shop, lane, *marks, **how):
    ticket = shop.ticket(*marks, **how)
    lane.admit(ticket, shop.clock(), workers=1)
    lane.queue(ticket)
    return ticket


async def test_the_bound_of_images_is_exact(lane):
    shop, lane = lane(bounds=Bounds(images=4, size_bytes=1 << 20))
    admitted(shop, lane, 1, 2, 3)
    with pytest.raises(ResourceExhausted, match="3 images wait; the limit is 4") as refused:
        admitted(shop, lane, 4, 5)
    assert refused.value.reason == "QUEUE_FULL"
    assert refused.value.retry_after_s == pytest.approx(0.01)
    admitted(shop, lane, 4)
    assert lane.held_images == 4


async def test_the_bound_of_bytes_is_exact(lane):
    shop, lane = lane(bounds=Bounds(images=100, size_bytes=24))
    admitted(shop, lane, 1)
    with pytest.raises(ResourceExhausted, match="24 bytes"):
        admitted(shop, lane, 2, 3)
    admitted(shop, lane, 2)
    assert lane.held_bytes == 24


async def test_what_ends_makes_room(lane):
    shop, lane = lane(bounds=Bounds(images=2, size_bytes=1 << 20))
    first = admitted(shop, lane, 1, 2)
    assert first.cancel()
    lane.settled(first, shop.clock(), succeeded=False)
    assert (lane.held_images, lane.held_bytes) == (0, 0)
    admitted(shop, lane, 3, 4)


async def test_a_request_that_would_be_late_is_refused_with_the_time_to_come_back(lane):
    shop, lane = lane()
    admitted(shop, lane, *range(100))
    # 101 images, one decode and a usual batch more, and a quarter of it for what is not foreseen.
    wait_s = 101 * IMAGE_S + 0.001 + 4 * 0.001
    with pytest.raises(ResourceExhausted, match=r"about 207 ms.*deadline is in 240 ms") as refused:
        admitted(shop, lane, 1, deadline_s=shop.clock() + 0.24)
    assert refused.value.reason == "DEADLINE_WOULD_PASS"
    assert refused.value.retry_after_s == pytest.approx(1.25 * wait_s - 0.24)
    admitted(shop, lane, 1, deadline_s=shop.clock() + 1.26 * wait_s)


async def test_another_clients_line_does_not_make_a_request_late(lane):
    shop, lane = lane()
    admitted(shop, lane, *range(100), client="greedy")
    admitted(shop, lane, 1, client="modest", deadline_s=shop.clock() + 10 * IMAGE_S)


async def test_images_in_every_stage_count_as_ahead(lane):
    shop, lane = lane()
    admitted(shop, lane, *range(20))
    decoding, _ = lane.next_to_prepare(shop.clock(), 20)
    for task in decoding[:12]:
        lane.prepared(task, task.image.array)
    lane.next_batch(shop.clock())
    assert (lane.preparing, lane.ready + lane.running_images) == (8, 12)
    lane.pace.prepare_s = 0.001
    # 21 images, one decode and a usual batch more.
    with pytest.raises(ResourceExhausted, match="about 47 ms"):
        admitted(shop, lane, 1, deadline_s=shop.clock() + 1.24 * 0.047)


async def test_an_empty_lane_takes_what_it_thinks_too_slow_for(lane):
    shop, lane = lane()
    lane.pace.run_s = 1e6
    admitted(shop, lane, 1, deadline_s=shop.clock() + 1)
    assert lane.held_images == 1


async def test_a_request_that_comes_late_is_not_taken(lane):
    shop, lane = lane()
    with pytest.raises(DeadlineExceeded, match="had passed"):
        admitted(shop, lane, 1, deadline_s=shop.clock())


async def test_a_closing_lane_takes_nothing(lane):
    shop, lane = lane()
    lane.closing = True
    with pytest.raises(Unavailable) as refused:
        admitted(shop, lane, 1)
    assert refused.value.reason == "MODEL_UNLOADING"


async def test_the_gauge_of_held_images_follows(lane):
    shop, lane = lane(name="gauged 1")
    ticket = admitted(shop, lane, 1, 2, 3)
    assert held("gauged 1") == 3
    ticket.cancel()
    lane.settled(ticket, shop.clock(), succeeded=False)
    assert held("gauged 1") == 0


def held(model):
    labels = {"model": model, "model_version": "1"}
    return REGISTRY.get_sample_value("tidegate_vision_held_images", labels)


async def test_pixels_and_tensors_are_never_run_together(lane):
    shop, lane = lane()
    from tidegate.serving.vision.engine import InputForm

    ticket = admitted(shop, lane, 1, 2, 3, 4)
    for task in ticket.tasks[::2]:
        task.form = InputForm.TENSOR
    for _ in range(4):
        shop.clock.now_s += 1
        (task,), _ = lane.next_to_prepare(shop.clock(), 1)
        task.stages.prepare_end_s = shop.clock()
        lane.prepared(task, task.image.array)
    batches = [lane.next_batch(shop.clock())[0] for _ in range(2)]
    assert [[task.index for task in batch] for batch in batches] == [[0, 2], [1, 3]]
    await asyncio.sleep(0)
