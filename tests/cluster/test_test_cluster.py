"""The test cluster has real traffic and real ends of Pods, and leaves nothing behind."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from laptop_mesh import CAT

from cluster import ClusterError
from cluster.kube_api import ApiError
from cluster.manifests import manifests, read_manifests
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0
PARALLEL = 4
# Between two calls of one caller: leaves cores to the servers.
PAUSE_S = 0.02
# Says whether a gRPC server at an address is healthy, by the name of the status.
_HEALTH = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.fixture(scope="module")
def kubelet(shared_cluster):
    """The cluster with a namespace for Pods of these tests."""
    asyncio.run(shared_cluster.create_namespace("kubelet"))
    return shared_cluster


@pytest.fixture(scope="module")
def vision(shared_cluster):
    """The cluster with two versions of the vision server behind a gateway, and its port."""
    if not (ROOT / "models/efficientnet-lite0").exists():
        pytest.skip("no model efficientnet-lite0; `make models` builds it")

    objects = [
        *manifests("ingress", "models"),
        *read_manifests(ROOT / "mesh/istio/base/traffic"),
    ]

    async def set_up():
        await shared_cluster.apply(*objects)
        await shared_cluster.deployed("istio-ingress", "istio-ingressgateway")
        await shared_cluster.deployed("models", "vision-v1", "vision-v2", timeout_s=120)
        address = await shared_cluster.forward("istio-ingress", "istio-ingressgateway", 8500)
        port = int(address.rpartition(":")[2])
        await until_both_answer(port)
        return port

    async def tear_down():
        for each in objects:
            if namespace := each["metadata"].get("namespace"):
                name = each["metadata"]["name"]
                await shared_cluster.delete(each["apiVersion"], each["kind"], name, namespace)

    port = asyncio.run(set_up())
    yield shared_cluster, port
    asyncio.run(tear_down())


async def test_models_behind_the_gateway_answer_by_the_weights(vision):
    _, port = vision
    versions = await answers(port, 200)
    assert set(versions) == {"1-fp32", "1-int8"}
    # 10 % of 200 calls; five standard deviations are 11 %.
    assert 0 < versions["1-int8"] / versions.total() < 0.21


@pytest.mark.long
async def test_scaling_down_and_a_rolling_update_lose_no_request(vision):
    cluster, port = vision
    await scale(cluster, "vision-v1", 2)
    await cluster.deployed("models", "vision-v1", timeout_s=120)
    assert len(await pod_names(cluster, "vision-v1")) == 2
    before = await pod_names(cluster, "vision-v2")
    async with steady_calls(port) as load:
        await until_more(load)
        await scale(cluster, "vision-v1", 1)
        await cluster.apply(*updated("vision-v2"))
        await cluster.deployed("models", "vision-v2", timeout_s=120)
        await until_pods(cluster, "vision-v2", lambda now: len(now) == 1 and not now & before)
        await until_pods(cluster, "vision-v1", lambda now: len(now) == 1)
        await until_more(load)
    assert load.errors == []


async def test_traffic_flows_while_the_api_server_is_dead_or_paused(vision):
    cluster, port = vision
    async with steady_calls(port) as load:
        await cluster.kill("kube-apiserver")
        with pytest.raises(ApiError, match="no answer"):
            await cluster.get("v1", "Namespace", "models")
        await until_more(load)
        await cluster.restart("kube-apiserver")
        await cluster.stop("kube-apiserver")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cluster.get("v1", "Namespace", "models"), 1.0)
        await cluster.cont("kube-apiserver")
        await until_more(load)
    assert load.errors == []
    await cluster.apply(pod("later", ["sleep", "600"], "models"))
    await ready(cluster, "models", "later")
    await cluster.delete("v1", "Pod", "later", "models")


async def test_strict_mtls_admits_sidecars_and_refuses_plaintext(vision):
    cluster, _ = vision
    strict = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": "models"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }
    idle = ["python", "-c", "import signal; signal.pause()"]
    await cluster.create_namespace("callers")
    inject = {"sidecar.istio.io/inject": "true"}
    await cluster.apply(pod("inside", idle, "callers", inject), pod("outside", idle, "callers"))
    await ready(cluster, "callers", "inside", "outside")
    assert await health(cluster, "outside") == "SERVING"
    await cluster.apply(strict)
    try:
        # The open connections to a server keep the old policy for one request.
        await until_async(lambda: health(cluster, "outside"), "UNAVAILABLE")
        assert await health(cluster, "inside") == "SERVING"
    finally:
        await cluster.delete("security.istio.io/v1", "PeerAuthentication", "default", "models")
        for name in ("inside", "outside"):
            await cluster.delete("v1", "Pod", name, "callers")


async def test_a_pod_ends_by_its_hook_then_sigterm_then_sigkill(kubelet):
    program = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('term', time.monotonic(), flush=True))\n"
        "print('up', flush=True)\n"
        "while True: signal.pause()"
    )
    hook = {"exec": {"command": ["sh", "-c", "touch $HOOK"]}}
    mark = kubelet.folder / "hook"
    container = {"lifecycle": {"preStop": hook}, "env": [{"name": "HOOK", "value": str(mark)}]}
    await kubelet.apply(
        pod(
            "stubborn",
            ["python", "-c", program],
            "kubelet",
            container=container,
            terminationGracePeriodSeconds=2,
        )
    )
    await ready(kubelet, "kubelet", "stubborn")
    await until(lambda: "up" in kubelet.pod_log("kubelet", "stubborn", "main"))
    begun = time.monotonic()
    await kubelet.delete("v1", "Pod", "stubborn", "kubelet")
    await gone(kubelet, "kubelet", "stubborn")
    took = time.monotonic() - begun
    told = re.search(r"term (\S+)", kubelet.pod_log("kubelet", "stubborn", "main"))
    assert mark.exists()
    # The clock is one for all processes: SIGTERM came well before the end of the grace period.
    assert told is not None
    assert float(told[1]) - begun < 1.5 <= took


async def test_a_crashing_container_is_restarted_and_counted(kubelet):
    await kubelet.apply(pod("crashing", ["sleep", "600"], "kubelet"))
    await ready(kubelet, "kubelet", "crashing")
    await kubelet.signal_pod("kubelet", "crashing", signal.SIGKILL)
    status = await until_status(
        kubelet, "crashing", lambda status: status["containerStatuses"][0]["restartCount"] == 1
    )
    container = status["containerStatuses"][0]
    assert container["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGKILL
    await ready(kubelet, "kubelet", "crashing")
    await kubelet.delete("v1", "Pod", "crashing", "kubelet")


async def test_kubectl_shows_the_log_of_a_container(kubelet):
    await kubelet.apply(pod("chatty", ["sh", "-c", "seq 5; exec sleep 600"], "kubelet"))
    await ready(kubelet, "kubelet", "chatty")
    await until(lambda: "5" in kubelet.pod_log("kubelet", "chatty", "main"))
    kubectl = Path(sys.executable).with_name("kubectl")
    command = (kubectl, f"--kubeconfig={kubelet.kubeconfig}", "-n", "kubelet", "logs", "chatty")
    shown = await asyncio.to_thread(
        subprocess.run, (*command, "--tail=2"), capture_output=True, text=True, check=False
    )
    assert (shown.stdout, shown.stderr) == ("4\n5\n", "")
    await kubelet.delete("v1", "Pod", "chatty", "kubelet")


async def test_a_container_that_fails_its_liveness_probe_is_restarted(kubelet):
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    container = {"livenessProbe": probe}
    await kubelet.apply(pod("dead", ["sleep", "600"], "kubelet", container=container))
    await until_status(
        kubelet, "dead", lambda status: status["containerStatuses"][0]["restartCount"] >= 1
    )
    await kubelet.delete("v1", "Pod", "dead", "kubelet")


async def test_a_pod_that_the_stand_in_cannot_run_fails_and_says_why(kubelet):
    volumes = [{"name": "data", "hostPath": {"path": "/"}}]
    container = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    await kubelet.apply(pod("complex", ["true"], "kubelet", container=container, volumes=volumes))
    status = await until_status(kubelet, "complex", lambda status: status["phase"] == "Failed")
    assert "the volume data is hostPath" in status["message"]
    await kubelet.delete("v1", "Pod", "complex", "kubelet")


async def test_a_restricted_pod_sees_its_volumes_and_can_write_nowhere_else(kubelet):
    await kubelet.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "words", "namespace": "kubelet"},
            "data": {"word": "hello", "other": "x"},
        }
    )
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    first = {
        "name": "first",
        "image": "none",
        "command": ["sh", "-c", "echo made > /mnt/data/file"],
        "securityContext": restricted,
        "volumeMounts": [{"name": "data", "mountPath": "/mnt/data"}],
    }
    script = (
        "id -u; cat /data/file /words/word /one; ls /words;"
        " for each in / /usr /data /words /tmp; do"
        " touch $each/new 2> /dev/null && echo wrote $each; done; exec sleep 600"
    )
    mounts = [
        {"name": "data", "mountPath": "/data", "readOnly": True},
        {"name": "words", "mountPath": "/words"},
        {"name": "words", "mountPath": "/one", "subPath": "other"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    await kubelet.apply(
        pod(
            "restricted",
            ["sh", "-c", script],
            "kubelet",
            container={"securityContext": restricted, "volumeMounts": mounts},
            initContainers=[first],
            securityContext={"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532},
            volumes=[
                {"name": "data", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "words", "configMap": {"name": "words"}},
            ],
        )
    )
    await ready(kubelet, "kubelet", "restricted")
    await until(lambda: "wrote" in kubelet.pod_log("kubelet", "restricted", "main"))
    said = kubelet.pod_log("kubelet", "restricted", "main").split()
    assert said == ["65532", "made", "helloxother", "word", "wrote", "/tmp"]
    await kubelet.delete("v1", "Pod", "restricted", "kubelet")


async def test_a_pod_reaches_the_api_server_services_and_exposed_servers(kubelet):
    program = (
        "import os, ssl, urllib.request, socket\n"
        "secrets = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
        "host = os.environ['KUBERNETES_SERVICE_HOST'], os.environ['KUBERNETES_SERVICE_PORT']\n"
        "url = 'https://%s:%s/apis/apps/v1' % host\n"
        "token = {'Authorization': 'Bearer ' + open(secrets + 'token').read()}\n"
        "trusted = ssl.create_default_context(cafile=secrets + 'ca.crt')\n"
        "request = urllib.request.Request(url, headers=token)\n"
        "print(urllib.request.urlopen(request, context=trusted).status)\n"
        "with socket.create_connection(('host.kubelet', int(os.environ['HOST_PORT']))) as line:\n"
        "    print(line.recv(100).decode())\n"
    )

    async def greet(_, writer):
        writer.write(b"hello")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        inside = await kubelet.expose("kubelet", "host", 9001, target)
        number = {"name": "HOST_PORT", "value": inside.rpartition(":")[2]}
        container = {"env": [number]}
        idle = ["sleep", "600"]
        await kubelet.apply(pod("calling", idle, "kubelet", container=container))
        await ready(kubelet, "kubelet", "calling")
        output = await kubelet.execute("kubelet", "calling", ["python", "-c", program])
    assert output.split() == ["200", "hello"]
    await kubelet.delete("v1", "Pod", "calling", "kubelet")


async def test_a_pod_has_no_way_out_of_the_cluster(kubelet):
    await kubelet.apply(pod("caged", ["sleep", "600"], "kubelet"))
    await ready(kubelet, "kubelet", "caged")
    program = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    with pytest.raises(ClusterError, match=r"timed out|unreachable|refused"):
        await kubelet.execute("kubelet", "caged", ["python", "-c", program])
    await kubelet.delete("v1", "Pod", "caged", "kubelet")


async def test_a_killed_test_run_leaves_nothing_and_disturbs_no_other_cluster(
    shared_cluster, tmp_path
):
    program = (
        "import time\n"
        "from pathlib import Path\n"
        "from cluster import ClusterSettings, TestCluster\n"
        "settings = ClusterSettings(namespaces=('other',), controllers=False, istio=False)\n"
        f"with TestCluster.started(Path({str(tmp_path)!r}), settings):\n"
        "    print('started', flush=True)\n"
        "    time.sleep(600)\n"
    )
    networks = set(Path("/run/netns").glob("*"))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT / "tools"), "PATH": os.environ["PATH"]},
    ) as process:
        assert process.stdout.readline() == b"started\n"
        assert len(processes_of(tmp_path)) >= 2  # etcd and the API server
        process.kill()
    async with asyncio.timeout(WAIT_S):
        while processes_of(tmp_path):
            await asyncio.sleep(0.05)
    assert set(Path("/run/netns").glob("*")) == networks
    with pytest.raises(ApiError, match="not found"):
        await shared_cluster.get("v1", "Namespace", "other")


def pod(name, command, namespace, labels=None, *, container=None, **spec):
    main = {"name": "main", "image": "none", "command": command, **(container or {})}
    metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [main], **spec},
    }


def updated(deployment):
    """The objects of a Deployment with another Pod template."""
    for each in manifests("models"):
        if each["metadata"]["name"] == deployment:
            each["spec"]["template"]["metadata"]["annotations"] = {"tests/update": "1"}
            yield each


async def scale(cluster, deployment, replicas):
    for each in manifests("models"):
        if each["metadata"]["name"] == deployment:
            await cluster.apply(each | {"spec": each["spec"] | {"replicas": replicas}})


async def pod_names(cluster, deployment):
    version = deployment.rpartition("-")[2]
    found = await cluster.items("v1", "Pod", "models", selector=f"app=vision,version={version}")
    return {each["metadata"]["name"] for each in found}


async def health(cluster, caller):
    command = ["python", "-c", _HEALTH, "vision.models.svc.cluster.local:8500"]
    return (await cluster.execute("callers", caller, command)).strip()


async def until(is_so):
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.02)


async def until_both_answer(port):
    """Waits until the gateway knows the servers: a Pod is ready a little before that."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(grpc.RpcError):
                if len(await answers(port, 40)) == 2:
                    return


async def answers(port, count):
    """The versions that answer some calls, a few at a time."""
    request = vision_pb2.ClassifyRequest(images=[vision_pb2.Image(encoded=CAT.read_bytes())])
    versions = Counter()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = vision_pb2_grpc.VisionServiceStub(channel)

        async def call():
            for _ in range(count // PARALLEL):
                answer = await stub.Classify(request, timeout=WAIT_S, wait_for_ready=True)
                versions[answer.version] += 1

        await asyncio.gather(*(call() for _ in range(PARALLEL)))
    return versions


@dataclass
class Load:
    """What became of calls.

    Attributes:
        answered: How many calls succeeded.
        errors: The status and the message of each other call.
    """

    answered: int = 0
    errors: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def steady_calls(port):
    """Calls the servers all the time, by a method so cheap that many calls meet each change."""
    load = Load()

    async def call():
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    await stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
                except grpc.aio.AioRpcError as error:
                    load.errors.append(f"{error.code().name}: {error.details()}")
                else:
                    load.answered += 1
                await asyncio.sleep(PAUSE_S)

    callers = [asyncio.create_task(call()) for _ in range(PARALLEL)]
    try:
        yield load
    finally:
        for each in callers:
            each.cancel()
        await asyncio.gather(*callers, return_exceptions=True)


async def until_more(load):
    """Waits for some more calls."""
    begun = load.answered
    await until(lambda: load.answered >= begun + 200)


async def until_async(look, wanted):
    async with asyncio.timeout(WAIT_S):
        while await look() != wanted:
            await asyncio.sleep(0.1)


async def until_pods(cluster, deployment, is_so):
    async with asyncio.timeout(WAIT_S):
        while not is_so(await pod_names(cluster, deployment)):
            await asyncio.sleep(0.1)


async def until_status(cluster, name, is_so):
    async with asyncio.timeout(WAIT_S):
        while True:
            status = (await cluster.get("v1", "Pod", name, "kubelet"))["status"]
            if (status.get("containerStatuses") or status["phase"] == "Failed") and is_so(status):
                return status
            await asyncio.sleep(0.1)


async def ready(cluster, namespace, *names):
    async with asyncio.timeout(WAIT_S):
        for name in names:
            while not _is_ready(await cluster.get("v1", "Pod", name, namespace)):
                await asyncio.sleep(0.1)


def _is_ready(manifest):
    conditions = manifest["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def gone(cluster, namespace, name):
    async with asyncio.timeout(WAIT_S):
        while True:
            found = await cluster.items("v1", "Pod", namespace)
            if name not in {each["metadata"]["name"] for each in found}:
                return
            await asyncio.sleep(0.05)


def processes_of(folder):
    """The command lines on this machine that name a folder, but for the test's own child."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = each.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and " -c " not in line:
            found.append(line)
    return found
