"""A router of a cluster that dies at any write loses no step and repeats none.

The proxy before the API server counts the writes, and kills the router before or after the server
has one. Another replica takes over when the lease has ended.
"""

import asyncio
import contextlib
import itertools
import random
import signal
from pathlib import Path

import pytest
from faulted_rollouts import EVENTS, PROMOTED, decisions
from faulty_api import WatchEnd
from router_deaths import LEASE, Deaths

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

JUMPING = Path(__file__).parents[2] / "doubles/jumping_router.py"
_numbers = itertools.count(1)


async def die_at(world, writes):
    """Runs a rollout for each of some writes, whose leader dies at it."""
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(world.router(*LEASE))
        await world.api.until_leads(leader.identity)
        for number, before in writes:
            standby = stack.enter_context(world.router(*LEASE))
            await world.serve()
            name = f"dies-{next(_numbers)}"
            deaths = Deaths(world.faulty, number, before=before)
            deaths.watch(leader)
            where = f"write {number}, {'before' if before else 'after'} the server had it"
            async with world.recorded(name) as changes:
                await world.user.apply(name)
                await world.user.promote(name, timeout_s=60)
            assert changes.shares == PROMOTED, where
            assert decisions(changes, name) == EVENTS, where
            if leader.process.poll() is None:
                return number
            leader = standby
    return None


async def test_a_router_that_dies_at_a_write_loses_and_repeats_no_step(served):
    """At one that chance names; the long test tries all of them."""
    draw = random.Random()
    assert await die_at(served, [(draw.randint(1, 12), draw.random() < 0.5)]) is None


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_a_router_that_dies_at_any_write_loses_and_repeats_no_step(served, before):
    last = await die_at(served, ((number, before) for number in itertools.count(1)))
    assert last > 12


@pytest.mark.long
async def test_a_leader_that_was_paused_writes_nothing_when_it_wakes_up(served):
    with served.router() as paused:
        await served.api.until_leads(paused.identity)
        async with served.recorded("paused") as changes:
            await served.user.apply("paused")
            await served.user.until_step("paused", "1/2")
            await served.user.give("paused", "promote", stage=1)
            paused.signal(signal.SIGSTOP)
            with served.router() as second:
                await served.api.until_leads(second.identity)
                await served.user.until_step("paused", "2/2")
                calls = len(served.faulty.calls)
                paused.signal(signal.SIGCONT)
                async with asyncio.timeout(20):
                    while "leads no more" not in paused.log:
                        await asyncio.sleep(0.05)
                await served.user.command("paused", "promote", stage=2)
                await served.user.until_phase("paused", "Promoted")
                assert await served.api.leader() == second.identity
                assert len(served.faulty.calls) > calls
        assert changes.shares == PROMOTED
        writers = changes.writers("paused")
        assert writers in ([paused.identity, second.identity], [second.identity]), writers


@pytest.mark.long
# A watch that is silent is given up after 75 s.
@pytest.mark.timeout(400)
async def test_a_next_leader_whose_watches_are_silent_waits_for_them(served):
    """Its caches are of before the last step, which is no change by somebody else."""
    kubeconfig = served.api.routers_kubeconfig()
    async with served.recorded("silent") as changes:
        with served.router(*LEASE, kubeconfig=kubeconfig) as first:
            await served.api.until_leads(first.identity)
            with served.router(*LEASE) as second:
                await served.user.apply("silent")
                await served.user.until_step("silent", "1/2")
                async with asyncio.timeout(30):
                    while "waits for the lease" not in second.log:
                        await asyncio.sleep(0.05)
                served.faulty.end_watches(WatchEnd.SILENCE)
                await served.user.command("silent", "promote", stage=1)
                await served.user.until_step("silent", "2/2")
                first.kill()
                async with asyncio.timeout(60):
                    while "has not shown the last changes" not in second.log:
                        await asyncio.sleep(0.1)
                await served.user.command("silent", "promote", stage=2, timeout_s=150)
                await served.user.until_phase("silent", "Promoted")
    assert changes.shares == PROMOTED
    assert decisions(changes, "silent") == EVENTS


@pytest.mark.long
@pytest.mark.parametrize("ahead_s", [3600, -3600], ids=["forward", "back"])
async def test_a_leaders_wall_clock_that_jumps_loses_no_step_and_no_lead(served, ahead_s):
    name = f"jumps-{'forward' if ahead_s > 0 else 'back'}"
    file = served.api.folder / name
    file.write_text("0")
    async with served.recorded(name) as changes:
        with served.router(program=(JUMPING, file)) as router:
            await served.api.until_leads(router.identity)
            await served.user.apply(name)
            await served.user.until_step(name, "1/2")
            file.write_text(str(ahead_s))
            await served.user.promote(name)
            assert "leads no more" not in router.log
    assert changes.shares == PROMOTED
    assert changes.writers(name) == [router.identity]
