"""The access logs of sidecars: each call counts once, whoever logs it."""

import asyncio
import collections
import contextlib
import json
import time

import grpc
import pytest
import pytest_asyncio
from echo_server import SERVICE
from istio_log_mesh import shipped
from mesh_objects import VISION

from cluster import ClusterSettings, TestCluster, missing_parts
from tidegate.rollout.traffic import Knowledge
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.traffic.observing import WrittenChange

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


# Calls for some seconds, and prints when each call began and which revision answered.
LOAD = f"""
import json, sys, time, grpc
target, end_s, calls = sys.argv[1], time.time() + float(sys.argv[2]), []
with grpc.insecure_channel(target) as channel:
    method = channel.unary_unary("/{SERVICE}/Unary")
    while time.time() < end_s:
        began_s = time.time()
        _, call = method.with_call(b"x", timeout=10)
        calls.append((began_s, dict(call.initial_metadata()).get("x-revision")))
        time.sleep(0.005)
print(json.dumps(calls))
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


def routes(route, revision="r1"):
    answer = {"response": {"set": {"x-revision": revision}}}
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
            "spec": {
                "hosts": ["vision"],
                "http": [{"name": f"vision@{revision}", "headers": answer, **route}],
            },
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
        log: The receiver.
    """

    def __init__(self, cluster, queue, log):
        self.cluster = cluster
        self.log = log
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
    settings = ClusterSettings(istiod_env={"DISABLE_SHADOW_HOST_SUFFIX": "false"})
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
            pod("inside-2", IDLE, "callers", INJECT),
            pod("outside", IDLE, "callers", {}),
        )
        async with asyncio.timeout(WAIT_S):
            for namespace, name in (
                *(("models", "vision-v1"), ("models", "vision-v2")),
                *(("callers", "inside"), ("callers", "inside-2"), ("callers", "outside")),
            ):
                while not await _is_ready(cluster, namespace, name):
                    await asyncio.sleep(0.1)
        async with log.reading():
            await log.set_receivers([address])
            yield Mesh(cluster, queue, log)
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


async def test_a_change_is_in_force_when_the_last_sidecar_has_it(mesh, request):
    splits = [{"v1": 90, "v2": 10}, {"v1": 10, "v2": 90}]
    lateness, took = [], []
    for number in range(3):
        before, after = splits[number % 2], splits[(number + 1) % 2]
        old, new = f"s{number}", f"s{number + 1}"
        await mesh.cluster.apply(*routes(weighted(before), old))
        loads = [
            asyncio.create_task(
                mesh.cluster.execute(
                    "callers", caller, ["python", "-c", LOAD, "vision.models:8500", "5"]
                )
            )
            for caller in ("inside", "inside-2")
        ]
        await asyncio.sleep(2)
        await mesh.cluster.apply(*routes(weighted(after), new))
        change = WrittenChange(
            host=VISION,
            before={name: share / 100 for name, share in before.items()},
            after={name: share / 100 for name, share in after.items()},
            revision=new,
            written_s=time.time(),
            settle_s=20.0,
        )
        sighting = await mesh.log.observer.in_force(change)
        took.append(time.time() - change.written_s)
        assert sighting.known is Knowledge.OBSERVED, sighting
        assert "through 2 proxies" in sighting.detail
        calls = [each for load in loads for each in json.loads(await load)]
        last_old_s = max(began_s for began_s, revision in calls if revision != new)
        lateness.append(sighting.since_s - last_old_s)
    request.node.user_properties += [("since_after_last_old_call_s", lateness)]
    request.node.user_properties += [("told_after_s", took)]
    # A call begins in its client a little before its proxy notes its start.
    assert min(lateness) > -0.005, lateness
    assert max(lateness) < 0.5, lateness


def weighted(weights):
    return {"route": [{"destination": to(name), "weight": each} for name, each in weights.items()]}
