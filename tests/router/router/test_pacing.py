import asyncio
import itertools

import pytest

from tidegate.router.pacing import MOMENTS, Pace, next_turn


async def test_other_tasks_run_between_the_turns_of_many_rollouts():
    pace, began, seen = Pace(), [], []

    async def turn(number):
        await pace.wait()
        began.append(number)

    async def look():
        for _ in range(20):
            seen.append(len(began))
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for number in range(500):
            tasks.create_task(turn(number))
        tasks.create_task(look())
    assert began == list(range(500))
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 1
    assert seen[-1] > 5


async def test_a_turn_that_is_cancelled_while_it_waits_lets_the_others_begin():
    pace = Pace()
    waiting = [asyncio.create_task(pace.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    async with asyncio.timeout(5):
        await waiting[2]


@pytest.mark.parametrize("interval_s", [0.05, 0.3, 1.0, 7.0])
def test_turns_keep_their_interval_and_share_their_moments(interval_s):
    moments = set()
    for number in range(1000):
        due = first = 12345.678 + number * 0.618 % 1 * interval_s
        due = next_turn(due, interval_s, due)
        assert interval_s - 1e-6 <= due - first <= interval_s * (1 + 1 / MOMENTS) + 1e-6
        for _ in range(50):
            before, due = due, next_turn(due, interval_s, due + 0.001 * interval_s)
            assert due - before == pytest.approx(interval_s)
        moments.add(round(due % interval_s / interval_s * MOMENTS) % MOMENTS)
    assert len(moments) == MOMENTS


def test_turns_that_were_missed_are_left_out():
    assert next_turn(10.0, 1.0, 13.5) == pytest.approx(14.0)
    assert next_turn(10.0, 1.0, 9.0) == pytest.approx(10.0)
