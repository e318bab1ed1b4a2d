"""The rules of lint about objects of Kubernetes and Istio's policies, in the order of the docs."""

from tidegate.mesh.lint.rules.kubernetes import (  # isort: skip
    probes,
    draining,
    labels,
    ports,
    authorization,
    mesh_policies,
    network,
    availability,
    hardening,
    autoscaling,
)

__all__ = [
    "authorization",
    "autoscaling",
    "availability",
    "draining",
    "hardening",
    "labels",
    "mesh_policies",
    "network",
    "ports",
    "probes",
]
