"""The rules of lint: each module declares those about one part of the mesh."""

from tidegate.mesh.lint.rules import gateways, hosts, matches, policies, routes

__all__ = ["gateways", "hosts", "matches", "policies", "routes"]
