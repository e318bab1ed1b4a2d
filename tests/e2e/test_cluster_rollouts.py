"""Rollouts on the test cluster: real models behind real Envoys that a real istiod programs.

The router runs in two Pods with the rights that it is shipped with. Each way of writing traffic
sees a good version and a bad one.
"""

import asyncio

import pytest
import pytest_asyncio
from model_cluster import ModelCluster, has_models, messages
from steady_load import SteadyLoad, photographs

from cluster import TestCluster, missing_parts
from tidegate.kube.errors import NotFoundError
from tidegate.kube.resources import NAMESPACES

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.e2e,
    pytest.mark.timeout(400),
]

RATE = 15.0
PHOTOGRAPHS = photographs()
STEPS = [{"weight": 30}, {"pause": {"untilEvidence": True}}, {"weight": 50}]
GOOD = {
    "strategy": {"canary": {"steps": STEPS}},
    "objectives": [{"signal": "grpcFailures", "margin": "4%"}],
}
HALF = {"canary": {"steps": [{"weight": 50}, {"pause": {"untilApproved": True}}]}}
BAD = {"strategy": HALF, "objectives": [{"signal": "grpcFailures"}]}
SLOW = {
    "strategy": HALF,
    "objectives": [
        {"signal": "grpcFailures"},
        {"signal": "latency", "quantile": "50%", "tolerate": "1.5x"},
    ],
}
WAYS = {
    "patch": {"write": "patch"},
    "delegate": {"write": "delegate"},
    "own": {"write": "own", "hosts": ["*"], "gateways": ["vision"]},
}


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


async def run(models, way, name, spec):
    """Runs a rollout to its end under load; returns it, and the load."""
    await models.start_over(way)
    with SteadyLoad(models.port, RATE, PHOTOGRAPHS) as load:
        async with asyncio.timeout(60):
            while load.codes["OK"] < 20:
                await asyncio.sleep(0.05)
        # While istiod had no routes to give.
        load.codes.clear()
        load.errors.clear()
        await models.apply(name, traffic=WAYS[way], **spec)
        seen = await models.follow(name)
    await models.delete(name)
    return seen, load


def carrier(way):
    """The VirtualService that has the weights."""
    return "vision-rollout" if way == "delegate" else "vision"


def only(*ways):
    """The ways that `make test` tries, and the others."""
    return [
        pytest.param(each, marks=[] if each in ways else pytest.mark.long, id=each) for each in WAYS
    ]


@pytest.mark.parametrize("way", only("patch"))
async def test_a_good_version_is_promoted_by_itself_and_no_request_is_lost(models, way):
    seen, load = await run(models, way, "good", GOOD)
    assert seen.status["phase"] == "Promoted", seen.status["message"]
    assert load.failures == 0, load.errors
    in_force = messages(seen, "SplitInForce")
    assert [each.split(",")[0] for each in in_force] == ["v2 30%", "v2 50%", "v2 100%"]
    assert "seen in" in in_force[-1]
    assert await models.weights(carrier(way)) == {"v2": 100}


@pytest.mark.parametrize("way", only("delegate"))
async def test_a_version_that_fails_is_rolled_back_with_the_reason(models, way):
    await models.set_fault(unavailable=20)
    try:
        seen, load = await run(models, way, "failing", BAD)
    finally:
        await models.set_fault()
    assert seen.status["phase"] == "Aborted", seen.status["message"]
    (why,) = messages(seen, "Aborting")
    assert "v2 is worse: grpcFailures" in why
    # Only the injected faults failed: the changes of traffic lost nothing.
    assert load.failures
    assert all("fault filter abort" in error for error in load.errors), load.errors
    assert await models.weights(carrier(way)) == {"v1": 100}
    if way != "patch":
        # The names of the routes tell which split each request followed.
        assert all("seen in" in each for each in messages(seen, "SplitInForce"))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
async def test_a_version_that_is_slow_is_rolled_back(models, way):
    await models.set_fault(delay_s=0.1)
    try:
        seen, load = await run(models, way, "slow", SLOW)
    finally:
        await models.set_fault()
    assert seen.status["phase"] == "Aborted", seen.status["message"]
    assert "latency 50%" in messages(seen, "Aborting")[0]
    assert load.failures == 0, load.errors
    assert await models.weights(carrier(way)) == {"v1": 100}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sidecar", "proxyless"])
@pytest.mark.parametrize("fate", ["good", "bad"])
async def test_callers_inside_the_mesh_are_served_and_judged(models, kind, fate):
    """By a sidecar with mutual TLS, and by gRPC itself, which writes no access log."""
    await models.start_over("mesh")
    if kind == "sidecar":
        await models.require_mtls()
    if fate == "bad":
        await models.set_fault(unavailable=20)
    try:
        async with models.caller(kind, RATE) as load:
            await load.until_answered(30)
            before = load.told()["codes"]
            await models.apply(f"{fate}-{kind}", **(GOOD if fate == "good" else BAD))
            seen = await models.follow(f"{fate}-{kind}")
            await asyncio.sleep(2)
            after = load.told()
    finally:
        await models.set_fault()
        await models.require_mtls(off=True)
        await models.delete(f"{fate}-{kind}")
    failed = sum(after["codes"].values()) - after["codes"]["OK"]
    failed -= sum(before.values()) - before["OK"]
    if fate == "good":
        assert seen.status["phase"] == "Promoted", seen.status["message"]
        assert failed == 0, after["errors"]
        assert await models.weights() == {"v2": 100}
    else:
        assert seen.status["phase"] == "Aborted", seen.status["message"]
        assert "v2 is worse: grpcFailures" in messages(seen, "Aborting")[0]
        assert all("fault filter abort" in each for each in after["errors"]), after["errors"]
        assert await models.weights() == {"v1": 100}


# The last test: the models go with their namespace.
@pytest.mark.long
async def test_a_namespace_with_a_running_rollout_can_be_deleted(models):
    await models.start_over("patch")
    await models.apply("doomed", strategy={"manual": {"weights": [10]}})
    await models.follow("doomed", "Progressing")
    await models.client.delete(NAMESPACES, "models")
    async with asyncio.timeout(120):
        while True:
            try:
                await models.client.get(NAMESPACES, "models")
            except NotFoundError:
                return
            await asyncio.sleep(0.5)
