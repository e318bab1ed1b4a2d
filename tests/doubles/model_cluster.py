"""The models behind a gateway of a real istiod, with the router beside them, on the test cluster.

The candidate's faults come from an EnvoyFilter on its sidecar, so both servers are real.
"""

import asyncio
import contextlib
import copy
import itertools
import time
from pathlib import Path

from candidate_faults import FAULT_NAME, fault_filter
from laptop_mesh import CLASSIFIER, LANGUAGE_MODEL, MODELS
from pod_callers import PodLoad, caller_deployment
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
PORTS = {"vision": 8500, "llm": 8600}
_FILES = {"vision": "models", "llm": "llm"}
_OURS = {"app.kubernetes.io/managed-by": "tidegate"}
_MODELS_S = {"vision": 180.0, "llm": 480.0}
_WAIT_S = 60.0


class ModelCluster:
    """The cluster with the models of one host, gateway and router.

    Attributes:
        cluster: The test cluster.
        client: The administrator's.
        host: The host: `vision` or `llm`.
        port: The loopback port of the gateway.
    """

    def __init__(self, cluster, client, host, port):
        self.cluster = cluster
        self.client = client
        self.host = host
        self.port = port
        self._numbers = itertools.count(1)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, cluster, host="vision"):
        """Runs two versions: of `vision` the classifier's precisions, of `llm` the same model."""
        await cluster.apply(
            *manifests("ingress", _FILES[host]), *read_manifests(ROOT / "mesh/istio/base/traffic")
        )
        await cluster.apply(*router_manifests("--settle-s=3", "--lease-duration-s=5"))
        await cluster.deployed("istio-ingress", "istio-ingressgateway", timeout_s=_WAIT_S)
        await cluster.deployed(OWN, "tidegate-router", timeout_s=_WAIT_S)
        address = await cluster.forward("istio-ingress", "istio-ingressgateway", PORTS[host])
        async with KubeClient.opened(kubeconfig=cluster.kubeconfig) as client:
            models = cls(cluster, client, host, int(address.rpartition(":")[2]))
            if host == "llm":
                # One after another: each takes all the processors while it starts.
                await models.deployed("v1")
                await models.deploy("v2")
            await models.deployed("v1", "v2")
            yield models

    async def deployed(self, *versions):
        """Waits until versions run."""
        names = [f"{self.host}-{each}" for each in versions]
        await self.cluster.deployed(NAMESPACE, *names, timeout_s=_MODELS_S[self.host])

    async def deploy(self, version, **settings):
        """Runs a version like v1, but for some settings of its server; replaces what runs of it."""
        (made,) = (
            each
            for each in manifests(_FILES[self.host])
            if each["metadata"]["name"] == f"{self.host}-v1" and each["kind"] == "Deployment"
        )
        made["metadata"]["name"] = f"{self.host}-{version}"
        template = made["spec"]["template"]
        for labels in (
            made["metadata"]["labels"],
            made["spec"]["selector"]["matchLabels"],
            template["metadata"]["labels"],
        ):
            labels["version"] = version
        # Two of a language model at once would not fit.
        made["spec"]["strategy"] = {"type": "Recreate"}
        (container,) = template["spec"]["containers"]
        if "model_repository" in settings:
            # It lies somewhere on this machine, and not in a volume.
            for part in (container, template["spec"]):
                part.pop("securityContext")
            for part in ("initContainers", "volumes"):
                template["spec"].pop(part)
            container.pop("volumeMounts")
        options = {name.replace("_", "-"): value for name, value in settings.items()}
        kept = [each for each in container["args"] if each[2:].partition("=")[0] not in options]
        container["args"] = kept + [f"--{name}={value}" for name, value in options.items()]
        await self.cluster.apply(made)
        await self.deployed(version)

    async def remove(self, version):
        """Ends a version."""
        await self.cluster.delete("apps/v1", "Deployment", f"{self.host}-{version}", NAMESPACE)

    async def start_over(self, way="patch", *, callers="gateway", candidate="v2"):
        """Gives all calls to v1, by objects that suit a way of writing traffic.

        Args:
            way: How the next rollout writes.
            callers: Who calls: `gateway` for those outside, `mesh` for Pods.
            candidate: The version that has no calls.
        """
        host = self.host
        for name in (host, f"{host}-rollout"):
            with contextlib.suppress(NotFoundError):
                await self.client.delete(VIRTUAL_SERVICES, name, NAMESPACE)
        service, rule = documents(f"mesh/istio/base/traffic/{host}.yaml")
        rule["spec"]["subsets"] = [
            {"name": each, "labels": {"version": each}} for each in ("v1", candidate)
        ]
        (route,) = service["spec"]["http"]
        port = {"number": PORTS[host]}
        route["route"] = [
            {"destination": {"host": host, "subset": each, "port": port}, "weight": weight}
            for each, weight in ((candidate, 0), ("v1", 100))
        ]
        if callers == "mesh":
            service["spec"] |= {"hosts": [host], "gateways": ["mesh"]}
        if way == "delegate":
            # First what is delegated to: istiod drops routes that delegate to nothing.
            delegate = copy.deepcopy(service)
            delegate["metadata"] = {"name": f"{host}-rollout", "labels": _OURS}
            delegate["spec"] = {"http": [{"route": route.pop("route")}]}
            await self._apply(VIRTUAL_SERVICES, delegate)
            # Its retries stay: Istio's own would hide the candidate's failures.
            route["delegate"] = {"name": f"{host}-rollout", "namespace": NAMESPACE}
        elif way == "own":
            service["metadata"]["labels"] = _OURS
        await self._apply(VIRTUAL_SERVICES, service)
        await self._apply(DESTINATION_RULES, rule)

    def traffic(self, way, callers="gateway"):
        """The section `traffic` of a rollout that writes in a way."""
        if way != "own" or callers == "mesh":
            return {"write": way}
        return {"write": "own", "hosts": ["*"], "gateways": [self.host]}

    async def carrier(self, way):
        """The VirtualService that has the weights."""
        name = f"{self.host}-rollout" if way == "delegate" else self.host
        return await self.client.get(VIRTUAL_SERVICES, name, NAMESPACE)

    async def _apply(self, resource, body):
        body["metadata"]["namespace"] = NAMESPACE
        await self.client.apply(resource, body, manager="git", force=True)

    @contextlib.asynccontextmanager
    async def caller(self, kind, rate):
        """A Pod that calls the host at a steady rate, with a sidecar or as a proxyless client."""
        name = f"caller-{kind}"
        target = f"{self.host}.{NAMESPACE}.svc.cluster.local:{PORTS[self.host]}"
        bootstrap = self.cluster.folder / f"{name}.json" if kind == "proxyless" else None
        made = caller_deployment(name, NAMESPACE, target, rate, bootstrap)
        await self.cluster.apply(made)
        await self.cluster.deployed(NAMESPACE, name, timeout_s=_WAIT_S)
        selector = f"app={name}"
        (pod,) = await self.cluster.items("v1", "Pod", NAMESPACE, selector=selector)
        try:
            yield PodLoad(self.cluster, NAMESPACE, pod["metadata"]["name"])
        finally:
            await self.cluster.delete("apps/v1", "Deployment", name, NAMESPACE)
            async with asyncio.timeout(_WAIT_S):
                while await self.cluster.items("v1", "Pod", NAMESPACE, selector=selector):
                    await asyncio.sleep(0.2)

    async def weights(self, way="patch"):
        """The shares in the VirtualService that has them, by subset, without zeros."""
        routes = (await self.carrier(way)).spec["http"][-1]["route"]
        return {
            each["destination"]["subset"]: each.get("weight", 100)
            for each in routes
            if each.get("weight", 100)
        }

    async def apply(self, name, **spec):
        """Applies a Rollout from v1 to v2."""
        versions = {"baseline": "v1", "candidate": "v2"}
        body = {
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"host": self.host, **versions, **spec},
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

    async def set_fault(self, version="v2", **fault):
        """Has a version's sidecar fail, delay or cut calls; see `fault_filter`; else none."""
        if fault:
            body = fault_filter(self.host, version, **fault)
            body["metadata"]["namespace"] = NAMESPACE
            await self.client.apply(ENVOY_FILTERS, body, manager="test", force=True)
            return
        with contextlib.suppress(NotFoundError):
            await self.client.delete(ENVOY_FILTERS, FAULT_NAME, NAMESPACE)

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


def messages(manifest, kind):
    """The messages of the events of a kind in the history of a Rollout."""
    return [each["message"] for each in manifest.status["history"] if each["kind"] == kind]


def has_models(host="vision"):
    """Whether the models of a host are built."""
    if host == "llm":
        return (MODELS / LANGUAGE_MODEL).exists()
    return all((MODELS / CLASSIFIER / version).exists() for version in ("1-fp32", "1-int8"))


def _told(status):
    return {key: status.get(key) for key in ("phase", "step", "message", "problem", "split")}
