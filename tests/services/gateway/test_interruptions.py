"""Blocks that end early, and the cancellations of others that must not get lost in them."""

import asyncio

import pytest

from tidegate.gateway.errors import ApiError
from tidegate.gateway.interruptions import Cause, ClientGoneError, InFlight, interruptible


class Client:
    """The ASGI callable of a request whose client leaves when the test says so."""

    def __init__(self):
        self.left = asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def in_flight():
    return InFlight()


async def is_undisturbed():
    """Tells whether nothing of a cancellation is left in the current task."""
    await asyncio.sleep(0.01)
    return asyncio.current_task().cancelling() == 0 and len(asyncio.all_tasks()) == 1


async def test_a_client_that_leaves_ends_the_block(client, in_flight):
    client.left.set()
    with pytest.raises(ClientGoneError):
        async with interruptible(client.receive, in_flight):
            await asyncio.sleep(10)
    assert not len(in_flight)
    assert await is_undisturbed()


async def test_the_end_of_a_drain_ends_the_block(client, in_flight):
    async def drain():
        await asyncio.sleep(0.01)
        return in_flight.interrupt_all()

    draining = asyncio.create_task(drain())
    with pytest.raises(ApiError) as raised:
        async with interruptible(client.receive, in_flight):
            await asyncio.sleep(10)
    assert (raised.value.status, raised.value.code) == (503, "shutting_down")
    assert await draining == 1
    assert await is_undisturbed()


async def test_a_block_that_ends_in_the_same_turn_has_ended(client, in_flight):
    async with interruptible(client.receive, in_flight) as interrupt:
        interrupt(Cause.CLIENT_GONE)
    assert await is_undisturbed()


async def test_the_error_of_a_block_that_ends_in_the_same_turn_goes_on(client, in_flight):
    async def fail():
        async with interruptible(client.receive, in_flight) as interrupt:
            interrupt(Cause.CLIENT_GONE)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await is_undisturbed()


async def test_only_the_first_cause_counts(client, in_flight):
    async def leave_in_a_drain():
        async with interruptible(client.receive, in_flight) as interrupt:
            interrupt(Cause.CLIENT_GONE)
            interrupt(Cause.SHUTDOWN)
            await asyncio.sleep(10)

    with pytest.raises(ClientGoneError):
        await leave_in_a_drain()
    assert await is_undisturbed()


@pytest.mark.parametrize("interrupts", [False, True])
@pytest.mark.parametrize("waits", [False, True])
async def test_a_cancellation_from_outside_goes_on(client, in_flight, interrupts, waits):
    async def work():
        async with interruptible(client.receive, in_flight) as interrupt:
            asyncio.current_task().cancel()
            if interrupts:
                interrupt(Cause.CLIENT_GONE)
            if waits:
                await asyncio.sleep(10)
        await asyncio.sleep(10)

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_timeout_around_the_block_is_still_a_timeout(client, in_flight):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), interruptible(client.receive, in_flight):
            await asyncio.sleep(10)
    assert await is_undisturbed()
