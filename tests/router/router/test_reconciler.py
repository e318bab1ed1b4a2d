from rollout_traffic import weights_of
from router_harness import canary

from tidegate.rollout.engine.status import Phase


async def test_a_good_candidate_is_promoted(router):
    async with router.running() as reconciler:
        await reconciler.apply(canary())
        record = await router.until_phase(Phase.PROMOTED)
        assert weights_of(router.mesh) == [10.0, 50.0, 100.0]
        numbers = [each.number for each in await reconciler.history(record.key)]
        assert numbers == list(range(1, len(numbers) + 1))
