"""The stalled-client watch ends calls whose messages stay unread."""

import asyncio
import time
from contextlib import asynccontextmanager, closing

import pytest

from tidegate.serving.llm.api.time_limits import StalledClientWatch

LIMIT_S = 0.08


@asynccontextmanager
async def watched(deadline_s=None):
    """Runs a call with its watch, which ends it when a message stays unread."""
    async with asyncio.timeout(deadline_s) as timeout:
        with closing(StalledClientWatch(timeout, LIMIT_S)) as watch:
            yield watch


async def write(watch, seconds):
    """Writes a message that the client reads after a time."""
    watch.writing()
    await asyncio.sleep(seconds)
    watch.written()


async def test_a_message_that_stays_unread_ends_the_call():
    with pytest.raises(TimeoutError):
        async with watched() as watch:
            await write(watch, 60)


async def test_each_message_has_the_whole_limit():
    ended_s = []

    async def call():
        async with watched() as watch:
            for _ in range(5):
                await write(watch, LIMIT_S / 2)
                ended_s.append(time.monotonic())
            await write(watch, 60)

    with pytest.raises(TimeoutError):
        await call()
    assert len(ended_s) == 5
    # The clock of the event loop has a resolution of milliseconds.
    assert time.monotonic() - ended_s[-1] >= LIMIT_S - 0.002


async def test_a_silent_engine_does_not_end_the_call():
    async with watched() as watch:
        await write(watch, 0)
        await asyncio.sleep(3 * LIMIT_S)


async def test_the_watch_stops_when_the_call_has_ended():
    async with asyncio.timeout(None) as timeout:
        with closing(StalledClientWatch(timeout, LIMIT_S)) as watch:
            watch.writing()
        await asyncio.sleep(2 * LIMIT_S)
    assert not timeout.expired()


async def test_the_watch_does_not_move_a_deadline_that_has_just_passed():
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

    async def call():
        async with watched(LIMIT_S) as watch:
            watch.writing()
            time.sleep(2 * LIMIT_S)  # noqa: ASYNC251 - so that both timers are due
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await call()
    await asyncio.sleep(0)
    assert not faults
