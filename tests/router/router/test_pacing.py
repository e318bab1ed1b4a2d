import asyncio
import itertools

from tidegate.router.pacing import Pace


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
