"""Users stay on their version while shares grow: real calls, through a gateway and a sidecar.

istiod programs both proxies. An EnvoyFilter in the namespace of each makes routes sticky.
"""

import asyncio
import math

import grpc
import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import rollout
from istio_log_mesh import shipped
from user_calls import UserCalls, by_user, read_calls

from cluster.manifests import manifests
from tidegate.kube.client import KubeClient
from tidegate.kube.resources import ENVOY_FILTERS
from tidegate.rollout.traffic import Knowledge, MatchKind, Sticky, TrafficSplit
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.objects import DirectObjects

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.timeout(240),
]

NAMESPACE, EDGE = "sticky", "sticky-edge"
HOST = f"vision.{NAMESPACE}.svc.cluster.local"
KEY = f"{NAMESPACE}/vision-v2"
BY_USER = Sticky(kind=MatchKind.HEADER, name="x-user-id")
USERS = 200
WAIT_S = 60.0


def item(api_version, kind, name, spec, namespace=NAMESPACE, **metadata):
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": spec,
    }


def pod(name, command, labels, **container):
    container = {"name": "main", "image": "test", "command": command, **container}
    return item("v1", "Pod", name, {"containers": [container]}, labels=labels)


def server(version):
    command = ["python", "tests/doubles/echo_server.py", "8500", version]
    ready = {"tcpSocket": {"port": 8500}, "periodSeconds": 1}
    labels = {"app": "vision", "version": version}
    return pod(f"vision-{version}", command, labels, readinessProbe=ready)


def caller():
    command = ["python", "tests/doubles/user_calls.py", f"{HOST}:8500", str(USERS)]
    return pod("caller", command, {"sidecar.istio.io/inject": "true"})


def edge():
    """A gateway of these tests' own."""
    for each in manifests("ingress"):
        each["metadata"]["namespace"] = EDGE
        selector = each["spec"]["selector"]
        for labels in (selector, selector.get("matchLabels", {})):
            if "istio" in labels:
                labels["istio"] = EDGE
        if each["kind"] == "Deployment":
            each["spec"]["template"]["metadata"]["labels"]["istio"] = EDGE
        yield each


def telemetry(namespace):
    (found,) = shipped("access-log/telemetry.yaml")
    found["metadata"]["namespace"] = namespace
    return found


OBJECTS = [
    item(
        *("v1", "Service", "vision"),
        {"selector": {"app": "vision"}, "ports": [{"name": "grpc", "port": 8500}]},
    ),
    item(
        *("networking.istio.io/v1", "Gateway", "in"),
        {
            "selector": {"istio": EDGE},
            "servers": [
                {"port": {"number": 8500, "name": "grpc", "protocol": "GRPC"}, "hosts": ["*"]}
            ],
        },
    ),
]


class Mesh:
    """The servers, their callers, and the router's receiver of access logs.

    Attributes:
        cluster: The cluster.
        client: The API server.
        log: The receiver.
        port: The loopback port of the gateway.
    """

    def __init__(self, cluster, client, log, port):
        self.cluster, self.client, self.log, self.port = cluster, client, log, port

    def traffic(self):
        """The traffic of a rollout, as a new process would have it."""
        objects = DirectObjects(self.client, (NAMESPACE, EDGE))
        process = ClusterTraffic(self.client, objects, self.log.observer)
        traffic = {"write": "own", "gateways": [f"{NAMESPACE}/in", "mesh"]}
        sticky = {"header": BY_USER.name}
        return process.of(rollout(namespace=NAMESPACE, traffic=traffic, sticky=sticky))

    def sidecars_calls(self):
        return read_calls(self.cluster.pod_log(NAMESPACE, "caller", "main"))

    async def filters(self):
        """The namespaces that have an EnvoyFilter of Tidegate's."""
        found = [
            *(await self.client.list(ENVOY_FILTERS, NAMESPACE)).items,
            *(await self.client.list(ENVOY_FILTERS, EDGE)).items,
        ]
        return [each.metadata.namespace for each in found]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(shared_cluster):
    cluster, log = shared_cluster, IstioLog()
    receiver = grpc.aio.server()
    log.register(receiver)
    address = f"127.0.0.1:{receiver.add_insecure_port('127.0.0.1:0')}"
    await receiver.start()
    for namespace in (NAMESPACE, EDGE):
        await cluster.create_namespace(namespace)
    await cluster.expose("tidegate-system", "tidegate-access-log", 9001, address)
    ways = [telemetry(each) for each in (NAMESPACE, EDGE)]
    await cluster.apply(*ways, *OBJECTS, *edge(), server("v1"), server("v2"), caller())
    await cluster.deployed(EDGE, "istio-ingressgateway")
    forwarded = await cluster.forward(EDGE, "istio-ingressgateway", 8500)
    async with KubeClient.opened(kubeconfig=cluster.kubeconfig) as client, log.reading():
        await log.set_receivers([address])
        running = Mesh(cluster, client, log, int(forwarded.rpartition(":")[2]))
        # All requests to v1 from the start, not to every endpoint.
        await running.traffic().apply("vision", split(v1=100), KEY)
        yield running
    for each in ("caller", "vision-v1", "vision-v2"):
        await cluster.delete("v1", "Pod", each, NAMESPACE)
    await cluster.delete("apps/v1", "Deployment", "istio-ingressgateway", EDGE)
    for each in ways:
        await cluster.delete(
            each["apiVersion"], "Telemetry", "tidegate-access-log", each["metadata"]["namespace"]
        )
    await receiver.stop(0)


class Watch:
    """The calls through both proxies."""

    def __init__(self, mesh, through_gateway):
        self._mesh = mesh
        self.through_gateway = through_gateway

    @property
    def proxies(self):
        """The calls so far, by proxy."""
        return {
            "gateway": list(self.through_gateway.calls),
            "sidecar": self._mesh.sidecars_calls(),
        }

    async def cohort(self, since_s):
        """The users of v2, once every user has called three times since a moment.

        Every user had one version, and the same through both proxies.
        """
        async with asyncio.timeout(WAIT_S):
            while not all(
                len(found) == USERS and min(map(len, found.values())) >= 3
                for found in (by_user(each, since_s) for each in self.proxies.values())
            ):
                await asyncio.sleep(0.2)
        cohorts = []
        for calls in self.proxies.values():
            found = by_user(calls, since_s)
            moved = {user: versions for user, versions in found.items() if len(set(versions)) > 1}
            assert moved == {}
            cohorts.append({user for user, versions in found.items() if versions[0] == "v2"})
        assert cohorts[0] == cohorts[1]
        return cohorts[0]


def sticky(weight):
    weights = {"v2": float(weight), "v1": 100.0 - weight}
    return TrafficSplit(weights=weights, sticky=BY_USER)


def is_expected(cohort, percent):
    """Whether so many users are what a hash gives, within four standard deviations."""
    share = percent / 100
    return abs(len(cohort) - USERS * share) <= 4 * math.sqrt(USERS * share * (1 - share))


async def test_users_keep_their_version_while_its_share_grows_and_after_an_abort(mesh):
    traffic, cohorts = mesh.traffic(), {}
    calls = UserCalls(f"127.0.0.1:{mesh.port}", USERS, authority=f"{HOST}:8500")
    async with calls.running():
        watch = Watch(mesh, calls)
        assert await watch.cohort(0) == set()
        for percent in (10, 50, 100):
            applied = await traffic.apply("vision", sticky(percent), KEY)
            assert applied.known is Knowledge.OBSERVED, applied
            assert "through 2 proxies" in applied.detail
            cohorts[percent] = await watch.cohort(applied.since_s)
            assert is_expected(cohorts[percent], percent)
            assert (await traffic.read("vision")).split.same_as(sticky(percent))
        assert cohorts[10] < cohorts[50] < cohorts[100]
        for calls_of in watch.proxies.values():
            for versions in by_user(calls_of).values():
                # Nobody went back, not even for one call in the middle of a change.
                assert versions == sorted(versions)
        aborted = await traffic.apply("vision", split(v1=100), KEY, urgent=True)
        assert await watch.cohort(aborted.since_s) == set()
        assert await mesh.filters() == []
        again = await mesh.traffic().apply("vision", sticky(10), KEY)
        assert await watch.cohort(again.since_s) == cohorts[10]
        await traffic.apply("vision", split(v1=100), "")
        assert await mesh.filters() == []
        failed = [each for found in watch.proxies.values() for each in found if each.failed]
    assert failed == []
