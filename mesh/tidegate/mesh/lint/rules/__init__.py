"""The rules of lint: each module declares those about one part of the mesh.

Rules about objects of Kubernetes are in `kubernetes`.
"""

from tidegate.mesh.lint.rules import gateways, hosts, kubernetes, matches, policies, routes

__all__ = ["gateways", "hosts", "kubernetes", "matches", "policies", "routes"]
