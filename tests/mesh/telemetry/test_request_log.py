"""Every subscriber gets every record, or knows how many it lost."""

import asyncio
import dataclasses

import pytest
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from prometheus_client import REGISTRY

from tidegate.mesh.telemetry.request_log import RequestLog
from tidegate.mesh.telemetry.request_record import parse_entry

FOREVER_S = 3600.0


def records(count, first=0):
    made = []
    for number in range(first, first + count):
        entry = HTTPAccessLogEntry()
        entry.request.request_id = str(number)
        made.append(parse_entry(entry))
    return made


async def ids(subscription, count):
    async with asyncio.timeout(10):
        return [int((await anext(subscription)).request_id) for _ in range(count)]


async def all_waiting():
    """Lets every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_each_subscriber_gets_all_in_order():
    log = RequestLog()
    with log.subscribe("a") as first, log.subscribe("b") as second:
        await log.publish(records(3))
        await log.publish(records(2, first=3))
        assert await ids(first, 5) == await ids(second, 5) == [0, 1, 2, 3, 4]
        assert first.lost == second.lost == 0


async def test_mirrored_copies_go_only_to_who_asks_for_them():
    log = RequestLog()
    requests = records(3)
    copies = [dataclasses.replace(each, mirrored=True) for each in records(2, first=3)]
    with (
        log.subscribe("plain") as plain,
        log.subscribe("all", wanted=lambda record: True) as everything,
        log.subscribe("some", capacity=1, wanted=lambda record: record.request_id == "4") as some,
    ):
        await log.publish([*requests, *copies])
        assert await ids(everything, 5) == [0, 1, 2, 3, 4]
        assert await ids(plain, 3) == [0, 1, 2]
        assert await ids(some, 1) == [4]
        assert len(plain) == len(some) == plain.lost == some.lost == 0


async def test_records_that_are_ready_come_together():
    log = RequestLog()
    with log.subscribe("a", capacity=5) as subscription:
        await log.publish(records(5))
        for expected in ([0, 1], [2, 3], [4]):
            batch = await subscription.next_batch(2)
            assert [int(each.request_id) for each in batch] == expected
        waiting = asyncio.create_task(subscription.next_batch(2))
        await all_waiting()
        assert not waiting.done()
        await log.publish(records(1))
        assert len(await waiting) == 1


async def test_a_batch_makes_room_for_publishers():
    log = RequestLog()
    with log.subscribe("slow", capacity=2, max_wait_s=FOREVER_S) as subscription:
        publishing = asyncio.create_task(log.publish(records(4)))
        await all_waiting()
        assert len(await subscription.next_batch(10)) == 2
        async with asyncio.timeout(10):
            await publishing
        assert len(await subscription.next_batch(10)) == 2


async def test_a_subscriber_waits_for_records():
    log = RequestLog()
    with log.subscribe("a") as subscription:
        waiting = asyncio.create_task(ids(subscription, 1))
        await all_waiting()
        assert not waiting.done()
        await log.publish(records(1))
        assert await waiting == [0]


async def test_a_subscriber_without_wait_loses_exactly_what_does_not_fit():
    log = RequestLog()
    before = REGISTRY.get_sample_value(
        "tidegate_mesh_request_records_lost_total", {"subscriber": "watcher"}
    )
    with log.subscribe("watcher", capacity=3) as subscription:
        await log.publish(records(5))
        await log.publish(records(2, first=5))
        assert (len(subscription), subscription.lost) == (3, 4)
        assert await ids(subscription, 3) == [0, 1, 2]
        await log.publish(records(1, first=7))
        assert await ids(subscription, 1) == [7]
        assert subscription.lost == 4
    after = REGISTRY.get_sample_value(
        "tidegate_mesh_request_records_lost_total", {"subscriber": "watcher"}
    )
    assert after - (before or 0) == 4


async def test_a_subscriber_with_wait_blocks_the_publisher_and_loses_nothing():
    log = RequestLog()
    with log.subscribe("slow", capacity=2, max_wait_s=FOREVER_S) as subscription:
        publishing = asyncio.create_task(log.publish(records(5)))
        await all_waiting()
        assert not publishing.done()
        assert len(subscription) == 2
        assert await ids(subscription, 5) == [0, 1, 2, 3, 4]
        await publishing
        assert subscription.lost == 0


async def test_other_subscribers_get_their_records_at_once():
    log = RequestLog()
    with (
        log.subscribe("slow", capacity=1, max_wait_s=FOREVER_S) as slow,
        log.subscribe("quick", capacity=10) as quick,
    ):
        publishing = asyncio.create_task(log.publish(records(3)))
        assert await ids(quick, 3) == [0, 1, 2]
        assert not publishing.done()
        assert await ids(slow, 3) == [0, 1, 2]
        await publishing


async def test_a_stopped_subscriber_is_waited_for_only_once():
    log = RequestLog()
    with (
        log.subscribe("stopped", capacity=1, max_wait_s=0.05) as stopped,
        log.subscribe("quick") as quick,
    ):
        await log.publish(records(3))
        assert (len(stopped), stopped.lost) == (1, 2)
        # No publisher waits now: everything is done before any timer could fire.
        await _without_waiting(log.publish(records(100, first=3)))
        assert stopped.lost == 102
        assert await ids(quick, 103) == list(range(103))
        # After it reads again, publishers wait for it again.
        assert await ids(stopped, 1) == [0]
        publishing = asyncio.create_task(log.publish(records(2, first=103)))
        assert await ids(stopped, 2) == [103, 104]
        await publishing
        assert stopped.lost == 102


async def _without_waiting(coroutine):
    task = asyncio.create_task(coroutine)
    await all_waiting()
    assert task.done()


async def test_many_publishers_share_one_slow_subscriber():
    log = RequestLog()
    with log.subscribe("slow", capacity=2, max_wait_s=FOREVER_S) as subscription:
        async with asyncio.TaskGroup() as group:
            for first in range(0, 100, 10):
                group.create_task(log.publish(records(10, first=first)))
            got = await ids(subscription, 100)
        assert sorted(got) == list(range(100))
        for first in range(0, 100, 10):
            mine = [each for each in got if first <= each < first + 10]
            assert mine == sorted(mine)
        assert subscription.lost == 0


async def test_a_closed_subscription_releases_its_publishers():
    log = RequestLog()
    with log.subscribe("leaving", capacity=1, max_wait_s=FOREVER_S) as subscription:
        publishing = asyncio.create_task(log.publish(records(5)))
        await all_waiting()
        assert not publishing.done()
    async with asyncio.timeout(10):
        await publishing
    assert subscription.lost == 0


@pytest.mark.parametrize("max_wait_s", [0.0, FOREVER_S])
async def test_a_cancelled_read_loses_no_record(max_wait_s):
    log = RequestLog()
    with log.subscribe("a", max_wait_s=max_wait_s) as subscription:
        waiting = asyncio.create_task(ids(subscription, 1))
        await all_waiting()
        waiting.cancel()
        await asyncio.wait({waiting})
        await log.publish(records(2))
        assert await ids(subscription, 2) == [0, 1]
