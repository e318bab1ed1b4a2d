"""The router of a cluster goes on through faults of the API server, and loses and repeats no step.

The router is a process under the shipped Roles, behind a proxy that fails as networks and servers
fail. The API server stores each weight and each status with a number; so each weight must have a
decision that was stored before it.
"""

import asyncio
import random

import pytest
from cluster_objects import to, virtual_service
from faulted_rollouts import EVENTS, PROMOTED, decisions
from faulty_api import Fault, WatchEnd
from stored_changes import StoredChanges

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.cluster,
    # A watch that is silent is given up after 75 s.
    pytest.mark.timeout(400),
]

ANSWERS = (Fault.THROTTLE, Fault.FAIL, Fault.CONFLICT, Fault.GONE, Fault.DROP, Fault.LOSE_ANSWER)


def some(faults, share=0.3, seed=0):
    """Has a share of the calls fail, each in one of some ways; leases and watches go on."""
    draw = random.Random(seed)

    def fault(call):
        is_spared = "/leases" in call.path or call.is_watch or draw.random() > share
        return None if is_spared else draw.choice(faults)

    return fault


async def promote(world, name, timeout_s=60.0):
    await world.user.apply(name)
    await world.user.promote(name, timeout_s)


@pytest.mark.long
async def test_a_rollout_without_faults_is_what_the_others_are_compared_with(served):
    async with served.recorded("calm") as changes:
        with served.router():
            await promote(served, "calm")
    assert changes.shares == PROMOTED
    assert decisions(changes, "calm") == EVENTS


async def test_calls_that_fail_in_every_way_lose_no_step(served):
    async with served.recorded("failing") as changes:
        with served.router():
            served.faulty.fault = some(ANSWERS)
            await promote(served, "failing")
    assert changes.shares == PROMOTED


@pytest.mark.long
@pytest.mark.parametrize("fault", [*ANSWERS, Fault.HANG], ids=lambda each: each.name)
async def test_calls_that_fail_in_one_way_lose_no_step(served, fault):
    name = f"one-{fault.name.lower().replace('_', '-')}"
    async with served.recorded(name) as changes:
        with served.router():
            # Each call that hangs takes 10 s.
            served.faulty.fault = some((fault,), share=0.1 if fault is Fault.HANG else 0.3)
            await promote(served, name, timeout_s=100)
    assert changes.shares == PROMOTED


@pytest.mark.long
@pytest.mark.parametrize("how", WatchEnd, ids=lambda each: each.name)
async def test_watches_that_end_lose_no_step(served, how):
    name = f"watch-{how.name.lower().replace('_', '-')}"
    async with served.recorded(name) as changes:
        with served.router():
            await served.user.apply(name)
            for number in (1, 2):
                await served.user.until_step(name, f"{number}/2", timeout_s=100)
                served.faulty.end_watches(how)
                await served.user.command(name, "promote", timeout_s=100)
            await served.user.until_phase(name, "Promoted", timeout_s=100)
    assert changes.shares == PROMOTED


@pytest.mark.long
async def test_a_slow_api_server_loses_no_step(served):
    draw = random.Random(1)
    async with served.recorded("slow") as changes:
        with served.router():
            served.faulty.delay_s = lambda: draw.expovariate(1 / 0.4)
            await promote(served, "slow", timeout_s=100)
    assert changes.shares == PROMOTED


async def away(world, name, seconds):
    """Kills the API server in the middle of a rollout, and starts it again."""
    async with world.recorded(name) as changes:
        with world.router() as router:
            await world.user.apply(name)
            await world.user.until_step(name, "1/2")
            answer = await world.user.command(name, "promote", stage=1)
            assert answer["accepted"]
            world.api.server.kill()
            await asyncio.sleep(seconds)
            assert router.process.poll() is None, router.log[-3000:]
            await world.api.server.start()
            await world.user.until_step(name, "2/2", timeout_s=60)
            await world.user.command(name, "promote", stage=2)
            await world.user.until_phase(name, "Promoted")
    assert changes.shares == PROMOTED
    assert decisions(changes, name) == EVENTS


@pytest.mark.long
async def test_an_api_server_that_is_killed_loses_no_step(served):
    await away(served, "killed", seconds=5)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_an_api_server_that_is_away_for_minutes_loses_no_step(served):
    await away(served, "away", seconds=300)


@pytest.mark.long
async def test_half_open_connections_lose_no_step(served):
    """Everything that is sent is swallowed, and no connection is closed."""
    async with served.recorded("half-open") as changes:
        with served.router():
            await served.user.apply("half-open")
            await served.user.until_step("half-open", "1/2")
            served.faulty.end_watches(WatchEnd.SILENCE)
            served.faulty.fault = lambda call: Fault.HANG
            await served.user.give("half-open", "promote")
            await asyncio.sleep(20)
            served.faulty.mend()
            await served.user.until_step("half-open", "2/2", timeout_s=100)
            await served.user.command("half-open", "promote", timeout_s=100)
            await served.user.until_phase("half-open", "Promoted", timeout_s=100)
    assert changes.shares == PROMOTED


async def test_a_weight_that_nobody_decided_is_found(served):
    """The check of all tests here can fail."""
    async with StoredChanges.recorded(served.api.server.etcd_url) as changes:
        await served.host.apply(virtual_service(to("v2", 37), to("v1", 63)), force=True)
        await changes.complete()
    (found,) = changes.unexplained("nobody")
    assert found.startswith("37.0 at ")
