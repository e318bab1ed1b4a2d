"""What routing resources name: the clusters, and how much traffic each of them is to get.

A proxy does not warm routes: one that names a cluster which is not there fails its requests. So
the planner reads out of every scope, listener, route configuration and virtual host what it names.
"""

from collections.abc import Iterator
from typing import Final

from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)

from tidegate.mesh.resources import Resource, ResourceType

__all__ = ["ROUTING", "clusters_named", "clusters_with_traffic"]

ROUTING: Final = (
    ResourceType.SCOPED_ROUTE,
    ResourceType.LISTENER,
    ResourceType.ROUTE,
    ResourceType.VIRTUAL_HOST,
)
"""The types that name clusters; the others are what is named."""


def clusters_named(resource: Resource) -> frozenset[str]:
    """Every cluster that a resource sends requests to, mirrored ones and those of weight 0 too."""
    return frozenset(name for name, _ in _destinations(resource))


def clusters_with_traffic(resource: Resource) -> frozenset[str]:
    """The clusters that a resource gives some share of the requests, or copies of them."""
    return frozenset(name for name, gets_traffic in _destinations(resource) if gets_traffic)


def _destinations(resource: Resource) -> Iterator[tuple[str, bool]]:
    match resource.key.type:
        case ResourceType.VIRTUAL_HOST:
            host = route_components_pb2.VirtualHost.FromString(resource.body.value)
            yield from _of_virtual_host(host)
        case ResourceType.SCOPED_ROUTE:
            scope = scoped_route_pb2.ScopedRouteConfiguration.FromString(resource.body.value)
            yield from _of_routes(scope.route_configuration)
        case ResourceType.ROUTE:
            yield from _of_routes(route_pb2.RouteConfiguration.FromString(resource.body.value))
        case ResourceType.LISTENER:
            listener = listener_pb2.Listener.FromString(resource.body.value)
            for manager in _connection_managers(listener):
                yield from _of_routes(manager.route_config)
        case _:
            return


def _connection_managers(
    listener: listener_pb2.Listener,
) -> Iterator[http_connection_manager_pb2.HttpConnectionManager]:
    chains = (*listener.filter_chains, listener.default_filter_chain)
    packed = [each.typed_config for chain in chains for each in chain.filters]
    for each in (*packed, listener.api_listener.api_listener):
        manager = http_connection_manager_pb2.HttpConnectionManager()
        if each.Unpack(manager):
            yield manager


def _of_routes(routes: route_pb2.RouteConfiguration) -> Iterator[tuple[str, bool]]:
    for mirror in routes.request_mirror_policies:
        yield from _of_mirror(mirror)
    for host in routes.virtual_hosts:
        yield from _of_virtual_host(host)


def _of_virtual_host(host: route_components_pb2.VirtualHost) -> Iterator[tuple[str, bool]]:
    for mirror in host.request_mirror_policies:
        yield from _of_mirror(mirror)
    for route in host.routes:
        yield from _of_action(route.route)


def _of_action(action: route_components_pb2.RouteAction) -> Iterator[tuple[str, bool]]:
    if action.cluster:
        yield action.cluster, True
    for weighted in action.weighted_clusters.clusters:
        yield weighted.name, weighted.weight.value > 0
    for mirror in action.request_mirror_policies:
        yield from _of_mirror(mirror)


def _of_mirror(
    mirror: route_components_pb2.RouteAction.RequestMirrorPolicy,
) -> Iterator[tuple[str, bool]]:
    if mirror.cluster:
        share = mirror.runtime_fraction.default_value.numerator
        yield mirror.cluster, share > 0 or not mirror.HasField("runtime_fraction")
