"""The objects that the benchmark makes, for each controller as its documentation asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tidegate.kube.resources import Manifest, Resource

__all__ = [
    "ARGO_NAMESPACE",
    "ARGO_ROLLOUTS",
    "REPLICA_SETS",
    "TIDEGATE_NAMESPACE",
    "argo_objects",
    "argo_template",
    "last_weight",
    "rollout_name",
    "tidegate_objects",
]

TIDEGATE_NAMESPACE: Final = "models"
ARGO_NAMESPACE: Final = "argo"
ARGO_ROLLOUTS: Final = Resource("argoproj.io", "v1alpha1", "rollouts", "Rollout", Manifest)
REPLICA_SETS: Final = Resource("apps", "v1", "replicasets", "ReplicaSet", Manifest)

_PORT: Final = 8500
# The Pods of the benchmark of scale are objects only; no Node runs them.
_NOWHERE: Final = "nowhere"

Body = Mapping[str, Any]


def rollout_name(number: int) -> str:
    """The name of a rollout and of its host."""
    return f"m{number:04}"


def tidegate_objects(number: int) -> list[Body]:
    """A host with a Pod of each version, and a Rollout that waits at 10 %."""
    name, namespace = rollout_name(number), TIDEGATE_NAMESPACE
    versions = ("v1", "v2")
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{name}-{version}",
                "namespace": namespace,
                "labels": {"app": name, "version": version},
            },
            "spec": {
                "nodeName": _NOWHERE,
                "automountServiceAccountToken": False,
                "containers": [{"name": "server", "image": "server"}],
            },
        }
        for version in versions
    ]
    port = {"name": "grpc", "port": _PORT}
    address = f"10.{number // 60000}.{number // 250 % 240}.{number % 250 + 1}"
    endpoints = [
        {
            "addresses": [address],
            "conditions": {"ready": True},
            "targetRef": {"kind": "Pod", "name": f"{name}-{version}", "namespace": namespace},
        }
        for version in versions
    ]
    return [
        *pods,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"app": name}, "ports": [port], "clusterIP": "None"},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-a",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [port],
        },
        *_istio(name, namespace, {"v2": {"version": "v2"}, "v1": {"version": "v1"}}),
        {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "host": name,
                "baseline": "v1",
                "candidate": "v2",
                "strategy": {"manual": {"weights": [10, 50]}},
            },
        },
    ]


def argo_objects(number: int) -> list[Body]:
    """A host, and a Rollout that waits at 10 % once its template is another one."""
    name, namespace = rollout_name(number), ARGO_NAMESPACE
    labels = {"app": name}
    return [
        *_istio(name, namespace, {"canary": labels, "stable": labels}),
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": argo_template(number, "v1"),
                "strategy": {
                    "canary": {
                        "trafficRouting": {
                            "istio": {
                                "virtualService": {"name": name, "routes": ["primary"]},
                                "destinationRule": {
                                    "name": name,
                                    "canarySubsetName": "canary",
                                    "stableSubsetName": "stable",
                                },
                            }
                        },
                        "steps": _steps(50),
                    }
                },
            },
        },
    ]


def argo_template(number: int, version: str) -> Body:
    """The Pod of a version."""
    return {
        "metadata": {"labels": {"app": rollout_name(number), "version": version}},
        "spec": {"containers": [{"name": "server", "image": f"server:{version}"}]},
    }


def last_weight(namespace: str, weight: int) -> Body:
    """The edit of a Rollout: a merge patch that gives its last step another weight."""
    if namespace == TIDEGATE_NAMESPACE:
        return {"spec": {"strategy": {"manual": {"weights": [10, weight]}}}}
    return {"spec": {"strategy": {"canary": {"steps": _steps(weight)}}}}


def _steps(weight: int) -> list[Body]:
    return [{"setWeight": 10}, {"pause": {}}, {"setWeight": weight}, {"pause": {}}]


def _istio(name: str, namespace: str, subsets: Mapping[str, Mapping[str, str]]) -> list[Body]:
    """A VirtualService with all traffic at the last subset, and the rule with the subsets."""
    first, last = subsets
    routes = [
        {"destination": {"host": name, "subset": subset}, "weight": weight}
        for subset, weight in ((first, 0), (last, 100))
    ]
    metadata = {"name": name, "namespace": namespace}
    return [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": metadata,
            "spec": {"hosts": [name], "http": [{"name": "primary", "route": routes}]},
        },
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "DestinationRule",
            "metadata": metadata,
            "spec": {
                "host": name,
                "subsets": [{"name": each, "labels": dict(subsets[each])} for each in subsets],
            },
        },
    ]
