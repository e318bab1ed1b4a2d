"""The cases of `weights.py`, and their objects: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from timed_calls import PORT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "CASES",
    "HOST",
    "NAMESPACE",
    "SCRIPT",
    "Case",
    "caller",
    "naming_filter",
    "objects_for",
    "rollout_for",
    "server",
    "service",
]

NAMESPACE: Final = "models"
HOST: Final = "timed"
SCRIPT: Final = "benchmarks/cluster/timed_calls.py"

_ISTIO: Final = "networking.istio.io/v1"


@dataclass(frozen=True, slots=True)
class Case:
    """Who calls, and how the router writes.

    Attributes:
        title: Its name in the report.
        callers: `gateway`, `sidecar` or `proxyless`.
        write: The way of writing: `own` or `patch`.
        shares: The share of v1 in either split.
    """

    title: str
    callers: str
    write: str
    shares: tuple[float, float] = (100.0, 0.0)


CASES: Final = (
    Case("gateway, own", "gateway", "own"),
    Case("gateway, own, 90/10", "gateway", "own", (90.0, 10.0)),
    Case("gateway, patch", "gateway", "patch"),
    Case("sidecar, own", "sidecar", "own"),
    Case("proxyless, patch", "proxyless", "patch"),
)


def objects_for(case: Case) -> list[dict[str, Any]]:
    """Istio's objects before the first change of a case."""
    callers = {"hosts": ["*"], "gateways": ["vision"]}
    if case.callers != "gateway":
        callers = {"hosts": [HOST], "gateways": ["mesh"]}
    first, _ = case.shares
    route = [
        {"destination": {"host": HOST, "subset": name, "port": {"number": PORT}}, "weight": weight}
        for name, weight in (("v2", 100 - first), ("v1", first))
    ]
    retries = {"attempts": 2, "retryOn": "connect-failure,refused-stream"}
    labels = {"app.kubernetes.io/managed-by": "tidegate"} if case.write == "own" else {}
    return [
        _object(_ISTIO, "DestinationRule", host=HOST, subsets=[_subset("v1"), _subset("v2")]),
        _object(
            _ISTIO,
            "VirtualService",
            labels,
            **callers,
            http=[{"name": HOST, "route": route, "retries": retries}],
        ),
    ]


def service() -> dict[str, Any]:
    """The host's Service."""
    ports = [{"name": "grpc", "port": PORT}]
    return _object("v1", "Service", selector={"app": HOST}, ports=ports)


def server(version: str) -> dict[str, Any]:
    """The Deployment of a version, with a sidecar."""
    labels = {"app": HOST, "version": version, "sidecar.istio.io/inject": "true"}
    probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    container = {
        "command": ["python", SCRIPT, "serve", version],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": probe,
    }
    return _deployment(f"{HOST}-{version}", labels, container)


def caller(kind: str, rate: float, folder: Path) -> dict[str, Any]:
    """The Deployment of a caller: `sidecar`, or `proxyless`, whose bootstrap is in a folder."""
    target = f"{HOST}.{NAMESPACE}.svc.cluster.local:{PORT}"
    call = f"exec python {SCRIPT} call"
    labels = {"app": f"caller-{kind}"}
    if kind == "sidecar":
        command = f"{call} {target} {rate}"
        labels["sidecar.istio.io/inject"] = "true"
    else:
        file = folder / "bootstrap.json"
        xds = f"python -m tidegate.client.xds istiod.istio-system.svc:15010 --namespace {NAMESPACE}"
        command = f"{xds} > {file} && GRPC_XDS_BOOTSTRAP={file} {call} xds:///{target} {rate}"
    return _deployment(f"caller-{kind}", labels, {"command": ["sh", "-c", command]})


def naming_filter() -> dict[str, Any]:
    """Has the gateway tell the servers the name of the route of each call."""
    header = {"header": {"key": "x-route", "value": "%ROUTE_NAME%"}}
    patch = {"operation": "MERGE", "value": {"request_headers_to_add": [header]}}
    change = {"applyTo": "ROUTE_CONFIGURATION", "match": {"context": "GATEWAY"}, "patch": patch}
    made = _object("networking.istio.io/v1alpha3", "EnvoyFilter", configPatches=[change])
    made["metadata"]["namespace"] = "istio-ingress"
    return made


def rollout_for(case: Case) -> dict[str, Any]:
    """The rollout whose traffic is changed."""
    return {
        "apiVersion": "tidegate.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": HOST, "namespace": NAMESPACE},
        "spec": {
            "host": HOST,
            "baseline": "v1",
            "candidate": "v2",
            "strategy": {"manual": {"weights": [50]}},
            "traffic": _traffic_of(case),
        },
    }


def _traffic_of(case: Case) -> dict[str, Any]:
    """The section `traffic` of the rollout of a case."""
    if case.write == "own" and case.callers == "gateway":
        return {"write": "own", "hosts": ["*"], "gateways": ["vision"]}
    return {"write": case.write}


def _object(
    api_version: str, kind: str, labels: Mapping[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    metadata = {"name": HOST, "namespace": NAMESPACE, "labels": dict(labels or {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def _subset(version: str) -> dict[str, Any]:
    return {"name": version, "labels": {"version": version}}


def _deployment(name: str, labels: Mapping[str, str], container: dict[str, Any]) -> dict[str, Any]:
    containers = [{"name": "main", "image": "bench", **container}]
    template = {"metadata": {"labels": dict(labels)}, "spec": {"containers": containers}}
    made = _object(
        "apps/v1", "Deployment", selector={"matchLabels": dict(labels)}, template=template
    )
    made["metadata"]["name"] = name
    return made
