"""istiod is away for minutes in the middle of a rollout."""

import asyncio

import pytest
import pytest_asyncio
from model_cluster import ModelCluster, has_models
from steady_load import SteadyLoad, photographs

from cluster import TestCluster, missing_parts

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.timeout(900),
]

RATE = 5.0
AWAY_S = 120.0
PHOTOGRAPHS = photographs()
MANUAL = {"manual": {"weights": [10, 50]}}


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


async def until(models, name, holds, timeout_s=120.0):
    """Waits until something holds of the status of a Rollout, and returns it."""
    status = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                status = (await models.follow(name, *PHASES)).status
                if holds(status):
                    return status
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"{name} is {status}") from None


PHASES = ("Pending", "Progressing", "Paused", "Promoting", "Promoted")


def at(step):
    return lambda status: status.get("step") == step and status["split"].get("inForce")


async def test_a_rollout_stands_still_while_istiod_is_away_and_loses_no_request(models):
    await models.start_over("patch")
    with SteadyLoad(models.port, RATE, PHOTOGRAPHS) as load:
        async with asyncio.timeout(60):
            while load.codes["OK"] < 20:
                await asyncio.sleep(0.05)
        load.codes.clear()
        load.errors.clear()
        await models.apply("islanded", strategy=MANUAL)
        await until(models, "islanded", at("1/2"))
        await models.cluster.kill("istiod")
        assert (await models.command("islanded", "promote", stage=1))["accepted"]
        began = load.codes["OK"]
        await asyncio.sleep(AWAY_S)
        status = (await models.follow("islanded", *PHASES)).status
        # So few requests do not show at once that the proxies still follow the old weights. The
        # split is assumed, and the rollout pauses once the requests contradict it.
        assert status["phase"] == "Paused", status
        assert "was meant to get" in status["message"]
        assert load.codes["OK"] > began + AWAY_S * RATE / 2
        await models.cluster.restart("istiod")
        assert (await models.command("islanded", "resume"))["accepted"]
        await until(models, "islanded", at("2/2"))
        assert (await models.command("islanded", "promote", stage=2))["accepted"]
        await models.follow("islanded", "Promoted")
    assert load.failures == 0, load.errors
    assert await models.weights() == {"v2": 100}
    await models.delete("islanded")
