"""Cluster load assignments: which endpoints take requests, and which drain.

When an endpoint is removed from a `ClusterLoadAssignment`, some proxies cut its running requests,
and all proxies drop it from their load reports. So an endpoint that is to go first becomes
``DRAINING``: proxies begin no request on it and finish those that run. It is removed when no
request runs on it any more.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from tidegate.mesh.resources import Resource, ResourceType

__all__ = ["HEALTHY", "addresses", "has_healthy", "health_of", "with_draining"]

HEALTHY: Final = health_check_pb2.HEALTHY
"""The status of an endpoint that takes requests."""

_USED: Final = frozenset({health_check_pb2.UNKNOWN, HEALTHY})


def health_of(assignment: Resource) -> Mapping[str, int]:
    """Every endpoint's ``HealthStatus``, by ``address:port``."""
    return {
        _address(endpoint): endpoint.health_status
        for group in _read(assignment).endpoints
        for endpoint in group.lb_endpoints
    }


def addresses(assignment: Resource) -> frozenset[str]:
    """The endpoints as ``address:port``, whatever their health."""
    return frozenset(health_of(assignment))


def has_healthy(assignment: Resource) -> bool:
    """Whether some endpoint takes requests."""
    return any(health in _USED for health in health_of(assignment).values())


def with_draining(before: Resource, after: Resource, kept: frozenset[str]) -> Resource:
    """An assignment with some endpoints of the one before it, as ``DRAINING``.

    Args:
        before: The assignment with the endpoints that drain.
        after: The assignment that is wanted in the end.
        kept: The endpoints to keep, as ``address:port``. Those in neither assignment are ignored.
    """
    wanted = addresses(after)
    merged = _read(after)
    for group, endpoint in _endpoints(_read(before)):
        address = _address(endpoint)
        if address in kept and address not in wanted:
            endpoint.health_status = health_check_pb2.DRAINING
            _group_like(merged, group).lb_endpoints.append(endpoint)
    return Resource.of(ResourceType.ENDPOINT, after.key.name, merged)


def _group_like(
    assignment: endpoint_pb2.ClusterLoadAssignment,
    group: endpoint_components_pb2.LocalityLbEndpoints,
) -> endpoint_components_pb2.LocalityLbEndpoints:
    """The group of the same locality and priority; added if there is none."""
    for each in assignment.endpoints:
        if (each.locality, each.priority) == (group.locality, group.priority):
            return each
    added = assignment.endpoints.add()
    added.CopyFrom(group)
    del added.lb_endpoints[:]
    return added


def _endpoints(
    assignment: endpoint_pb2.ClusterLoadAssignment,
) -> Iterator[
    tuple[endpoint_components_pb2.LocalityLbEndpoints, endpoint_components_pb2.LbEndpoint]
]:
    for group in assignment.endpoints:
        for endpoint in group.lb_endpoints:
            yield group, endpoint


def _read(assignment: Resource) -> endpoint_pb2.ClusterLoadAssignment:
    return endpoint_pb2.ClusterLoadAssignment.FromString(assignment.body.value)


def _address(endpoint: endpoint_components_pb2.LbEndpoint) -> str:
    address = endpoint.endpoint.address.socket_address
    host = f"[{address.address}]" if ":" in address.address else address.address
    return f"{host}:{address.port_value}"
