"""A router that is killed anywhere: no step is lost, repeated or skipped."""

import asyncio
import random
import signal
from itertools import count

import pytest
from crashing_router import KEY, MeshServer, SharedClock, start
from rollout_traffic import weights_of

from tidegate.rollout.engine.draft import VOLATILE
from tidegate.rollout.engine.history import EventKind, replay
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.router.faults import FaultPoint
from tidegate.router.rollout_loop import fresh_status
from tidegate.router.sqlite_store import SqliteStore

WEIGHTS = [10.0, 50.0, 0.0, 20.0, 100.0]
SPLITS = ["v2 10%, v1 90%", "v2 50%, v1 50%", "v1 100%, v2 0%", "v2 20%, v1 80%", "v2 100%, v1 0%"]
STAGES = ["stage 1 of 3", "stage 2 of 3", "stage 1 of 1"]
GIVE_UP_S = 60.0


async def ended(process):
    """Waits until a process has ended; returns its exit code."""
    async with asyncio.timeout(GIVE_UP_S):
        await asyncio.to_thread(process.join)
    return process.exitcode


async def check_store(folder):
    """Checks that each step is whole, and returns what the next router will find."""
    async with SqliteStore.opened(folder / "rollouts.sqlite") as store:
        found = await store.load()
        history = await store.history(KEY)
    assert [each.number for each in history] == list(range(1, len(history) + 1))
    assert [each.status.events for each in found] in ([len(history)], [])
    return found, history


def first_words(history, kind, end):
    return [each.message.split(end)[0] for each in history if each.kind is kind]


def check_history(status, history):
    kinds = [each.kind for each in history]
    assert kinds.count(EventKind.STARTED) == 2
    assert kinds.count(EventKind.SUPERSEDED) == kinds.count(EventKind.PROMOTED) == 1
    assert first_words(history, EventKind.STAGE_ENTERED, ":") == STAGES
    assert first_words(history, EventKind.SPLIT_IN_FORCE, " is in") == SPLITS
    check_replay(status, history)


def check_replay(status, history):
    """The history alone gives the status."""
    ends = next(each.number for each in history if each.kind is EventKind.SUPERSEDED)
    first = replay(RolloutStatus(), history[:ends])
    assert first.phase is Phase.SUPERSEDED
    second = replay(fresh_status(first), history[ends:])
    for name in set(RolloutStatus.__struct_fields__) - VOLATILE:
        assert getattr(second, name) == getattr(status, name), name


@pytest.mark.parametrize("point", FaultPoint, ids=lambda point: point.name.lower())
async def test_a_router_killed_at_a_fault_point_goes_on_where_it_was(tmp_path, point):
    clock, kills = SharedClock(), 0
    async with MeshServer(tmp_path / "mesh.sock", clock) as server:
        for passes in count(1):
            exit_code = await ended(start(tmp_path, clock, point, passes))
            found, history = await check_store(tmp_path)
            if exit_code == 0:
                break
            assert exit_code == -signal.SIGKILL
            kills += 1
        assert kills >= 2
        assert weights_of(server.mesh) == WEIGHTS
        check_history(found[0].status, history)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_router_killed_at_three_hundred_random_moments_goes_on_where_it_was(tmp_path):
    chance, kills = random.Random(1), 0
    for run in count():
        folder = tmp_path / str(run)
        folder.mkdir()
        kills += await kills_until_the_end(folder, chance)
        if kills >= 300:
            break


async def kills_until_the_end(folder, chance):
    """Kills routers until one has come to the end of its script; returns the number of kills."""
    clock = SharedClock()
    async with MeshServer(folder / "mesh.sock", clock) as server:
        for kills in count():
            process = start(folder, clock)
            ending = asyncio.create_task(ended(process))
            # Longer and longer, so that a busy machine comes to the end too.
            limit_s = 0.2 * 1.1**kills
            await asyncio.wait({ending}, timeout=chance.uniform(0.0, limit_s))
            process.kill()
            exit_code = await ending
            if (folder / "rollouts.sqlite").exists():
                found, history = await check_store(folder)
            if exit_code == 0:
                break
        assert weights_of(server.mesh) == WEIGHTS
        check_history(found[0].status, history)
    return kills
