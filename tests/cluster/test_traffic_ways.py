"""Each way to write traffic moves real calls through a real gateway, and loses none.

Rollouts take over one host after the other way: by patches of Git's VirtualService, then as owners
of it, and then as the delegate of Git's. The models are real; only the evidence is left out.
"""

import asyncio
from pathlib import Path

import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import istio, rollout
from steady_load import SteadyLoad
from traffic_observer_double import TrafficObserverDouble

from cluster.manifests import manifests, read_manifests
from tidegate.kube.client import KubeClient
from tidegate.kube.resources import VIRTUAL_SERVICES
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.objects import DirectObjects

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.long,
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
RATE = 15
KEY = "models/vision-v2"
NEW, OLD = "1-int8", "1-fp32"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port(shared_cluster):
    """The port of a gateway before two versions of the vision server."""
    if not (ROOT / "models/efficientnet-lite0").exists():
        pytest.skip("no model efficientnet-lite0; `make models` builds it")
    deployments = [("istio-ingress", "istio-ingressgateway")]
    deployments += [("models", name) for name in ("vision-v1", "vision-v2")]
    await shared_cluster.apply(
        *manifests("ingress", "models"), *read_manifests(ROOT / "mesh/istio/base/traffic")
    )
    for namespace, name in deployments:
        await shared_cluster.deployed(namespace, name, timeout_s=120)
    address = await shared_cluster.forward("istio-ingress", "istio-ingressgateway", 8500)
    yield int(address.rpartition(":")[2])
    for namespace, name in deployments:
        await shared_cluster.delete("apps/v1", "Deployment", name, namespace)
    for name in ("vision", "vision-rollout"):
        kind = ("networking.istio.io/v1", "VirtualService")
        await shared_cluster.delete(*kind, name, "models")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(shared_cluster):
    async with KubeClient.opened(kubeconfig=shared_cluster.kubeconfig) as opened:
        yield opened


async def until_answered(load, version, count=10):
    """Waits until a version has answered some calls in a row."""
    async with asyncio.timeout(WAIT_S):
        while True:
            before, all_before = load.versions[version], load.codes.total()
            while load.codes.total() < all_before + count:
                await asyncio.sleep(0.05)
            if load.versions[version] - before == load.codes.total() - all_before:
                return


async def back_and_forth(client, load, write, **traffic):
    """Moves all calls to the candidate in steps, and back to the baseline."""
    process = ClusterTraffic(client, DirectObjects(client), TrafficObserverDouble())
    way = process.of(rollout(write, traffic=traffic))
    read = await way.read("vision")
    assert read.problem == ""
    for share in (20, 60):
        await way.apply("vision", split(v1=100 - share, v2=share), KEY)
    await way.apply("vision", split(v2=100), KEY)
    await until_answered(load, NEW)
    await way.apply("vision", split(v1=100), KEY, urgent=True)
    await until_answered(load, OLD)
    await way.apply("vision", split(v1=100), "")
    assert (await way.read("vision")).owner == ""


async def hand_over(client, name):
    """Labels a VirtualService as Tidegate's."""
    labels = {"metadata": {"labels": {"app.kubernetes.io/managed-by": "tidegate"}}}
    await client.merge(VIRTUAL_SERVICES, name, "models", labels, manager="git")


async def delegate(client):
    """Has Git's VirtualService delegate to another one, which is there first."""
    destination = {"host": "vision", "subset": "v1", "port": {"number": 8500}}
    http = [{"route": [{"destination": destination}]}]
    made = istio("VirtualService", "vision-rollout", {"http": http})
    await client.apply(VIRTUAL_SERVICES, made, manager="git")
    await hand_over(client, "vision-rollout")
    whole = [{"name": "vision", "delegate": {"name": "vision-rollout", "namespace": "models"}}]
    change = {
        "metadata": {"labels": {"app.kubernetes.io/managed-by": None}},
        "spec": {"http": whole},
    }
    await client.merge(VIRTUAL_SERVICES, "vision", "models", change, manager="git")


async def test_three_ways_move_all_calls_and_lose_none(client, port):
    with SteadyLoad(port, RATE) as load:
        async with asyncio.timeout(WAIT_S):
            while load.codes["OK"] < 20:
                await asyncio.sleep(0.1)
        failed_at_start = load.failures
        await back_and_forth(client, load, "patch")
        await hand_over(client, "vision")
        await back_and_forth(client, load, "own", hosts=["*"], gateways=["vision"])
        await delegate(client)
        await back_and_forth(client, load, "delegate")
    assert load.failures == failed_at_start, load.errors
    assert min(load.versions[NEW], load.versions[OLD]) >= 30
