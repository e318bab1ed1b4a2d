"""Rollouts on the test cluster: real models behind real Envoys that a real istiod programs.

The router runs in two Pods with the rights that it is shipped with. Each way of writing traffic
sees a good version and bad ones. Each test prints its calls, changes of traffic and lost calls.
"""

import asyncio
import contextlib

import pytest
import pytest_asyncio
from cluster_shows import show
from model_cluster import ModelCluster, has_models
from permuted_model import permuted_classifier
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
DRIFTING = {
    "candidate": "v3",
    "strategy": HALF,
    "objectives": [
        {"signal": "grpcFailures"},
        {"signal": "predictionDrift", "tolerate": "5%"},
    ],
}
QUARTER = {"canary": {"steps": [{"weight": 25}, {"pause": {"untilApproved": True}}]}}
LATE = {"strategy": QUARTER, "objectives": [{"signal": "grpcFailures", "tolerate": "1.2x"}]}
RAMP = {
    "strategy": {"canary": {"ramp": {"harmBudget": 20, "maxWeight": 50}}},
    "objectives": [
        {"signal": "grpcFailures", "tolerate": "1.2x", "margin": "0.5%"},
        {"signal": "latency", "quantile": "50%", "tolerate": "1.5x"},
    ],
}
WAYS = ("patch", "delegate", "own")


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
async def _without_faults(models):
    yield
    await models.set_fault()
    await models.require_mtls(off=True)


def load_of(models):
    return SteadyLoad(models.port, RATE, PHOTOGRAPHS)


def only(way):
    """The way that `make test` tries, and the others."""
    return [pytest.param(each, marks=() if each == way else pytest.mark.long) for each in WAYS]


def good(shown):
    """What a good version shows: nothing is lost, and each change was seen."""
    assert shown.phase == "Promoted", shown.message
    assert shown.failed == 0, shown.errors
    assert shown.weights == {"v2": 100}
    in_force = shown.messages("SplitInForce")
    assert [each.split(",")[0] for each in in_force] == ["v2 30%", "v2 50%", "v2 100%"]
    assert "seen in" in in_force[-1]


def bad(shown, why):
    """What a bad version shows: it is rolled back for its fault, and only that failed calls."""
    assert shown.phase == "Aborted", shown.message
    (told,) = shown.messages("Aborting")
    assert why in told
    assert shown.lost == 0, shown.errors
    assert shown.weights == {"v1": 100}


@pytest.mark.parametrize("way", only("patch"))
async def test_a_good_version_is_promoted_by_itself_and_no_request_is_lost(models, capsys, way):
    await models.start_over(way)
    shown = await show(models, "good", way, GOOD, load_of(models))
    shown.tell(capsys)
    good(shown)


@pytest.mark.parametrize("way", only("delegate"))
async def test_a_version_that_fails_is_rolled_back_with_the_reason(models, capsys, way):
    await models.start_over(way)
    await models.set_fault(unavailable=20)
    shown = await show(models, "failing", way, BAD, load_of(models))
    shown.tell(capsys)
    bad(shown, "v2 is worse: grpcFailures")
    assert shown.failed
    if way != "patch":
        # The names of the routes tell which split each request followed.
        assert all("seen in" in each for each in shown.messages("SplitInForce"))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
async def test_a_version_that_is_slow_is_rolled_back(models, capsys, way):
    await models.start_over(way)
    await models.set_fault(delay_s=0.1)
    shown = await show(models, "slow", way, SLOW, load_of(models))
    shown.tell(capsys)
    bad(shown, "latency 50%")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def permuted(models, tmp_path_factory):
    """A version v3 that is as fast as v1, and whose labels are permuted."""
    repository = tmp_path_factory.mktemp("models")
    model = permuted_classifier(repository)
    await models.deploy("v3", model_repository=repository, load=model)
    yield
    await models.remove("v3")


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
async def test_a_version_with_permuted_labels_is_rolled_back(models, permuted, capsys, way):
    await models.start_over(way, candidate="v3")
    shown = await show(models, "permuted", way, DRIFTING, load_of(models))
    shown.tell(capsys)
    bad(shown, "v3 is worse: predictionDrift")
    assert shown.failed == 0


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
async def test_a_version_that_is_fine_for_a_minute_and_then_fails_is_rolled_back(
    models, capsys, way
):
    async def fail_later(name):
        await models.follow(name, "Progressing")
        with pytest.raises(AssertionError, match="'phase': 'Progressing'"):
            await models.follow(name, timeout_s=60)
        await models.set_fault(unavailable=5)

    await models.start_over(way)
    shown = await show(
        models, "late", way, LATE, load_of(models), meanwhile=fail_later, timeout_s=240
    )
    shown.tell(capsys)
    bad(shown, "v2 is worse: grpcFailures")


@pytest.mark.long
@pytest.mark.parametrize("fault", [{"unavailable": 5}, {"delay_s": 0.1}], ids=["fails", "slow"])
async def test_a_bad_version_costs_less_than_the_harm_budget(models, capsys, fault):
    await models.start_over("own")
    await models.set_fault(**fault)
    shown = await show(models, "ramp", "own", RAMP, load_of(models), timeout_s=360)
    shown.tell(capsys)
    bad(shown, "v2 is worse")
    assert shown.failed <= 20


@pytest.mark.long
@pytest.mark.parametrize("fate", ["good", "bad"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["sidecar", "proxyless"])
async def test_callers_inside_the_mesh_are_served_and_judged(models, capsys, kind, way, fate):
    """By a sidecar with mutual TLS, and by gRPC itself, which writes no access log."""
    await models.start_over(way, callers="mesh")
    if kind == "sidecar":
        await models.require_mtls()
    if fate == "bad":
        await models.set_fault(unavailable=20)
    async with models.caller(kind, RATE) as load:
        shown = await show(
            models,
            f"{fate} {kind}",
            way,
            GOOD if fate == "good" else BAD,
            contextlib.nullcontext(load),
            callers="mesh",
            warm=30,
        )
    shown.tell(capsys)
    if fate == "good":
        good(shown)
    else:
        bad(shown, "v2 is worse: grpcFailures")


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
