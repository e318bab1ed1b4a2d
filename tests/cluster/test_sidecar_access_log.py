"""The access logs of sidecars: each call counts once, whoever logs it."""

import asyncio
import collections
import contextlib

import grpc
import pytest
import pytest_asyncio
from echo_server import SERVICE
from istio_log_mesh import shipped
from mesh_objects import VISION

from cluster import ClusterSettings, TestCluster, missing_parts
from tidegate.router.istio_log.istio_log import IstioLog

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.timeout(240),
]

WAIT_S = 60.0
INJECT = {"sidecar.istio.io/inject": "true"}
IDLE = ["python", "-c", "import signal; signal.pause()"]
# Calls a method so often, and prints how many calls succeeded.
CALL = f"""
import sys, grpc
target, count, user = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ok = 0
with grpc.insecure_channel(target) as channel:
    call = channel.unary_unary("/{SERVICE}/Unary")
    for _ in range(count):
        try:
            call(b"x", metadata=(("x-user-id", user),), timeout=10, wait_for_ready=True)
            ok += 1
        except grpc.RpcError as error:
            print(error.code(), error.details(), file=sys.stderr)
print(ok)
"""


def pod(name, command, namespace, labels):
    container = {"name": "main", "image": "test", "command": command}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [container]},
    }


def server(version):
    command = ["python", "tests/doubles/echo_server.py", "8500", version]
    made = pod(
        f"vision-{version}", command, "models", {"app": "vision", "version": version} | INJECT
    )
    probe = {"tcpSocket": {"port": 8500}, "periodSeconds": 1}
    made["spec"]["containers"][0] |= {
        "readinessProbe": probe,
        "ports": [{"containerPort": 8500}],
    }
    return made


SERVICE_OBJECT = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "vision", "namespace": "models"},
    "spec": {"selector": {"app": "vision"}, "ports": [{"name": "grpc", "port": 8500}]},
}


def routes(route):
    return (
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": {"name": "vision", "namespace": "models"},
            "spec": {
                "host": "vision",
                "subsets": [{"name": each, "labels": {"version": each}} for each in ("v1", "v2")],
            },
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "vision", "namespace": "models"},
            "spec": {"hosts": ["vision"], "http": [{"name": "vision@r1", **route}]},
        },
    )


def to(version):
    return {"host": "vision", "subset": version}


HALVES = {
    "route": [{"destination": to("v1"), "weight": 50}, {"destination": to("v2"), "weight": 50}]
}


class Mesh:
    """The cluster, and the records of the router's receiver.

    Attributes:
        cluster: The cluster.
    """

    def __init__(self, cluster, queue):
        self.cluster = cluster
        self._queue = queue
        self._records = []

    async def call(self, caller, count, user):
        """Calls so often from a Pod."""
        command = ["python", "-c", CALL, "vision.models:8500", str(count), user]
        assert int(await self.cluster.execute("callers", caller, command)) == count

    async def until(self, count, user):
        """The records of a user, when there are so many and a second later."""
        async with asyncio.timeout(WAIT_S):
            while len(self._of(user)) < count:
                self._records += await self._queue.next_batch(1000)
        # An entry too many would come with the next flush.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                while True:
                    self._records += await self._queue.next_batch(1000)
        return self._of(user)

    def _of(self, user):
        return [each for each in self._records if each.headers.get("x-user-id") == user]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    if missing := missing_parts():
        pytest.skip(missing)
    (provider,) = shipped("access-log/mesh-config.yaml")
    settings = ClusterSettings(
        mesh_config=provider, istiod_env={"DISABLE_SHADOW_HOST_SUFFIX": "false"}
    )
    log = IstioLog()
    receiver = grpc.aio.server()
    log.register(receiver)
    address = f"127.0.0.1:{receiver.add_insecure_port('127.0.0.1:0')}"
    await receiver.start()
    with (
        TestCluster.started(tmp_path_factory.mktemp("cluster"), settings) as cluster,
        log._requests.subscribe("test", capacity=10_000, wanted=lambda record: True) as queue,
    ):
        # istiod reads objects only in namespaces that it watches, its own root namespace too.
        for namespace in ("istio-system", "callers"):
            await cluster.create_namespace(namespace)
        await cluster.expose("tidegate-system", "tidegate-access-log", 9001, address)
        await cluster.apply(*shipped("access-log/telemetry.yaml"), SERVICE_OBJECT, *routes(HALVES))
        await cluster.apply(
            server("v1"),
            server("v2"),
            pod("inside", IDLE, "callers", INJECT),
            pod("outside", IDLE, "callers", {}),
        )
        async with asyncio.timeout(WAIT_S):
            for namespace, name in (
                *(("models", "vision-v1"), ("models", "vision-v2")),
                *(("callers", "inside"), ("callers", "outside")),
            ):
                while not await _is_ready(cluster, namespace, name):
                    await asyncio.sleep(0.1)
        yield Mesh(cluster, queue)
    await receiver.stop(0)


async def _is_ready(cluster, namespace, name):
    status = (await cluster.get("v1", "Pod", name, namespace))["status"]
    conditions = status.get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


async def test_a_call_between_two_sidecars_counts_once_by_the_callers_log(mesh):
    await mesh.call("inside", 40, "a")
    found = await mesh.until(40, "a")
    assert len(found) == 40
    assert {(each.host, each.route, each.server_side) for each in found} == {
        (VISION, "vision@r1", False)
    }
    versions = collections.Counter(each.subset for each in found)
    assert versions.keys() == {"v1", "v2"}
    assert all(each.model_version == each.subset for each in found)


async def test_a_caller_without_a_proxy_counts_by_the_servers_log(mesh):
    await mesh.call("outside", 20, "b")
    found = await mesh.until(20, "b")
    assert len(found) == 20
    assert {(each.host, each.server_side, each.mirrored) for each in found} == {
        (VISION, True, False)
    }
    # The version is the label of the server's Pod.
    assert all(each.model_version == each.subset for each in found)
    assert all(each.proxy.startswith("sidecar~") for each in found)


async def test_a_mirrored_copy_counts_by_the_log_of_the_shadow(mesh):
    copied = {
        "route": [{"destination": to("v1")}],
        "mirrors": [{"destination": to("v2"), "percentage": {"value": 100}}],
    }
    await mesh.cluster.apply(*routes(copied))
    async with asyncio.timeout(WAIT_S):
        number = 0
        while True:
            number += 1
            await mesh.call("inside", 5, f"try-{number}")
            found = await mesh.until(5, f"try-{number}")
            if sum(each.mirrored for each in found) == 5:
                break
    await mesh.call("inside", 20, "c")
    found = await mesh.until(40, "c")
    told = collections.Counter((each.subset, each.mirrored, each.server_side) for each in found)
    assert told == {("v1", False, False): 20, ("v2", True, True): 20}
    assert {each.host for each in found} == {VISION}
    assert {each.grpc_status for each in found} == {grpc.StatusCode.OK}
