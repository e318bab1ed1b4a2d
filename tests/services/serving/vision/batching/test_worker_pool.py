"""The worker pool, with an engine whose runs the test controls."""

import asyncio
import threading

import numpy as np
import pytest

from tidegate.chassis.errors import DeadlineExceeded, Internal, Unavailable
from tidegate.image_files import InvalidImageError
from tidegate.serving.vision.batching.worker_pool import WorkerPool
from tidegate.serving.vision.errors import RejectedImageError


async def answered(*requests):
    async with asyncio.timeout(20):
        return await asyncio.gather(
            *(request.future for request in requests), return_exceptions=True
        )


def marks_of(result):
    return [int(row[0]) for row in result.rows]


class Decoding:
    """A decoder that waits until the test lets it continue."""

    def __init__(self):
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, image):
        self.begun.set()
        assert self.may_end.wait(20)
        return image.array

    async def has_begun(self):
        assert await asyncio.to_thread(self.begun.wait, 20)


async def test_expired_request_is_never_run(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue()
    running = await harness.occupy(queue, 1)
    late = harness.submit(queue, 2, 3, deadline_s=harness.clock() + 5)
    timely = harness.submit(queue, 4)
    harness.clock.now_s += 5
    queue.engine.release()
    _, error, result = await answered(running, late, timely)
    assert isinstance(error, DeadlineExceeded)
    assert error.reason == "EXPIRED_IN_QUEUE"
    assert "5000 ms in the queue" in str(error)
    assert marks_of(result) == [4]
    assert queue.engine.ran == [1, 4]


async def test_request_that_expires_after_it_was_decoded_is_never_run(make_harness, eventually):
    harness = make_harness(workers=2)
    queue = harness.queue()
    running = await harness.occupy(queue, 1)
    late = harness.submit(queue, 2, deadline_s=harness.clock() + 5)
    await eventually(lambda: queue.ready == 1)
    harness.clock.now_s += 5
    queue.engine.release()
    _, error = await answered(running, late)
    assert isinstance(error, DeadlineExceeded)
    assert queue.engine.ran == [1]


async def test_cancelled_request_is_never_run(make_harness, eventually):
    harness = make_harness(workers=2)
    queue = harness.queue()
    running = await harness.occupy(queue, 1)
    decoded = harness.submit(queue, 2)
    await eventually(lambda: queue.ready == 1)
    waiting = harness.submit(queue, *range(100, 110))
    for request in (decoded, waiting):
        harness.pool.cancel(queue, request)
    assert queue.held_images == 1
    last = harness.submit(queue, 3)
    queue.engine.release()
    await answered(running, last)
    assert [mark for mark in queue.engine.ran if mark != 2 and mark < 100] == [1, 3]
    assert 2 not in queue.engine.ran
    # Images that were being decoded when they were cancelled do not run either.
    assert not [mark for mark in queue.engine.ran if mark >= 100]


async def test_a_single_request_does_not_wait_for_others(make_harness):
    harness = make_harness(workers=2)
    queue = harness.queue(shares_host=True)
    (result,) = await answered(harness.submit(queue, 7))
    assert marks_of(result) == [7]
    assert (result.batch_size, queue.engine.alone) == (1, [True])


async def test_the_client_of_the_only_image_is_not_looked_up(make_harness):
    harness = make_harness(workers=2)
    queue = harness.queue()
    asked = [True]
    async with asyncio.timeout(20):
        # At first the workers may not be idle yet.
        while asked:
            asked.clear()
            request = harness.request(1, client=lambda: asked.append(True) or "a")
            harness.pool.submit(queue, request)
            await request.future


async def test_an_image_that_arrives_while_the_only_one_is_decoded_ends_its_run_alone(make_harness):
    harness = make_harness(workers=2)
    queue = harness.queue(prepare=(decoding := Decoding()))
    first = harness.submit(queue, 1)
    await decoding.has_begun()
    second = harness.submit(queue, 2)
    decoding.may_end.set()
    await answered(first, second)
    assert queue.engine.alone[0] is False
    assert sorted(queue.engine.ran) == [1, 2]


async def test_the_only_image_is_not_run_when_its_client_has_gone(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(prepare=(decoding := Decoding()))
    gone = harness.submit(queue, 1)
    await decoding.has_begun()
    # One image remains, but not the one that is being decoded.
    other = harness.submit(queue, 2)
    harness.pool.cancel(queue, gone)
    decoding.may_end.set()
    await answered(other)
    assert queue.engine.ran == [2]


async def test_the_only_image_is_not_run_when_its_time_is_up(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(prepare=(decoding := Decoding()))
    late = harness.submit(queue, 1, deadline_s=harness.clock() + 5)
    await decoding.has_begun()
    harness.clock.now_s += 5
    decoding.may_end.set()
    (error,) = await answered(late)
    assert isinstance(error, DeadlineExceeded)
    assert queue.engine.ran == []
    assert (queue.held_images, queue.preparing, queue.ready) == (0, 0, 0)


async def test_the_engine_is_told_whether_a_run_is_alone(make_harness):
    harness = make_harness(workers=1)
    queue, other = harness.queue(batch_sizes=(1,)), harness.queue("other 1")
    running = await harness.occupy(queue, 1)
    assert queue.engine.alone == [True]
    more = [harness.submit(queue, 2), harness.submit(other, 3)]
    queue.engine.release()
    await answered(running, *more)
    assert (queue.engine.alone, other.engine.alone) in (
        ([True, False], [True]),
        ([True, True], [False]),
    )


@pytest.mark.parametrize("shares_host", [True, False])
async def test_runs_keep_to_slots_and_to_the_largest_batch(make_harness, shares_host):
    harness = make_harness(workers=4)
    queue = harness.queue(slots=2, shares_host=shares_host)
    queue.engine.hold()
    requests = [harness.submit(queue, mark) for mark in range(40)]
    for _ in range(2):
        await asyncio.to_thread(queue.engine.wait_for_run)
    queue.engine.release()
    results = await answered(*requests)
    assert [marks_of(result)[0] for result in results] == list(range(40))
    assert queue.engine.most_at_once == 2
    assert max(map(len, queue.engine.batches)) <= 4
    assert sorted(queue.engine.ran) == list(range(40))


async def test_a_run_whose_client_has_gone_still_takes_its_slot(make_harness, eventually):
    harness = make_harness(workers=2)
    queue = harness.queue(slots=1)
    gone = await harness.occupy(queue, 1)
    harness.pool.cancel(queue, gone)
    request = harness.submit(queue, 2)
    await eventually(lambda: queue.ready == 1 or queue.running > 1)
    assert queue.running == 1
    queue.engine.release()
    (result,) = await answered(request)
    assert marks_of(result) == [2]
    assert queue.engine.most_at_once == 1


async def test_a_run_whose_client_has_gone_still_counts_as_another_run(make_harness):
    harness = make_harness(workers=2)
    queue = harness.queue(slots=2)
    gone = await harness.occupy(queue, 1)
    harness.pool.cancel(queue, gone)
    request = harness.submit(queue, 2)
    await asyncio.to_thread(queue.engine.wait_for_run)
    queue.engine.release()
    await answered(request)
    assert queue.engine.alone == [True, False]


async def test_on_a_cpu_a_worker_decodes_an_efficient_batch_before_it_runs(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(shares_host=True)
    running = await harness.occupy(queue, 0)
    requests = [harness.submit(queue, mark) for mark in range(1, 7)]
    queue.engine.release()
    await answered(running, *requests)
    assert queue.engine.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_free_device_gets_the_ready_images_at_once(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(shares_host=False)
    running = await harness.occupy(queue, 0)
    requests = [harness.submit(queue, mark) for mark in range(1, 4)]
    queue.engine.release()
    await answered(running, *requests)
    assert queue.engine.batches == [[0], [1], [2], [3]]


async def test_workers_decode_ahead_while_a_device_runs(make_harness, eventually):
    harness = make_harness(workers=2)
    queue = harness.queue(shares_host=False)
    running = await harness.occupy(queue, 0)
    requests = [harness.submit(queue, mark) for mark in range(1, 21)]
    await eventually(lambda: queue.ready == 8)
    queue.engine.allow()
    await asyncio.to_thread(queue.engine.wait_for_run)
    assert queue.engine.batches[1] == [1, 2, 3, 4]
    queue.engine.release()
    await answered(running, *requests)


async def test_every_worker_decodes_while_the_engine_has_nothing(make_harness):
    workers = 6
    together = threading.Barrier(workers, timeout=20)

    def prepare(image):
        together.wait()
        return image.array

    harness = make_harness(workers=workers)
    queue = harness.queue(batch_sizes=(1,), prepare=prepare)
    results = await answered(*(harness.submit(queue, mark) for mark in range(workers)))
    assert [marks_of(result) for result in results] == [[mark] for mark in range(workers)]


async def test_a_failed_run_fails_only_its_batch(make_harness, caplog):
    harness = make_harness(workers=1)
    queue = harness.queue(batch_sizes=(1,))
    queue.engine.fails_on = {2}
    requests = [harness.submit(queue, mark) for mark in (1, 2, 3)]
    first, failed, last = await answered(*requests)
    assert (marks_of(first), marks_of(last)) == ([1], [3])
    assert isinstance(failed, Internal)
    assert failed.reason == "ENGINE_FAILED"
    assert "out of memory" not in str(failed)
    assert "out of memory" in caplog.text
    assert (queue.held_images, queue.held_bytes) == (0, 0)


async def test_an_image_that_cannot_be_decoded_fails_its_request_and_is_named(make_harness, caplog):
    def prepare(image):
        match image.array.flat[0]:
            case 66:
                raise InvalidImageError("is not an image")
            case 67:
                raise ZeroDivisionError
        return image.array

    harness = make_harness(workers=1)
    queue = harness.queue(prepare=prepare)
    requests = [
        harness.submit(queue, 1, 66, 2),
        harness.submit(queue, 67),
        harness.submit(queue, 3),
    ]
    rejected, crashed, fine = await answered(*requests)
    assert isinstance(rejected, RejectedImageError)
    assert (rejected.index, rejected.problem) == (1, "is not an image")
    assert isinstance(crashed, Internal)
    assert "ZeroDivisionError" in caplog.text
    assert marks_of(fine) == [3]
    assert (queue.held_images, queue.preparing) == (0, 0)


async def test_clients_take_turns(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(batch_sizes=(1,))
    running = await harness.occupy(queue, 0)
    greedy = harness.submit(queue, *range(10, 16), client="greedy")
    modest = harness.submit(queue, 20, 21, client="modest")
    queue.engine.release()
    await answered(running, greedy, modest)
    assert queue.engine.ran == [0, 10, 20, 11, 21, 12, 13, 14, 15]


async def test_a_higher_priority_goes_ahead_of_its_clients_own_requests(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(batch_sizes=(1,))
    running = await harness.occupy(queue)
    requests = [
        harness.submit(queue, mark, client=client, priority=priority)
        for mark, client, priority in (
            *((1, "a", 3), (2, "a", 2), (3, "a", 1), (4, "b", 3), (5, "b", 3), (6, "b", 3)),
        )
    ]
    queue.engine.release()
    await answered(running, *requests)
    # Client a's by priority; client b, whose requests all have low priority, has every second turn.
    assert queue.engine.ran == [0, 3, 4, 2, 5, 1, 6]


async def test_models_take_turns(make_harness):
    harness = make_harness(workers=1)
    queues = [harness.queue(f"net {number}", batch_sizes=(1,)) for number in range(3)]
    order = []
    running = await harness.occupy(queues[0], 0)
    for number, queue in enumerate(queues):
        queue.prepare = lambda image, number=number: (order.append(number), image.array)[1]
    requests = [harness.submit(queue, mark) for queue in queues for mark in range(1, 5)]
    queues[0].engine.release()
    await answered(running, *requests)
    # While all three models have waiting images, every three decoded images are one of each.
    assert [set(order[at : at + 3]) for at in (0, 3, 6)] == [{0, 1, 2}] * 3


async def test_a_request_of_many_images_is_split_and_rejoined(make_harness):
    harness = make_harness(workers=3)
    queue = harness.queue(slots=2)
    many, one = harness.submit(queue, *range(50, 61)), harness.submit(queue, 1, client="b")
    result, other = await answered(many, one)
    assert marks_of(result) == list(range(50, 61))
    assert len(queue.engine.batches) >= 3
    assert result.batch_size == max(
        len(batch) for batch in queue.engine.batches if max(batch) >= 50
    )
    assert len(result.timestamps) == 11
    assert marks_of(other) == [1]


async def test_a_closed_queue_finishes_accepted_requests_and_refuses_new_ones(make_harness):
    harness = make_harness(workers=2)
    queue = harness.queue()
    running = await harness.occupy(queue, 0)
    requests = [harness.submit(queue, mark) for mark in range(1, 20)]
    idle = threading.Event()
    harness.pool.close(queue, idle.set)
    with pytest.raises(Unavailable):
        harness.submit(queue, 99)
    assert not idle.is_set()
    queue.engine.release()
    results = await answered(running, *requests)
    assert [marks_of(result) for result in results] == [[mark] for mark in range(20)]
    assert await asyncio.to_thread(idle.wait, 20)
    assert sorted(queue.engine.ran) == list(range(20))


async def test_an_empty_queue_is_idle_at_once(make_harness):
    harness = make_harness()
    idle = threading.Event()
    harness.pool.close(harness.queue(), idle.set)
    assert idle.is_set()


@pytest.mark.parametrize("end", ["expires", "is cancelled"])
async def test_a_closed_queue_is_idle_when_its_last_request_ends_without_a_run(make_harness, end):
    harness = make_harness(workers=1)
    busy, closing = harness.queue("busy 1"), harness.queue("closing 1")
    running = await harness.occupy(busy, 0)
    last = harness.submit(closing, 1, 2, deadline_s=harness.clock() + 5)
    idle = threading.Event()
    harness.pool.close(closing, idle.set)
    if end == "expires":
        harness.clock.now_s += 5
    else:
        harness.pool.cancel(closing, last)
    busy.engine.release()
    await answered(running)
    assert await asyncio.to_thread(idle.wait, 20)
    if end == "expires":
        assert isinstance((await answered(last))[0], DeadlineExceeded)
    assert closing.engine.ran == []


async def test_statistics_count_requests_and_times(make_harness):
    harness = make_harness(workers=1)
    queue = harness.queue(batch_sizes=(1, 2), shares_host=True)
    running = await harness.occupy(queue, 0)
    more = harness.submit(queue, 1, 2)
    gone = harness.submit(queue, 3)
    harness.pool.cancel(queue, gone)
    harness.clock.now_s += 2
    queue.engine.release()
    await answered(running, more)
    statistics = queue.statistics
    assert (statistics.succeeded, statistics.failed, statistics.images) == (2, 1, 3)
    assert statistics.runs == {1: (1, 2.0), 2: (1, 0.0)}
    assert (statistics.succeeded_s, statistics.queue_s) == (4.0, 4.0)


async def test_a_pool_outlives_an_event_loop(make_harness, eventually):
    harness = make_harness(workers=1)
    queue = harness.queue()

    async def submit_and_leave():
        await harness.occupy(queue, 1)

    await asyncio.to_thread(asyncio.run, submit_and_leave())
    queue.engine.release()
    await eventually(lambda: queue.held_images == 0)
    (result,) = await answered(harness.submit(queue, 2))
    assert marks_of(result) == [2]
    # The event loop that gets the results counts a batch; without a loop the worker does.
    await eventually(lambda: queue.statistics.images == 2)


async def test_many_clients_that_come_and_go_leave_nothing_behind(make_harness, eventually):
    harness = make_harness(workers=3)
    queue = harness.queue(slots=2)
    random = np.random.default_rng(1)
    kept = []
    for number in range(400):
        marks = random.integers(1, 200, size=random.integers(1, 5)).tolist()
        request = harness.submit(queue, *marks, client=f"c{number % 7}")
        if random.random() < 0.4:
            harness.pool.cancel(queue, request)
        else:
            kept.append((request, marks))
        if number % 50 == 0:
            await asyncio.sleep(0)
    results = await answered(*(request for request, _ in kept))
    assert [marks_of(result) for result in results] == [marks for _, marks in kept]
    await eventually(lambda: not (queue.preparing or queue.running or queue.state().waiting))
    assert (queue.held_images, queue.held_bytes) == (0, 0)


def test_a_pool_without_workers_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(0)


async def test_each_request_of_a_batch_gets_as_many_classes_as_it_wants(make_harness, eventually):
    harness = make_harness(workers=2)
    queue = harness.queue()
    running = await harness.occupy(queue, 1)
    one, three = harness.submit(queue, 5), harness.submit(queue, 6, 7, top_k=3)
    await eventually(lambda: queue.ready == 3)
    queue.engine.release()
    _, first, second = await answered(running, one, three)
    assert queue.engine.batches[-1] == [5, 6, 7]
    assert [len(each.classes) for each in (*first.top_classes, *second.top_classes)] == [1, 3, 3]
    assert [each.classes[0] for each in (*first.top_classes, *second.top_classes)] == [0, 0, 0]
