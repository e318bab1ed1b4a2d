"""The models behind a gateway of a real istiod, with the router beside them, on the test cluster.

The candidate's faults come from an EnvoyFilter on its sidecar, so both servers are real.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import time
from pathlib import Path

from laptop_mesh import CLASSIFIER, MODELS
from router_program import documents

from cluster.manifests import manifests, read_manifests, router_manifests
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError, NotFoundError
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ROLLOUTS,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)
from tidegate.rollout.crd.command import RolloutCommand, command_text

ROOT = Path(__file__).parents[2]
NAMESPACE = "models"
OWN = "tidegate-system"
ROUTERS = 2
ENDED = ("Promoted", "Aborted", "Completed", "Refused", "Superseded")
ENVOY_FILTERS = Resource("networking.istio.io", "v1alpha3", "envoyfilters", "EnvoyFilter", Manifest)
PEER_AUTHENTICATIONS = Resource(
    "security.istio.io", "v1", "peerauthentications", "PeerAuthentication", Manifest
)
_OURS = {"app.kubernetes.io/managed-by": "tidegate"}
_MODELS_S = 180.0
_WAIT_S = 60.0
_HCM = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
    ".HttpConnectionManager"
)
_FAULT = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"


class ModelCluster:
    """The cluster with models, gateway and router.

    Attributes:
        cluster: The test cluster.
        client: The administrator's.
        port: The loopback port of the gateway.
    """

    def __init__(self, cluster, client, port):
        self.cluster = cluster
        self.client = client
        self.port = port
        self._numbers = itertools.count(1)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, cluster):
        await cluster.apply(
            *manifests("ingress", "models"), *read_manifests(ROOT / "mesh/istio/base/traffic")
        )
        await cluster.apply(*router_manifests("--settle-s=3", "--lease-duration-s=5"))
        await cluster.deployed("istio-ingress", "istio-ingressgateway", timeout_s=_MODELS_S)
        await cluster.deployed(NAMESPACE, "vision-v1", "vision-v2", timeout_s=_MODELS_S)
        await cluster.deployed(OWN, "tidegate-router", timeout_s=_MODELS_S)
        address = await cluster.forward("istio-ingress", "istio-ingressgateway", 8500)
        async with KubeClient.opened(kubeconfig=cluster.kubeconfig) as client:
            yield cls(cluster, client, int(address.rpartition(":")[2]))

    async def start_over(self, way="patch"):
        """Gives all calls to v1, by objects that suit a way of writing traffic."""
        for name in ("vision", "vision-rollout"):
            with contextlib.suppress(NotFoundError):
                await self.client.delete(VIRTUAL_SERVICES, name, NAMESPACE)
        service, rule = documents("mesh/istio/base/traffic/vision.yaml")
        (route,) = service["spec"]["http"]
        for each in route["route"]:
            each["weight"] = 100 * (each["destination"]["subset"] == "v1")
        if way == "delegate":
            # First what is delegated to: istiod drops routes that delegate to nothing.
            delegate = copy.deepcopy(service)
            delegate["metadata"] = {"name": "vision-rollout", "labels": _OURS}
            delegate["spec"] = {"http": [{"route": delegate["spec"]["http"][0]["route"]}]}
            await self._apply(VIRTUAL_SERVICES, delegate)
            named = {"name": "vision-rollout", "namespace": NAMESPACE}
            # Its retries stay: Istio's own would hide the candidate's failures.
            del route["route"]
            route["delegate"] = named
        elif way == "own":
            service["metadata"]["labels"] = _OURS
        elif way == "mesh":
            service["spec"] |= {"hosts": ["vision"], "gateways": ["mesh"]}
        await self._apply(VIRTUAL_SERVICES, service)
        await self._apply(DESTINATION_RULES, rule)

    async def _apply(self, resource, body):
        body["metadata"]["namespace"] = NAMESPACE
        await self.client.apply(resource, body, manager="git", force=True)

    @contextlib.asynccontextmanager
    async def caller(self, kind, rate):
        """A Pod that calls `vision` at a steady rate, with a sidecar or as a proxyless client."""
        name = f"caller-{kind}"
        host = f"vision.{NAMESPACE}.svc.cluster.local:8500"
        load = "exec python tests/doubles/pod_load.py"
        if kind == "sidecar":
            command, labels = f"{load} {host} {rate}", {"sidecar.istio.io/inject": "true"}
        else:
            xds = "python -m tidegate.client.xds istiod.istio-system.svc:15010"
            command = f"{xds} --namespace {NAMESPACE} > $BOOTSTRAP && GRPC_XDS_BOOTSTRAP=$BOOTSTRAP"
            command, labels = f"{command} {load} xds:///{host} {rate}", {}
        file = self.cluster.folder / f"{name}.json"
        container = {
            "name": "load",
            "image": "load",
            "command": ["sh", "-c", command],
            "env": [
                {"name": "BOOTSTRAP", "value": str(file)},
                {"name": "PYTHONPATH", "value": "tests/doubles"},
            ],
        }
        template = {
            "metadata": {"labels": {"app": name, **labels}},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 30},
        }
        await self.cluster.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
            }
        )
        await self.cluster.deployed(NAMESPACE, name, timeout_s=_WAIT_S)
        (pod,) = await self.cluster.items("v1", "Pod", NAMESPACE, selector=f"app={name}")
        try:
            yield PodLoad(self.cluster, pod["metadata"]["name"])
        finally:
            await self.cluster.delete("apps/v1", "Deployment", name, NAMESPACE)

    async def weights(self, name="vision"):
        """The shares in a VirtualService, by subset, without zeros."""
        service = await self.client.get(VIRTUAL_SERVICES, name, NAMESPACE)
        routes = service.spec["http"][-1]["route"]
        return {
            each["destination"]["subset"]: each.get("weight", 100)
            for each in routes
            if each.get("weight", 100)
        }

    async def apply(self, name, **spec):
        """Applies a Rollout of `vision` from v1 to v2."""
        body = {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"host": "vision", "baseline": "v1", "candidate": "v2", **spec},
        }
        return await self.client.apply(ROLLOUTS, body, manager="user")

    async def follow(self, name, *phases, timeout_s=200.0):
        """Waits until a Rollout has ended, or is in one of some phases, and returns it."""
        deadline_s = time.monotonic() + timeout_s
        seen = None
        while time.monotonic() < deadline_s:
            with contextlib.suppress(KubeError):
                seen = await self.client.get(ROLLOUTS, name, NAMESPACE)
                if seen.status.get("phase") in (phases or ENDED):
                    return seen
            await asyncio.sleep(0.1)
        raise AssertionError(f"{name} is {seen and _told(seen.status)}")

    async def command(self, name, kind, **fields):
        """Gives a command, and returns the answer."""
        given = RolloutCommand(id=f"test-{next(self._numbers)}", kind=kind, **fields)
        patch = {"metadata": {"annotations": {"tidegate.dev/command": command_text(given)}}}
        await self.client.merge(ROLLOUTS, name, NAMESPACE, patch, manager="user")
        async with asyncio.timeout(_WAIT_S):
            while True:
                seen = await self.client.get(ROLLOUTS, name, NAMESPACE)
                answer = seen.status.get("lastCommand", {})
                if answer.get("id") == given.id:
                    return answer
                await asyncio.sleep(0.05)

    async def delete(self, name):
        """Deletes a Rollout; returns when it is gone."""
        with contextlib.suppress(NotFoundError):
            await self.client.delete(ROLLOUTS, name, NAMESPACE)
            async with asyncio.timeout(_WAIT_S):
                while True:
                    await self.client.get(ROLLOUTS, name, NAMESPACE)
                    await asyncio.sleep(0.05)

    async def set_fault(self, *, unavailable=0, delay_s=0.0):
        """Has the candidate's sidecar fail calls, in percent, and delay all of them."""
        name = "candidate-fault"
        if not unavailable and not delay_s:
            with contextlib.suppress(NotFoundError):
                await self.client.delete(ENVOY_FILTERS, name, NAMESPACE)
            return
        fault = {"@type": _FAULT}
        if unavailable:
            fault["abort"] = {"grpc_status": 14, "percentage": {"numerator": unavailable}}
        if delay_s:
            fault["delay"] = {"fixed_delay": f"{delay_s}s", "percentage": {"numerator": 100}}
        inbound = {
            "context": "SIDECAR_INBOUND",
            "listener": {
                "filterChain": {
                    "filter": {
                        "name": "envoy.filters.network.http_connection_manager",
                        "subFilter": {"name": "envoy.filters.http.router"},
                    }
                }
            },
        }
        patch = {
            "operation": "INSERT_BEFORE",
            "value": {"name": "candidate-fault", "typed_config": fault},
        }
        spec = {
            "workloadSelector": {"labels": {"app": "vision", "version": "v2"}},
            "configPatches": [{"applyTo": "HTTP_FILTER", "match": inbound, "patch": patch}],
        }
        body = {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}
        await self.client.apply(ENVOY_FILTERS, body, manager="test", force=True)

    async def require_mtls(self, *, off=False):
        """Has servers refuse calls in plain text."""
        name = "strict"
        if off:
            with contextlib.suppress(NotFoundError):
                await self.client.delete(PEER_AUTHENTICATIONS, name, NAMESPACE)
            return
        body = {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"mtls": {"mode": "STRICT"}},
        }
        await self.client.apply(PEER_AUTHENTICATIONS, body, manager="test")

    def router_logs(self):
        """The logs of the router's Pods."""
        return {
            path.parent.name: path.read_text()
            for path in (self.cluster.folder / "pods" / OWN).glob("*/router.log")
        }


class PodLoad:
    """What became of the calls of a Pod, as far as it has told."""

    def __init__(self, cluster, pod):
        self._cluster = cluster
        self._pod = pod

    def told(self):
        """The finished calls by code and by version, and the first errors."""
        lines = self._cluster.pod_log(NAMESPACE, self._pod, "load").splitlines()
        told = [json.loads(each) for each in lines if each.startswith("{")]
        return told[-1] if told else {"codes": {}, "versions": {}, "errors": []}

    async def until_answered(self, count):
        async with asyncio.timeout(_WAIT_S):
            while self.told()["codes"].get("OK", 0) < count:
                await asyncio.sleep(0.2)


def messages(manifest, kind):
    """The messages of the events of a kind in the history of a Rollout."""
    return [each["message"] for each in manifest.status["history"] if each["kind"] == kind]


def has_models():
    """Whether both versions of the classifier are built."""
    return all((MODELS / CLASSIFIER / version).exists() for version in ("1-fp32", "1-int8"))


def _told(status):
    return {key: status.get(key) for key in ("phase", "step", "message", "problem", "split")}
