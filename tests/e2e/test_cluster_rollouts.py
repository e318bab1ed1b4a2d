"""Rollouts on the test cluster: real models behind real Envoys that a real istiod programs.

The router runs in two Pods with the rights that it is shipped with.
"""

import asyncio

import pytest
import pytest_asyncio
from model_cluster import ModelCluster, has_models, messages
from steady_load import SteadyLoad, photographs

from cluster import TestCluster, missing_parts

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.e2e,
    pytest.mark.timeout(400),
]

RATE = 15.0
PHOTOGRAPHS = photographs()
STEPS = [
    {"weight": 5},
    {"pause": {"for": "3s"}},
    {"weight": 30},
    {"pause": {"untilEvidence": True}},
    {"weight": 50},
]
CANARY = {
    "strategy": {"canary": {"steps": STEPS}},
    "objectives": [{"signal": "grpcFailures", "margin": "3%"}],
}
HALF = {"canary": {"steps": [{"weight": 50}, {"pause": {"untilApproved": True}}]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(tmp_path_factory):
    if missing := missing_parts():
        pytest.skip(missing)
    if not has_models():
        pytest.skip("the models are not built; run `make models`, or set TIDEGATE_MODELS")
    async with (
        TestCluster.running(tmp_path_factory.mktemp("cluster")) as cluster,
        ModelCluster.running(cluster) as running,
    ):
        yield running


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _all_at_v1(models):
    await models.set_weights(v1=100)
    yield
    await models.set_fault()


async def until_answered(load, count=20):
    async with asyncio.timeout(60):
        while load.codes["OK"] < count:
            await asyncio.sleep(0.1)


async def test_a_good_version_is_promoted_by_itself_and_no_request_is_lost(models):
    with SteadyLoad(models.port, RATE, PHOTOGRAPHS) as load:
        await until_answered(load)
        await models.apply("good", **CANARY)
        seen = await models.follow("good")
    assert seen.status["phase"] == "Promoted", seen.status["message"]
    assert load.failures == 0, load.errors
    in_force = messages(seen, "SplitInForce")
    assert [each.split(",")[0] for each in in_force] == ["v2 5%", "v2 30%", "v2 50%", "v2 100%"]
    # Requests showed each split; none was assumed.
    assert all("assumed" not in each for each in in_force), in_force
    assert await models.weights() == {"v2": 100}
    await models.delete("good")


async def test_a_version_that_fails_is_rolled_back_with_the_reason(models):
    await models.set_fault(unavailable=20)
    with SteadyLoad(models.port, RATE, PHOTOGRAPHS) as load:
        await until_answered(load)
        await models.apply("failing", **(CANARY | {"strategy": HALF}))
        seen = await models.follow("failing")
    assert seen.status["phase"] == "Aborted", seen.status["message"]
    (why,) = messages(seen, "Aborting")
    assert "v2 is worse: grpcFailures" in why
    assert load.failures
    assert all("fault filter abort" in error for error in load.errors), load.errors
    assert await models.weights() == {"v1": 100}
    await models.delete("failing")
