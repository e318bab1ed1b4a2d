"""One host of each controller behind the same gateway, and the canaries that are run on it.

Each rival can begin a canary of a candidate with faults, say whether it has rolled it back, and get
its host ready for the next one. Both take the candidate to 50 % at once and keep it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from objects import ARGO_ROLLOUTS

from tidegate.kube.errors import ConflictError, NotFoundError
from tidegate.kube.resources import (
    DESTINATION_RULES,
    ROLLOUTS,
    SERVICES,
    VIRTUAL_SERVICES,
    Manifest,
    Resource,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cluster import TestCluster
    from tidegate.kube.client import KubeClient

__all__ = [
    "BASE",
    "NAMESPACE",
    "PORT",
    "SLOW_S",
    "ArgoHost",
    "Rival",
    "TidegateHost",
    "argo_hosts",
    "gateway",
]

NAMESPACE: Final = "models"
PORT: Final = 8500
BASE: Final = 0.001
"""The share of calls that every version fails."""

SLOW_S: Final = 0.05
"""The bound on latency."""

_GATEWAYS: Final = Resource("networking.istio.io", "v1", "gateways", "Gateway", Manifest)
_DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment", Manifest)
_TEMPLATES: Final = Resource(
    *("argoproj.io", "v1alpha1", "analysistemplates", "AnalysisTemplate", Manifest)
)
_READY_S: Final = 90.0
_POLL_S: Final = 0.1
_MANAGER: Final = "benchmark"


class Rival:
    """A host of one controller.

    Args:
        cluster: The cluster.
        client: The administrator's.
        name: The host.
        title: The name in the report.
        incident: While this file exists, all servers fail more calls.
    """

    def __init__(
        self, cluster: TestCluster, client: KubeClient, name: str, title: str, incident: Path
    ) -> None:
        self._options = (f"--incident={incident}",)
        self._cluster = cluster
        self._client = client
        self.name = name
        self.title = title

    @property
    def authority(self) -> str:
        """The name by which callers call it; Istio would complete one without a dot."""
        return f"{self.name}.bench"

    async def install(self) -> None:
        """Makes the host with its baseline, and waits until that is ready."""
        raise NotImplementedError

    async def prepare(self, candidate: str, faults: Sequence[str]) -> None:
        """Gets a candidate ready as far as that is not the controller's task."""
        raise NotImplementedError

    async def begin(self, candidate: str, faults: Sequence[str]) -> None:
        """Begins the canary."""
        raise NotImplementedError

    async def aborted(self) -> bool:
        """Whether the controller has rolled the candidate back."""
        raise NotImplementedError

    async def why(self) -> str:
        """What the controller says about the candidate."""
        return str((await self.status()).get("message", ""))

    async def status(self) -> Mapping[str, Any]:
        """The status of its Rollout."""
        raise NotImplementedError

    async def reset(self) -> None:
        """Takes all traffic back to the baseline, for the next canary."""
        raise NotImplementedError

    async def _host(self, subsets: Mapping[str, Mapping[str, str]]) -> None:
        """Makes the Service, and Istio's objects with all traffic at the last subset."""
        metadata = {"name": self.name, "namespace": NAMESPACE}
        first, last = subsets
        routes = [
            {"destination": {"host": self.name, "subset": subset, "port": {"number": PORT}}}
            | {"weight": weight}
            for subset, weight in ((first, 0), (last, 100))
        ]
        spec = {"selector": {"app": self.name}, "ports": [{"name": "grpc", "port": PORT}]}
        istio = "networking.istio.io/v1"
        made: list[tuple[Resource[Any], dict[str, Any]]] = [
            (SERVICES, {"apiVersion": "v1", "kind": "Service", "spec": spec}),
            (
                DESTINATION_RULES,
                {
                    "apiVersion": istio,
                    "kind": "DestinationRule",
                    "spec": {
                        "host": self.name,
                        "subsets": [
                            {"name": each, "labels": dict(labels)}
                            for each, labels in subsets.items()
                        ],
                    },
                },
            ),
            (
                VIRTUAL_SERVICES,
                {
                    "apiVersion": istio,
                    "kind": "VirtualService",
                    "spec": {
                        "hosts": [self.authority],
                        "gateways": [f"{NAMESPACE}/bench"],
                        # No retry hides a failed call.
                        "http": [{"name": "primary", "route": routes, "retries": {"attempts": 0}}],
                    },
                },
            ),
        ]
        for resource, body in made:
            await self._client.create(resource, body | {"metadata": metadata})


class TidegateHost(Rival):
    """A host with Deployments of both versions, and Rollouts with Tidegate's defaults."""

    def __init__(self, cluster: TestCluster, client: KubeClient, name: str, incident: Path) -> None:
        super().__init__(cluster, client, name, "Tidegate", incident)
        self._rollout = ""

    async def install(self) -> None:
        """Makes the host with its baseline."""
        await self._host({"v2": {"version": "v2"}, "v1": {"version": "v1"}})
        await self._deploy("v1", "v1", ())

    async def prepare(self, candidate: str, faults: Sequence[str]) -> None:
        """Deploys the candidate."""
        await self._deploy("v2", candidate, faults)

    async def begin(self, candidate: str, faults: Sequence[str]) -> None:
        """Applies a Rollout."""
        del faults
        self._rollout = candidate
        steps = [{"weight": 50}, {"pause": {"untilApproved": True}}]
        body = {
            "metadata": {"name": candidate, "namespace": NAMESPACE},
            "spec": {
                "host": self.name,
                "baseline": "v1",
                "candidate": "v2",
                "strategy": {"canary": {"steps": steps}},
                "objectives": [
                    {"signal": "grpcFailures"},
                    {"signal": "latency", "above": f"{1000 * SLOW_S:g}ms"},
                ],
            },
        }
        await self._client.apply(ROLLOUTS, body, manager=_MANAGER)

    async def aborted(self) -> bool:
        """Whether the Rollout is aborted."""
        return (await self.status()).get("phase") == "Aborted"

    async def status(self) -> Mapping[str, Any]:
        """The status of its Rollout."""
        return (await self._client.get(ROLLOUTS, self._rollout, NAMESPACE)).status

    async def reset(self) -> None:
        """Deletes the Rollout, which hands its traffic back."""
        await self._client.delete(ROLLOUTS, self._rollout, NAMESPACE)
        async with asyncio.timeout(_READY_S):
            while True:
                try:
                    await self._client.get(ROLLOUTS, self._rollout, NAMESPACE)
                except NotFoundError:
                    return
                await asyncio.sleep(_POLL_S)

    async def _deploy(self, version: str, name: str, faults: Sequence[str]) -> None:
        labels = {"app": self.name, "version": version}
        deployment = f"{self.name}-{version}"
        body = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": deployment, "namespace": NAMESPACE},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": _template(labels, name, (*self._options, *faults)),
            },
        }
        await self._client.apply(_DEPLOYMENTS, body, manager=_MANAGER, force=True)
        await self._cluster.deployed(NAMESPACE, deployment, timeout_s=_READY_S)


class ArgoHost(Rival):
    """A host with a Rollout of Argo Rollouts, and an analysis in the background.

    Args:
        cluster: The cluster.
        client: The administrator's.
        name: The host.
        title: The name in the report.
        incident: While this file exists, all servers fail more calls.
        metrics: The metrics of its AnalysisTemplate.
    """

    def __init__(
        self,
        cluster: TestCluster,
        client: KubeClient,
        name: str,
        title: str,
        incident: Path,
        metrics: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(cluster, client, name, title, incident)
        self._metrics = metrics

    async def install(self) -> None:
        """Makes the host with its baseline."""
        labels = {"app": self.name}
        await self._host({"canary": labels, "stable": labels})
        metadata = {"name": self.name, "namespace": NAMESPACE}
        template = {"metadata": metadata, "spec": {"metrics": list(self._metrics)}}
        await self._client.create(_TEMPLATES, template)
        rule = {
            "name": self.name,
            "canarySubsetName": "canary",
            "stableSubsetName": "stable",
        }
        service = {"name": self.name, "routes": ["primary"]}
        canary = {
            "trafficRouting": {"istio": {"virtualService": service, "destinationRule": rule}},
            "analysis": {"templates": [{"templateName": self.name}], "startingStep": 1},
            "steps": [{"setWeight": 50}, {"pause": {}}],
        }
        body = {
            "metadata": metadata,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": _template(labels, "v1", self._options),
                "strategy": {"canary": canary},
            },
        }
        await self._client.create(ARGO_ROLLOUTS, body)
        await self._until("Healthy")

    async def prepare(self, candidate: str, faults: Sequence[str]) -> None:
        """Does nothing: the controller makes the candidate's Pods."""

    async def begin(self, candidate: str, faults: Sequence[str]) -> None:
        """Gives the Rollout the candidate's template."""
        await self._set(candidate, faults)

    async def aborted(self) -> bool:
        """Whether the analysis has failed, and the weights are back."""
        status = await self.status()
        weight = status.get("canary", {}).get("weights", {}).get("canary", {}).get("weight", 0)
        return bool(status.get("abort")) and weight == 0

    async def status(self) -> Mapping[str, Any]:
        """The status of its Rollout."""
        return (await self._client.get(ARGO_ROLLOUTS, self.name, NAMESPACE)).status

    async def reset(self) -> None:
        """Gives the Rollout the baseline's template again."""
        await self._set("v1", ())
        await self._until("Healthy")

    async def _set(self, name: str, faults: Sequence[str]) -> None:
        patch = {
            "spec": {"template": _template({"app": self.name}, name, (*self._options, *faults))}
        }
        while True:
            with contextlib.suppress(ConflictError):
                await self._client.merge(
                    ARGO_ROLLOUTS, self.name, NAMESPACE, patch, manager=_MANAGER
                )
                return

    async def _until(self, phase: str) -> None:
        deadline_s = time.monotonic() + _READY_S
        while time.monotonic() < deadline_s:
            found = await self._client.get(ARGO_ROLLOUTS, self.name, NAMESPACE)
            observed = int(found.status.get("observedGeneration") or 0)
            if observed >= found.metadata.generation and found.status.get("phase") == phase:
                return
            await asyncio.sleep(_POLL_S)
        raise RuntimeError(f"{self.name} is not {phase}: {found.status}")


def argo_hosts(
    cluster: TestCluster, client: KubeClient, prometheus: str, incident: Path
) -> list[ArgoHost]:
    """A host with an expert's analysis, and one with that of the documentation.

    The documented analysis has five minutes in place of each 30 s here.

    Args:
        cluster: The cluster.
        client: The administrator's.
        prometheus: The address of Prometheus, as the controller reaches it.
        incident: While this file exists, all servers fail more calls.
    """

    def metric(name: str, query: str, condition: str, limit: int, interval: str) -> dict[str, Any]:
        return {
            "name": name,
            "interval": interval,
            "failureLimit": limit,
            "successCondition": condition,
            "provider": {"prometheus": {"address": prometheus, "query": query}},
        }

    canary = f"outbound|{PORT}|canary|expert.{NAMESPACE}.svc.cluster.local"
    no_data = "len(result) == 0 || isNaN(result[0]) || "
    quantile = (
        "histogram_quantile(0.95, sum by (le) (rate(envoy_cluster_upstream_rq_time_bucket"
        f'{{cluster_name="{canary}"}}[30s])))'
    )
    expert = [
        metric("success", _success(f'="{canary}"'), f"{no_data}result[0] >= 0.99", 2, "10s"),
        metric("latency", quantile, f"{no_data}result[0] <= {1000 * SLOW_S:g}", 2, "10s"),
    ]
    whole = _success(rf'=~"outbound\\|{PORT}\\|.*\\|docs\\.{NAMESPACE}\\..*"')
    docs = [metric("success-rate", whole, f"{no_data}result[0] >= 0.95", 3, "30s")]
    return [
        ArgoHost(cluster, client, "expert", "Argo Rollouts, expert", incident, expert),
        ArgoHost(cluster, client, "docs", "Argo Rollouts, docs÷10", incident, docs),
    ]


def _success(clusters: str) -> str:
    series = f"{{cluster_name{clusters}}}[30s]"
    return (
        f"sum(rate(envoy_cluster_grpc_success{series}))"
        f" / sum(rate(envoy_cluster_grpc_total{series}))"
    )


async def gateway(client: KubeClient) -> None:
    """Makes the gateway of all hosts."""
    server = {"port": {"number": PORT, "name": "grpc", "protocol": "GRPC"}, "hosts": ["*"]}
    body = {
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [server]},
    }
    await client.create(_GATEWAYS, body)


def _template(labels: Mapping[str, str], name: str, faults: Sequence[str]) -> dict[str, Any]:
    """The Pod of a version."""
    return {
        "metadata": {"labels": dict(labels)},
        "spec": {
            "containers": [
                {
                    "name": "server",
                    "image": "backend",
                    "command": ["python", "benchmarks/cluster/backend.py"],
                    "args": [f"--name={name}", f"--port={PORT}", f"--base={BASE}", *faults],
                    "ports": [{"containerPort": PORT}],
                    "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
                    # The gateway learns that the Pod ends while it still answers.
                    "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
                }
            ]
        },
    }
