"""The shipped manifests on a real API server, and as running Pods with sidecars.

What they forbid is shown by the tests of identity.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import aiohttp
import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from laptop_mesh import CAT

from cluster import ClusterSettings, TestCluster
from cluster.manifests import OVERLAY, manifests, overlay_manifests, read_manifests, render
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

KUBECTL = Path(sys.executable).with_name("kubectl")
DEFINITIONS = Path(__file__).parent / "definitions"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
DEPLOYED_S = 240.0
WAIT_S = 60.0


async def kubectl(cluster, *arguments, given=None):
    """Runs kubectl, and returns what it says; fails with what it complains of."""
    done = await asyncio.to_thread(
        subprocess.run,
        (KUBECTL, f"--kubeconfig={cluster.kubeconfig}", *arguments),
        capture_output=True,
        text=True,
        check=False,
        input=given,
    )
    assert done.returncode == 0, done.stderr
    # The API server warns of Pods that break the restricted profile, and of unknown fields.
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def definitions(shared_cluster):
    """The cluster with the definitions of KEDA's and the Prometheus operator's objects."""

    async def define():
        made = await shared_cluster.apply(*read_manifests(DEFINITIONS))
        names = [f"crd/{each['metadata']['name']}" for each in made]
        await kubectl(shared_cluster, "wait", "--for=condition=Established", *names)

    asyncio.run(define())
    return shared_cluster


@pytest.mark.parametrize("overlay", ["dev", "prod"])
async def test_the_api_server_takes_every_object(definitions, shared_cluster, overlay):
    folder = OVERLAY.with_name(overlay)
    options = ("--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict")
    said = await kubectl(shared_cluster, "apply", *options, "-k", str(folder))
    assert len(said.splitlines()) == len(render(folder))


async def test_the_pods_fit_the_restricted_profile(shared_cluster):
    await shared_cluster.create_namespace("restricted")
    await kubectl(shared_cluster, "label", "namespace", "restricted", RESTRICTED)
    for overlay in ("dev", "prod"):
        for each in render(OVERLAY.with_name(overlay)):
            if each["kind"] != "Deployment":
                continue
            template = each["spec"]["template"]
            template["spec"].pop("priorityClassName")
            template["spec"].pop("serviceAccountName")
            name = {"name": each["metadata"]["name"], "namespace": "restricted"}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": name, "spec": template["spec"]}
            said = await kubectl(
                shared_cluster, "create", "--dry-run=server", "-f", "-", given=json.dumps(pod)
            )
            assert "created" in said


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installed(tmp_path_factory):
    """A cluster on which somebody has applied the overlay dev, but for the language model."""
    settings = ClusterSettings(start_timeout_s=DEPLOYED_S)
    async with TestCluster.running(tmp_path_factory.mktemp("installed"), settings) as cluster:
        await cluster.apply(*manifests("ingress"))
        await kubectl(cluster, "apply", "--server-side", "-k", str(OVERLAY))
        await kubectl(cluster, "-n", "models", "scale", "deployment/llm-v1", "--replicas=0")
        (gateway,) = (
            each
            for each in overlay_manifests()
            if each["metadata"]["name"] == "gateway-v1" and each["kind"] == "Deployment"
        )
        (container,) = gateway["spec"]["template"]["spec"]["containers"]
        container["args"] = ["--llm=" if "--llm=" in each else each for each in container["args"]]
        await cluster.apply(gateway)
        await cluster.deployed("istio-ingress", "istio-ingressgateway", timeout_s=DEPLOYED_S)
        await cluster.deployed(
            "models", "vision-v1", "vision-v2", "gateway-v1", timeout_s=DEPLOYED_S
        )
        await cluster.deployed("tidegate-system", "tidegate-router", timeout_s=DEPLOYED_S)
        yield cluster


@pytest.mark.long
@pytest.mark.e2e
@pytest.mark.asyncio(loop_scope="module")
async def test_servers_answer_from_outside_by_grpc_and_http(installed):
    address = await installed.forward("istio-ingress", "istio-ingressgateway", 8500)
    image = CAT.read_bytes()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)
        request = vision_pb2.ClassifyRequest(images=[vision_pb2.Image(encoded=image)])
        versions = [
            (await stub.Classify(request, timeout=WAIT_S, wait_for_ready=True)).version
            for _ in range(60)
        ]
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("startup", "readiness", "liveness"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    # 10 % of 60 calls: all at one version has a chance of 0.2 %.
    assert {*versions} == {"1-fp32", "1-int8"}
    http = await installed.forward("istio-ingress", "istio-ingressgateway", 8000)
    async with aiohttp.ClientSession(f"http://{http}") as session:
        # The gateway calls the models through the ingress gateway, by the mesh's mutual TLS.
        headers = {"content-type": "image/jpeg"}
        async with session.post("/v1/images:classify", data=image, headers=headers) as answer:
            assert (answer.status, (await answer.json())["model"]) == (200, "efficientnet-lite0")
        async with session.get("/metrics") as answer:
            assert answer.status == 403


@pytest.mark.long
@pytest.mark.e2e
@pytest.mark.asyncio(loop_scope="module")
async def test_access_logs_of_proxies_reach_the_router_and_metrics_prometheus(installed):
    async with asyncio.timeout(WAIT_S):
        while not any("access log stream identified" in each for each in logs(installed)):
            await asyncio.sleep(0.2)
    (pod, *_) = await installed.items("v1", "Pod", "models", selector="app=vision")
    # Without a certificate of the mesh: the port is not the sidecar's.
    metrics = await installed.forward("models", f"pod/{pod['metadata']['name']}", 9090)
    calls = await installed.forward("models", f"pod/{pod['metadata']['name']}", 8500)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{metrics}/metrics") as answer:
            assert "tidegate_build_info" in await answer.text()
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{calls}/")


@pytest.mark.long
@pytest.mark.e2e
@pytest.mark.asyncio(loop_scope="module")
async def test_a_replica_that_leads_reads_the_other_one_through_the_sidecars(installed):
    leader = None
    async with asyncio.timeout(WAIT_S):
        while leader is None:
            with contextlib.suppress(Exception):
                lease = await installed.get(
                    "coordination.k8s.io/v1", "Lease", "tidegate-router", "tidegate-system"
                )
                leader = lease["spec"]["holderIdentity"]
            await asyncio.sleep(0.2)
    rollout = {
        "apiVersion": "tidegate.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": "manual", "namespace": "models"},
        "spec": {
            "host": "vision",
            "baseline": "v1",
            "candidate": "v2",
            "strategy": {"manual": {"weights": [20]}},
            "objectives": [{"signal": "grpcFailures"}],
        },
    }
    await installed.apply(rollout)
    # Each replica serves one stream to the leader; that of the other one came by its sidecar, which
    # calls from this address.
    async with asyncio.timeout(WAIT_S):
        while not await reads_through_sidecar(installed, leader):
            await asyncio.sleep(0.5)


async def reads_through_sidecar(cluster, leader):
    pods = await cluster.items("v1", "Pod", "tidegate-system", selector="app=tidegate-router")
    (other,) = (each for each in pods if each["metadata"]["name"] != leader)
    address = await cluster.forward("tidegate-system", f"pod/{other['metadata']['name']}", 9090)
    name = 'grpc_server_in_flight_rpcs{grpc_method="WatchRequests"'
    async with aiohttp.ClientSession() as session:
        text = await (await session.get(f"http://{address}/metrics")).text()
    return any(name in line and line.endswith(" 1.0") for line in text.splitlines())


def logs(cluster):
    folder = cluster.folder / "pods/tidegate-system"
    return [path.read_text() for path in folder.glob("*/router.log")]
