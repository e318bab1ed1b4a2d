"""Traffic while the API server misbehaves, and under the Role that ships."""

import itertools
import json
import ssl
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
import yaml
from cluster_host import SERVICE_ACCOUNTS, ClusterHost, split
from cluster_objects import destination_rule, istio, to, virtual_service
from faulty_api import Fault, FaultyApi

from tidegate.kube.client import KubeClient
from tidegate.kube.resources import Manifest, Resource
from tidegate.traffic.router import TrafficError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]

# A call through the proxy may also miss its short deadline on a busy machine.
_TRIES = 6
NAMES = {"patch": "vision", "own": "vision", "delegate": "vision-rollout"}
MODES = pytest.mark.parametrize("write", list(NAMES))
GIT = virtual_service(to("v2", 0), to("v1", 100))
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role", Manifest)
BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding", Manifest)
SHIPPED = Path(__file__).parents[3] / "mesh/istio/router/rbac-models.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def faulty(api, tmp_path_factory):
    async with FaultyApi.running(api, tmp_path_factory.mktemp("faulty")) as running:
        yield running


async def prepare(host, write):
    if write == "patch":
        await host.apply(destination_rule("v1", "v2"))
        await host.apply(GIT)
    if write == "delegate":
        edge = {"hosts": ["a.example.com"], "http": [{"delegate": {"name": "vision-rollout"}}]}
        await host.apply(istio("VirtualService", "edge", edge))


@pytest.mark.parametrize("write", ["patch", "own"])
@pytest.mark.parametrize(
    "fault",
    [Fault.THROTTLE, Fault.FAIL, Fault.CONFLICT, Fault.HANG, Fault.DROP, Fault.LOSE_ANSWER],
    ids=lambda fault: fault.name.lower(),
)
async def test_each_write_that_fails_once_is_made_by_a_later_try(faulty, bare_host, write, fault):
    await prepare(bare_host, write)
    async with KubeClient.opened(kubeconfig=faulty.kubeconfig, deadline_s=0.8) as client:
        host = ClusterHost(client, bare_host.namespace)
        for number in itertools.count():
            seen = []

            def fail_one(call, number=number, seen=seen):
                if call.method not in ("PATCH", "POST", "PUT"):
                    return None
                seen.append(call)
                return fault if len(seen) == number + 1 else None

            faulty.fault = fail_one
            await cycle(host, write, bare_host)
            if len(seen) <= number:
                break
        faulty.fault = lambda call: None
    assert number >= 3
    assert (await bare_host.service(NAMES[write])).metadata.annotations == {}
    if write == "patch":
        assert (await bare_host.service()).spec == GIT["spec"]


async def cycle(host, write, seen):
    """Takes the traffic, raises the share, and gives it back; each as often as it takes.

    `seen` is the same host by a client whose calls do not fail.
    """
    key = f"{host.namespace}/vision-v2"
    traffic = host.traffic(write)
    for wanted, owner in ((split(v1=99, v2=1), key), (split(v1=50, v2=50), key)):
        await insist(traffic, wanted, owner)
        assert await seen.weights(NAMES[write]) == wanted.weights
        read = await seen.traffic(write).read("vision")
        assert (read.owner, read.problem) == (key, "")
    await insist(traffic, split(v1=100), "")
    assert (await seen.weights(NAMES[write]))["v1"] == 100


async def insist(traffic, wanted, owner):
    for _ in range(_TRIES):
        try:
            return await traffic.apply("vision", wanted, owner)
        except TrafficError as error:
            if error.permanent:
                raise
    raise AssertionError(f"{wanted} is not in force after {_TRIES} tries")


def shipped_rules():
    """The rules of the Role for a namespace of models."""
    documents = yaml.safe_load_all(SHIPPED.read_text())
    (role,) = (each for each in documents if each["kind"] == "Role")
    return role["rules"]


async def as_router(api, host, folder, rules):
    """A kubeconfig of a service account that has some rules in the namespace of a host."""
    meta = {"name": "router", "namespace": host.namespace}
    await host.client.apply(SERVICE_ACCOUNTS, {"metadata": meta}, manager="tests")
    await host.client.apply(ROLES, {"metadata": meta, "rules": rules}, manager="tests")
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "router"}
    subject = {"kind": "ServiceAccount", **meta}
    binding = {"metadata": meta, "roleRef": role, "subjects": [subject]}
    await host.client.apply(BINDINGS, binding, manager="tests")
    config = json.loads(api.kubeconfig.read_text())
    user = config["users"][0]["user"]
    url = f"{api.url}/api/v1/namespaces/{host.namespace}/serviceaccounts/router/token"
    trusted = ssl.create_default_context(cafile=api.certificate)
    headers = {"Authorization": f"Bearer {user['token']}"}
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json=request, ssl=trusted) as answer,
    ):
        user["token"] = (await answer.json())["status"]["token"]
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


@MODES
async def test_the_shipped_role_suffices(api, bare_host, tmp_path, write):
    await prepare(bare_host, write)
    kubeconfig = await as_router(api, bare_host, tmp_path, shipped_rules())
    async with KubeClient.opened(kubeconfig=kubeconfig) as client:
        await cycle(ClusterHost(client, bare_host.namespace), write, bare_host)


@pytest.mark.parametrize(
    ("resource", "verb"),
    list(itertools.product(["virtualservices", "destinationrules"], ["get", "patch", "create"])),
)
async def test_a_right_that_is_missing_is_named(api, bare_host, tmp_path, resource, verb):
    rules = [
        {**rule, "resources": [name], "verbs": [each for each in rule["verbs"] if each != verb]}
        if name == resource
        else {**rule, "resources": [name]}
        for rule in shipped_rules()
        for name in rule["resources"]
    ]
    kubeconfig = await as_router(api, bare_host, tmp_path, rules)
    key = f"{bare_host.namespace}/vision-v2"
    async with KubeClient.opened(kubeconfig=kubeconfig) as client:
        traffic = ClusterHost(client, bare_host.namespace).traffic("own")
        with pytest.raises(TrafficError, match="a Role of the controller lacks a rule") as error:
            await traffic.apply("vision", split(v1=90, v2=10), key)
        assert resource in str(error.value)
        assert f"cannot {verb} resource" in str(error.value)
        assert not error.value.permanent
