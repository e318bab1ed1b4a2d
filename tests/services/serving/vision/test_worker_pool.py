"""The workers, with an engine that runs when the test lets it."""

import asyncio
import threading

import numpy as np
import pytest

from tidegate.chassis.errors import DeadlineExceeded, Internal, Unavailable
from tidegate.serving.vision.errors import InvalidImageError, RejectedImageError
from tidegate.serving.vision.worker_pool import WorkerPool


async def answered(*tickets):
    async with asyncio.timeout(20):
        return await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)


def marks_of(outcome):
    return [int(row[0]) for row in outcome.rows]


class Decoding:
    """A way to decode that waits until the test lets it go on."""

    def __init__(self):
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, image):
        self.begun.set()
        assert self.may_end.wait(20)
        return image.array

    async def has_begun(self):
        assert await asyncio.to_thread(self.begun.wait, 20)


async def test_expired_request_is_never_run(workshop):
    shop = workshop(workers=1)
    lane = shop.lane()
    running = await shop.occupy(lane, 1)
    late = shop.submit(lane, 2, 3, deadline_s=shop.clock() + 5)
    timely = shop.submit(lane, 4)
    shop.clock.now_s += 5
    lane.engine.release()
    _, error, outcome = await answered(running, late, timely)
    assert isinstance(error, DeadlineExceeded)
    assert error.reason == "EXPIRED_IN_QUEUE"
    assert "5000 ms in the queue" in str(error)
    assert marks_of(outcome) == [4]
    assert lane.engine.ran == [1, 4]


async def test_request_that_expires_after_it_was_decoded_is_never_run(workshop, eventually):
    shop = workshop(workers=2)
    lane = shop.lane()
    running = await shop.occupy(lane, 1)
    late = shop.submit(lane, 2, deadline_s=shop.clock() + 5)
    await eventually(lambda: lane.ready == 1)
    shop.clock.now_s += 5
    lane.engine.release()
    _, error = await answered(running, late)
    assert isinstance(error, DeadlineExceeded)
    assert lane.engine.ran == [1]


async def test_cancelled_request_is_never_run(workshop, eventually):
    shop = workshop(workers=2)
    lane = shop.lane()
    running = await shop.occupy(lane, 1)
    decoded = shop.submit(lane, 2)
    await eventually(lambda: lane.ready == 1)
    waiting = shop.submit(lane, *range(100, 110))
    for ticket in (decoded, waiting):
        shop.pool.cancel(lane, ticket)
    assert lane.held_images == 1
    last = shop.submit(lane, 3)
    lane.engine.release()
    await answered(running, last)
    assert [mark for mark in lane.engine.ran if mark != 2 and mark < 100] == [1, 3]
    assert 2 not in lane.engine.ran
    # Of those that were being decoded when they were cancelled none is run either.
    assert not [mark for mark in lane.engine.ran if mark >= 100]


async def test_single_request_does_not_wait_for_company(workshop):
    shop = workshop(workers=2)
    lane = shop.lane(shares_host=True)
    (outcome,) = await answered(shop.submit(lane, 7))
    assert marks_of(outcome) == [7]
    assert (outcome.batch_size, lane.engine.alone) == (1, [True])


async def test_nobody_asks_whose_the_only_image_is(workshop):
    shop = workshop(workers=2)
    lane = shop.lane()
    asked = [True]
    async with asyncio.timeout(20):
        # The workers may not be idle yet at first.
        while asked:
            asked.clear()
            ticket = shop.ticket(1, client=lambda: asked.append(True) or "a")
            shop.pool.submit(lane, ticket)
            await ticket.future


async def test_company_that_comes_while_the_only_image_is_decoded_counts(workshop):
    shop = workshop(workers=2)
    lane = shop.lane(prepare=(decoding := Decoding()))
    first = shop.submit(lane, 1)
    await decoding.has_begun()
    second = shop.submit(lane, 2)
    decoding.may_end.set()
    await answered(first, second)
    assert lane.engine.alone[0] is False
    assert sorted(lane.engine.ran) == [1, 2]


async def test_the_only_image_is_not_run_when_its_client_has_gone(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(prepare=(decoding := Decoding()))
    gone = shop.submit(lane, 1)
    await decoding.has_begun()
    # Now there is one image again, and it is another.
    other = shop.submit(lane, 2)
    shop.pool.cancel(lane, gone)
    decoding.may_end.set()
    await answered(other)
    assert lane.engine.ran == [2]


async def test_the_only_image_is_not_run_when_its_time_is_up(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(prepare=(decoding := Decoding()))
    late = shop.submit(lane, 1, deadline_s=shop.clock() + 5)
    await decoding.has_begun()
    shop.clock.now_s += 5
    decoding.may_end.set()
    (error,) = await answered(late)
    assert isinstance(error, DeadlineExceeded)
    assert lane.engine.ran == []
    assert (lane.held_images, lane.preparing, lane.ready) == (0, 0, 0)


async def test_company_is_told_to_the_engine(workshop):
    shop = workshop(workers=1)
    lane, other = shop.lane(batch_sizes=(1,)), shop.lane("other 1")
    running = await shop.occupy(lane, 1)
    assert lane.engine.alone == [True]
    more = [shop.submit(lane, 2), shop.submit(other, 3)]
    lane.engine.release()
    await answered(running, *more)
    assert (lane.engine.alone, other.engine.alone) in (
        ([True, False], [True]),
        ([True, True], [False]),
    )


@pytest.mark.parametrize("shares_host", [True, False])
async def test_runs_keep_to_slots_and_to_the_largest_batch(workshop, shares_host):
    shop = workshop(workers=4)
    lane = shop.lane(slots=2, shares_host=shares_host)
    lane.engine.hold()
    tickets = [shop.submit(lane, mark) for mark in range(40)]
    for _ in range(2):
        await asyncio.to_thread(lane.engine.wait_for_run)
    lane.engine.release()
    outcomes = await answered(*tickets)
    assert [marks_of(outcome)[0] for outcome in outcomes] == list(range(40))
    assert lane.engine.most_at_once == 2
    assert max(map(len, lane.engine.batches)) <= 4
    assert sorted(lane.engine.ran) == list(range(40))


async def test_a_run_whose_client_has_gone_still_takes_its_slot(workshop, eventually):
    shop = workshop(workers=2)
    lane = shop.lane(slots=1)
    gone = await shop.occupy(lane, 1)
    shop.pool.cancel(lane, gone)
    ticket = shop.submit(lane, 2)
    await eventually(lambda: lane.ready == 1 or lane.running > 1)
    assert lane.running == 1
    lane.engine.release()
    (outcome,) = await answered(ticket)
    assert marks_of(outcome) == [2]
    assert lane.engine.most_at_once == 1


async def test_a_run_whose_client_has_gone_is_company(workshop):
    shop = workshop(workers=2)
    lane = shop.lane(slots=2)
    gone = await shop.occupy(lane, 1)
    shop.pool.cancel(lane, gone)
    ticket = shop.submit(lane, 2)
    await asyncio.to_thread(lane.engine.wait_for_run)
    lane.engine.release()
    await answered(ticket)
    assert lane.engine.alone == [True, False]


async def test_on_its_own_cores_a_worker_decodes_an_efficient_batch_before_it_runs(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(shares_host=True)
    running = await shop.occupy(lane, 0)
    tickets = [shop.submit(lane, mark) for mark in range(1, 7)]
    lane.engine.release()
    await answered(running, *tickets)
    assert lane.engine.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_device_is_given_what_is_ready_as_soon_as_it_is_free(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(shares_host=False)
    running = await shop.occupy(lane, 0)
    tickets = [shop.submit(lane, mark) for mark in range(1, 4)]
    lane.engine.release()
    await answered(running, *tickets)
    assert lane.engine.batches == [[0], [1], [2], [3]]


async def test_workers_decode_ahead_while_a_device_runs(workshop, eventually):
    shop = workshop(workers=2)
    lane = shop.lane(shares_host=False)
    running = await shop.occupy(lane, 0)
    tickets = [shop.submit(lane, mark) for mark in range(1, 21)]
    await eventually(lambda: lane.ready == 8)
    lane.engine.allow()
    await asyncio.to_thread(lane.engine.wait_for_run)
    assert lane.engine.batches[1] == [1, 2, 3, 4]
    lane.engine.release()
    await answered(running, *tickets)


async def test_every_worker_decodes_while_the_engine_has_nothing(workshop):
    workers = 6
    together = threading.Barrier(workers, timeout=20)

    def prepare(image):
        together.wait()
        return image.array

    shop = workshop(workers=workers)
    lane = shop.lane(batch_sizes=(1,), prepare=prepare)
    outcomes = await answered(*(shop.submit(lane, mark) for mark in range(workers)))
    assert [marks_of(outcome) for outcome in outcomes] == [[mark] for mark in range(workers)]


async def test_a_failed_run_fails_only_its_batch(workshop, caplog):
    shop = workshop(workers=1)
    lane = shop.lane(batch_sizes=(1,))
    lane.engine.fails_on = {2}
    tickets = [shop.submit(lane, mark) for mark in (1, 2, 3)]
    first, failed, last = await answered(*tickets)
    assert (marks_of(first), marks_of(last)) == ([1], [3])
    assert isinstance(failed, Internal)
    assert failed.reason == "ENGINE_FAILED"
    assert "out of memory" not in str(failed)
    assert "out of memory" in caplog.text
    assert (lane.held_images, lane.held_bytes) == (0, 0)


async def test_one_image_that_cannot_be_prepared_fails_its_request_by_name(workshop, caplog):
    def prepare(image):
        match image.array.flat[0]:
            case 66:
                raise InvalidImageError("is not an image")
            case 67:
                raise ZeroDivisionError
        return image.array

    shop = workshop(workers=1)
    lane = shop.lane(prepare=prepare)
    tickets = [shop.submit(lane, 1, 66, 2), shop.submit(lane, 67), shop.submit(lane, 3)]
    rejected, crashed, fine = await answered(*tickets)
    assert isinstance(rejected, RejectedImageError)
    assert (rejected.index, rejected.problem) == (1, "is not an image")
    assert isinstance(crashed, Internal)
    assert "ZeroDivisionError" in caplog.text
    assert marks_of(fine) == [3]
    assert (lane.held_images, lane.preparing) == (0, 0)


async def test_clients_take_turns(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(batch_sizes=(1,))
    running = await shop.occupy(lane, 0)
    greedy = shop.submit(lane, *range(10, 16), client="greedy")
    modest = shop.submit(lane, 20, 21, client="modest")
    lane.engine.release()
    await answered(running, greedy, modest)
    assert lane.engine.ran == [0, 10, 20, 11, 21, 12, 13, 14, 15]


async def test_a_higher_priority_goes_ahead_of_its_clients_own_requests(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(batch_sizes=(1,))
    running = await shop.occupy(lane)
    tickets = [
        shop.submit(lane, mark, client=client, priority=priority)
        for mark, client, priority in (
            *((1, "a", 3), (2, "a", 2), (3, "a", 1), (4, "b", 3), (5, "b", 3), (6, "b", 3)),
        )
    ]
    lane.engine.release()
    await answered(running, *tickets)
    # The first client's by priority; and the other, whose are all low, has every second turn.
    assert lane.engine.ran == [0, 3, 4, 2, 5, 1, 6]


async def test_models_take_turns(workshop):
    shop = workshop(workers=1)
    lanes = [shop.lane(f"net {number}", batch_sizes=(1,)) for number in range(3)]
    order = []
    running = await shop.occupy(lanes[0], 0)
    for number, lane in enumerate(lanes):
        lane.prepare = lambda image, number=number: (order.append(number), image.array)[1]
    tickets = [shop.submit(lane, mark) for lane in lanes for mark in range(1, 5)]
    lanes[0].engine.release()
    await answered(running, *tickets)
    # While all three have images waiting, each three that are decoded are one of each.
    assert [set(order[at : at + 3]) for at in (0, 3, 6)] == [{0, 1, 2}] * 3


async def test_a_request_of_many_images_is_split_and_rejoined(workshop):
    shop = workshop(workers=3)
    lane = shop.lane(slots=2)
    many, one = shop.submit(lane, *range(50, 61)), shop.submit(lane, 1, client="b")
    outcome, other = await answered(many, one)
    assert marks_of(outcome) == list(range(50, 61))
    assert len(lane.engine.batches) >= 3
    assert outcome.batch_size == max(
        len(batch) for batch in lane.engine.batches if max(batch) >= 50
    )
    assert len(outcome.stages) == 11
    assert marks_of(other) == [1]


async def test_a_closed_lane_finishes_what_it_accepted_and_takes_no_more(workshop):
    shop = workshop(workers=2)
    lane = shop.lane()
    running = await shop.occupy(lane, 0)
    tickets = [shop.submit(lane, mark) for mark in range(1, 20)]
    idle = threading.Event()
    shop.pool.close(lane, idle.set)
    with pytest.raises(Unavailable):
        shop.submit(lane, 99)
    assert not idle.is_set()
    lane.engine.release()
    outcomes = await answered(running, *tickets)
    assert [marks_of(outcome) for outcome in outcomes] == [[mark] for mark in range(20)]
    assert await asyncio.to_thread(idle.wait, 20)
    assert sorted(lane.engine.ran) == list(range(20))


async def test_an_empty_lane_is_idle_at_once(workshop):
    shop = workshop()
    idle = threading.Event()
    shop.pool.close(shop.lane(), idle.set)
    assert idle.is_set()


@pytest.mark.parametrize("end", ["expires", "is cancelled"])
async def test_a_closed_lane_is_idle_when_its_last_request_ends_without_a_run(workshop, end):
    shop = workshop(workers=1)
    busy, closing = shop.lane("busy 1"), shop.lane("closing 1")
    running = await shop.occupy(busy, 0)
    last = shop.submit(closing, 1, 2, deadline_s=shop.clock() + 5)
    idle = threading.Event()
    shop.pool.close(closing, idle.set)
    if end == "expires":
        shop.clock.now_s += 5
    else:
        shop.pool.cancel(closing, last)
    busy.engine.release()
    await answered(running)
    assert await asyncio.to_thread(idle.wait, 20)
    if end == "expires":
        assert isinstance((await answered(last))[0], DeadlineExceeded)
    assert closing.engine.ran == []


async def test_counts_and_times_are_kept(workshop):
    shop = workshop(workers=1)
    lane = shop.lane(batch_sizes=(1, 2), shares_host=True)
    running = await shop.occupy(lane, 0)
    more = shop.submit(lane, 1, 2)
    gone = shop.submit(lane, 3)
    shop.pool.cancel(lane, gone)
    shop.clock.now_s += 2
    lane.engine.release()
    await answered(running, more)
    totals = lane.totals
    assert (totals.succeeded, totals.failed, totals.images) == (2, 1, 3)
    assert totals.runs == {1: (1, 2.0), 2: (1, 0.0)}
    assert (totals.succeeded_s, totals.queue_s) == (4.0, 4.0)


async def test_a_pool_outlives_an_event_loop(workshop, eventually):
    shop = workshop(workers=1)
    lane = shop.lane()

    async def submit_and_leave():
        await shop.occupy(lane, 1)

    await asyncio.to_thread(asyncio.run, submit_and_leave())
    lane.engine.release()
    await eventually(lambda: lane.held_images == 0)
    (outcome,) = await answered(shop.submit(lane, 2))
    assert marks_of(outcome) == [2]
    # A batch is counted on the loop that was answered, and by the worker where there is none.
    await eventually(lambda: lane.totals.images == 2)


async def test_many_clients_that_come_and_go_leave_nothing_behind(workshop, eventually):
    shop = workshop(workers=3)
    lane = shop.lane(slots=2)
    random = np.random.default_rng(1)
    kept = []
    for number in range(400):
        marks = random.integers(1, 200, size=random.integers(1, 5)).tolist()
        ticket = shop.submit(lane, *marks, client=f"c{number % 7}")
        if random.random() < 0.4:
            shop.pool.cancel(lane, ticket)
        else:
            kept.append((ticket, marks))
        if number % 50 == 0:
            await asyncio.sleep(0)
    outcomes = await answered(*(ticket for ticket, _ in kept))
    assert [marks_of(outcome) for outcome in outcomes] == [marks for _, marks in kept]
    await eventually(lambda: not (lane.preparing or lane.running or lane.load().waiting))
    assert (lane.held_images, lane.held_bytes) == (0, 0)


def test_a_pool_without_workers_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(0)


async def test_each_request_of_a_batch_is_told_as_many_classes_as_it_wants(workshop, eventually):
    shop = workshop(workers=2)
    lane = shop.lane()
    running = await shop.occupy(lane, 1)
    one, three = shop.submit(lane, 5), shop.submit(lane, 6, 7, top_k=3)
    await eventually(lambda: lane.ready == 3)
    lane.engine.release()
    _, first, second = await answered(running, one, three)
    assert lane.engine.batches[-1] == [5, 6, 7]
    assert [len(each.classes) for each in (*first.best, *second.best)] == [1, 3, 3]
    assert [each.classes[0] for each in (*first.best, *second.best)] == [0, 0, 0]
