"""A rollout to which nothing happens is not evaluated, and whatever happens is seen in time."""

import asyncio
import contextlib

import pytest
from router_harness import canary, manual

from tidegate.rollout.engine.inputs import CommandKind
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.spec.reading import read_rollouts
from tidegate.rollout.traffic import TrafficSplit
from tidegate.router.metrics import EVALUATIONS

VISION = "models/vision"
TIMED = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy:
    canary: {steps: [{weight: 10}, {pause: {for: 20s}}, {weight: 50}]}
  decide: {within: 60s}
  objectives: [{signal: grpcFailures, tolerate: 2x}]
"""


def is_in_force(record):
    return record.status.desired is not None and record.status.is_settled


async def evaluations(seconds):
    before = EVALUATIONS._value.get()
    await asyncio.sleep(seconds)
    return EVALUATIONS._value.get() - before


async def calms_down():
    async with asyncio.timeout(20):
        # 30 turns would be due.
        while await evaluations(0.3) > 1:
            pass


@contextlib.asynccontextmanager
async def standing_still(router, rollout=None):
    """A rollout at its first step, without requests."""
    router.source.requests_per_s = 0.0
    async with router.running() as reconciler:
        await reconciler.apply(rollout or manual())
        await router.until(is_in_force)
        await calms_down()
        yield reconciler


async def test_a_rollout_that_nothing_happens_to_is_not_evaluated(router):
    async with standing_still(router):
        assert await evaluations(0.5) == 0


async def test_a_rollout_with_requests_is_evaluated_each_time(router):
    async with standing_still(router):
        router.source.requests_per_s = 100.0
        assert await evaluations(0.5) > 10


async def test_a_foreign_change_is_seen(router):
    async with standing_still(router):
        router.mesh.change("vision", TrafficSplit(weights={"v1": 50.0, "v2": 50.0}))
        record = await router.until_phase(Phase.PAUSED)
        assert record.status.pause_cause is PauseCause.FOREIGN_CHANGE


async def test_requests_of_before_a_foreign_change_count_until_the_last_quiet_look(router):
    async with standing_still(router):
        await asyncio.sleep(0.2)
        before_s = router.clock()
        router.mesh.change("vision", TrafficSplit(weights={"v1": 50.0, "v2": 50.0}))
        changed = []
        begin_change = router.source.begin_change

        def noted(key, at_s):
            changed.append(at_s)
            begin_change(key, at_s)

        router.source.begin_change = noted
        await router.until_phase(Phase.PAUSED)
    # Some turns before the change, by a clock that is a hundred times as fast.
    assert before_s - 10 < changed[0] <= before_s + 1


async def test_traffic_that_cannot_be_read_any_more_is_shown(router):
    async with standing_still(router):
        with router.mesh.unreadable("the controller is away"):
            await router.until(lambda record: "the controller is away" in record.problem)
        await router.until(lambda record: not record.problem)
        await calms_down()


async def test_missing_evidence_is_shown(router):
    async with standing_still(router):
        router.source.missing = "no records of requests arrive"
        await router.until(lambda record: "no records" in record.problem)


async def test_a_command_is_carried_out_at_once(router):
    async with standing_still(router) as reconciler:
        await reconciler.command(VISION, CommandKind.PROMOTE, "looks good")
        assert router.record().status.stage == 1


async def test_a_pause_ends_and_the_time_is_up(router):
    async with standing_still(router, read_rollouts(TIMED, "test")[0]):
        record = await router.until_phase(Phase.PAUSED)
        assert record.status.pause_cause is PauseCause.TIME_UP


async def test_evidence_of_before_the_silence_is_written(router):
    router.settings = router.settings_with(evidence_interval_s=20.0)
    async with router.running() as reconciler:
        await reconciler.apply(canary(weights=(10,), last="untilApproved"))
        await router.until(lambda record: record.status.evidence)
        router.source.requests_per_s = 0.0
        await calms_down()
        async with asyncio.timeout(20):
            while True:
                (stored,) = await router.store.load()
                if stored.status.evidence == router.record().status.evidence:
                    break
                await asyncio.sleep(0.05)


async def test_a_rollout_that_waits_sees_that_its_host_is_taken(router):
    router.mesh.ready("llm", "v1")
    router.source.requests_per_s = 0.0
    async with router.running() as reconciler:
        await reconciler.apply(manual("waits", host="llm"))
        await router.until(lambda record: "endpoint" in record.status.message, "models/waits")
        await calms_down()
        router.mesh.change("llm", TrafficSplit(weights={"v1": 100.0}), owner="models/other")
        await router.until_phase(Phase.REFUSED, key="models/waits")


@pytest.mark.parametrize("seconds", [0.0, 0.05])
async def test_a_clock_that_is_set_back_has_the_rollout_evaluated(router, seconds):
    clock, back_s = router.clock, 0.0
    router.clock = lambda: clock() - back_s
    async with standing_still(router):
        await asyncio.sleep(seconds)
        before = EVALUATIONS._value.get()
        back_s = 3600.0
        async with asyncio.timeout(20):
            while EVALUATIONS._value.get() == before:
                await asyncio.sleep(0.01)
