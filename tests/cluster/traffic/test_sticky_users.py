"""Users stay on their version while shares grow: real calls, through a gateway and a sidecar.

istiod programs both proxies. An EnvoyFilter in the namespace of each makes routes sticky.
"""

import asyncio
import collections
import contextlib
import math
import time

import grpc
import msgspec
import pytest
import pytest_asyncio
from cluster_host import split
from cluster_objects import rollout
from istio_log_mesh import shipped
from source_traffic import watched
from user_calls import UserCalls, by_user, read_calls

from cluster.manifests import manifests
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import NotFoundError
from tidegate.kube.resources import ENVOY_FILTERS, PODS, VIRTUAL_SERVICES
from tidegate.rollout.traffic import Knowledge, MatchKind, Sticky, TrafficSplit
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.router.sources.source import Epoch
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
BY_COOKIE = Sticky(kind=MatchKind.COOKIE, name="session")
USERS = 200
WAIT_S = 60.0
SETTLE_S = 2.0


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
        selector = each.get("spec", {}).get("selector", {})
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


PARENT = item(
    *("networking.istio.io/v1", "VirtualService", "edge"),
    {
        "hosts": [HOST],
        "gateways": [f"{NAMESPACE}/in", "mesh"],
        "http": [
            {
                "name": "git",
                "match": [{"uri": {"prefix": "/"}, "name": "all"}],
                "retries": {"attempts": 0},
                "delegate": {"name": "vision-rollout", "namespace": NAMESPACE},
            }
        ],
    },
)


class Mesh:
    """The servers, their callers, and the router's receiver of access logs.

    Attributes:
        cluster: The cluster.
        client: The API server.
        log: The receiver.
        port: The loopback port of the gateway.
        write: How the rollouts write traffic.
        sticky: What names the users.
    """

    def __init__(self, cluster, client, log, port):
        self.cluster, self.client, self.log, self.port = cluster, client, log, port
        self.write, self.sticky = "own", BY_USER

    def traffic(self):
        """The traffic of a rollout, as a new process would have it."""
        objects = DirectObjects(self.client, (NAMESPACE, EDGE))
        process = ClusterTraffic(self.client, objects, self.log.observer)
        traffic = {"write": self.write}
        if self.write == "own":
            traffic["gateways"] = [f"{NAMESPACE}/in", "mesh"]
        sticky = {self.sticky.kind.value: self.sticky.name}
        return process.of(rollout(namespace=NAMESPACE, traffic=traffic, sticky=sticky))

    @contextlib.asynccontextmanager
    async def served(self, write="own", sticky=BY_USER):
        """Gives all requests to v1, and what calls through both proxies."""
        self.write, self.sticky = write, sticky
        if write == "delegate":
            await self.cluster.apply(PARENT)
        await self.traffic().apply("vision", split(v1=100), KEY)
        calls = UserCalls(f"127.0.0.1:{self.port}", USERS, authority=f"{HOST}:8500")
        try:
            async with calls.running():
                watch = Watch(self, calls)
                await watch.until_served()
                yield watch
        finally:
            for each in ("edge", "vision", "vision-rollout"):
                with contextlib.suppress(NotFoundError):
                    await self.client.delete(VIRTUAL_SERVICES, each, NAMESPACE)

    def sidecars_calls(self):
        return read_calls(self.cluster.pod_log(NAMESPACE, "caller", "main"))

    async def filters(self):
        """The namespaces that have an EnvoyFilter of Tidegate's."""
        found = [
            *(await self.client.list(ENVOY_FILTERS, NAMESPACE)).items,
            *(await self.client.list(ENVOY_FILTERS, EDGE)).items,
        ]
        return [each.metadata.namespace for each in found]

    def split(self, weight):
        weights = {"v2": float(weight), "v1": 100.0 - weight}
        return TrafficSplit(weights=weights, sticky=self.sticky)


class Watch:
    """The calls through both proxies.

    Attributes:
        since_s: Since when both proxies answer.
    """

    def __init__(self, mesh, through_gateway):
        self._mesh = mesh
        self._through_gateway = through_gateway
        self.since_s = 0.0

    @property
    def proxies(self):
        """The calls since the proxies answer, by proxy."""
        found = {
            "gateway": self._through_gateway.calls,
            "sidecar": self._mesh.sidecars_calls(),
        }
        return {
            name: [each for each in calls if each.began_s >= self.since_s]
            for name, calls in found.items()
        }

    async def until_served(self):
        """Waits until the last calls through each proxy were answered by v1."""
        async with asyncio.timeout(WAIT_S):
            while not all(
                {each.version for each in calls[-50:]} == {"v1"} for calls in self.proxies.values()
            ):
                await asyncio.sleep(0.2)
        self.since_s = time.time()

    @property
    def failed(self):
        return [each for calls in self.proxies.values() for each in calls if each.failed]

    async def until_all_called(self, since_s, times=3):
        """Waits until every user has called so often through each proxy; returns what answered."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [by_user(calls, since_s) for calls in self.proxies.values()]
                if all(
                    len(each) == USERS and min(map(len, each.values())) >= times for each in found
                ):
                    return found
                await asyncio.sleep(0.2)

    async def cohort(self, since_s):
        """The users of v2 since a moment: each had one version, and the same by both proxies."""
        cohorts = []
        for found in await self.until_all_called(since_s):
            moved = {user: versions for user, versions in found.items() if len(set(versions)) > 1}
            assert moved == {}
            cohorts.append({user for user, versions in found.items() if versions[0] == "v2"})
        assert cohorts[0] == cohorts[1]
        return cohorts[0]


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
        await pods_are_ready(client, "vision-v1", "vision-v2", "caller")
        yield Mesh(cluster, client, log, int(forwarded.rpartition(":")[2]))
    for each in ("caller", "vision-v1", "vision-v2"):
        await cluster.delete("v1", "Pod", each, NAMESPACE)
    await cluster.delete("apps/v1", "Deployment", "istio-ingressgateway", EDGE)
    for each in ways:
        name, namespace = (each["metadata"][key] for key in ("name", "namespace"))
        await cluster.delete(each["apiVersion"], each["kind"], name, namespace)
    await receiver.stop(0)


async def pods_are_ready(client, *names):
    async with asyncio.timeout(WAIT_S):
        for name in names:
            while not (await client.get(PODS, name, NAMESPACE)).is_ready:
                await asyncio.sleep(0.1)


def is_expected(cohort, percent):
    """Whether so many users are what a hash gives, within four standard deviations."""
    share = percent / 100
    return abs(len(cohort) - USERS * share) <= 4 * math.sqrt(USERS * share * (1 - share))


@pytest.mark.parametrize(
    ("write", "sticky"),
    [
        ("own", BY_USER),
        pytest.param("delegate", BY_COOKIE, marks=pytest.mark.long),
    ],
    ids=["own-header", "delegate-cookie"],
)
async def test_users_keep_their_version_while_its_share_grows_and_after_an_abort(
    mesh, write, sticky
):
    async with mesh.served(write, sticky) as watch:
        traffic, cohorts = mesh.traffic(), {}
        for percent in (10, 50, 100):
            applied = await traffic.apply("vision", mesh.split(percent), KEY)
            assert applied.known is Knowledge.OBSERVED, applied
            assert "through 2 proxies" in applied.detail
            cohorts[percent] = await watch.cohort(applied.since_s)
            assert is_expected(cohorts[percent], percent)
            assert (await traffic.read("vision")).split.same_as(mesh.split(percent))
        assert cohorts[10] < cohorts[50] < cohorts[100]
        for calls in watch.proxies.values():
            for versions in by_user(calls).values():
                # Nobody went back, not even for one call in the middle of a change.
                assert versions == sorted(versions)
        aborted = await traffic.apply("vision", split(v1=100), KEY, urgent=True)
        assert await watch.cohort(aborted.since_s) == set()
        assert await mesh.filters() == []
        again = await mesh.traffic().apply("vision", mesh.split(10), KEY)
        assert await watch.cohort(again.since_s) == cohorts[10]
        await traffic.apply("vision", split(v1=100), "")
        assert await mesh.filters() == []
        assert watch.failed == []


@pytest.mark.long
async def test_a_share_that_changes_by_parts_of_a_percent_moves_only_its_own_users(mesh):
    async with mesh.served() as watch:
        traffic, before = mesh.traffic(), set()
        for percent in (9.5, 10, 10.25, 33.333, 50):
            applied = await traffic.apply("vision", mesh.split(percent), KEY)
            cohort = await watch.cohort(applied.since_s)
            assert before <= cohort
            assert is_expected(cohort, percent)
            before = cohort
        await traffic.apply("vision", split(v1=100), "")
        assert watch.failed == []


@pytest.mark.long
async def test_users_are_counted_from_the_access_log_and_those_who_move_are_told(mesh):
    source = mesh.log.source
    async with mesh.served() as watch:
        traffic = mesh.traffic()
        wanted = mesh.split(50)
        applied = await traffic.apply("vision", wanted, KEY)
        shares = {name: share / 100 for name, share in wanted.weights.items()}
        source.watch(KEY, watched(host=HOST, sticky=BY_USER))
        source.begin_epoch(
            KEY, Epoch(shares=shares, requested_s=applied.requested_s, since_s=applied.since_s)
        )
        cohort = await watch.cohort(applied.since_s)
        counted = collections.Counter()
        async with asyncio.timeout(90):
            while counted.total() < USERS:
                for window in await source.take(KEY, time.time()):
                    counted.update({n: each.requests for n, each in window.versions.items()})
                await asyncio.sleep(0.5)
        # Thousands of calls; each user counts once.
        assert counted == {"v2": len(cohort), "v1": USERS - len(cohort)}
        assert "two versions" not in source.problem(KEY)
        (made,) = (await mesh.client.list(ENVOY_FILTERS, EDGE)).items
        await mesh.client.delete(ENVOY_FILTERS, made.metadata.name, EDGE)
        assert (await traffic.read("vision")).split.sticky is None
        async with asyncio.timeout(WAIT_S):
            while "had two versions under the present split" not in source.problem(KEY):
                await asyncio.sleep(0.2)
        again = await traffic.apply("vision", wanted, KEY)
        # istiod has had time for it, and sends the other proxies' routes no more than before.
        assert await watch.cohort(again.since_s + SETTLE_S) == cohort
        source.forget(KEY)
        await traffic.apply("vision", split(v1=100), "")
        assert watch.failed == []


@pytest.mark.long
@pytest.mark.parametrize(
    "edit",
    [
        # All to one version, as in a hurry.
        [("v2", 0), ("v1", 100)],
        [("v2", 100), ("v1", 0)],
        # A route to a single destination, which would be no route at all.
        [("v1", None)],
    ],
    ids=["all-to-v1", "all-to-v2", "single"],
)
async def test_an_edit_of_the_route_by_hand_breaks_no_proxy(mesh, edit):
    async with mesh.served() as watch:
        traffic = mesh.traffic()
        await traffic.apply("vision", mesh.split(50), KEY)
        edited = msgspec.to_builtins(await mesh.client.get(VIRTUAL_SERVICES, "vision", NAMESPACE))
        (route,) = edited["spec"]["http"]
        assert route["name"].startswith("tidegate-sticky.")
        port = route["route"][0]["destination"]["port"]
        route["route"] = [
            {"destination": {"host": HOST, "subset": subset, "port": port}}
            | ({} if weight is None else {"weight": weight})
            for subset, weight in edit
        ]
        await mesh.client.replace(VIRTUAL_SERVICES, edited, NAMESPACE, manager="kubectl-edit")
        problem = (await traffic.read("vision")).problem
        assert "only one version has weight in it" in problem
        # The rollout puts its own split in force again, and no proxy has refused its routes.
        again = await traffic.apply("vision", mesh.split(50), KEY)
        assert again.known is Knowledge.OBSERVED
        assert is_expected(await watch.cohort(again.since_s), 50)
        await traffic.apply("vision", split(v1=100), "")
        assert watch.failed == []
