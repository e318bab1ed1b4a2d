"""What gRPC clients get that dial ``xds:///HOST:PORT``: a listener and routes for each port.

VirtualServices with the gateway ``mesh`` (Istio's default) hold for them. A client takes of a route
what gRPC knows: conditions, destinations and weights, the longest time, retries by gRPC status, and
faults. Of the rest it would ignore some and refuse the whole for other, so the rest is left
out; ``tidegate mesh lint`` says where that matters.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from envoy.config.listener.v3 import api_listener_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (  # noqa: E501 - a generated name
    HttpConnectionManager,
    Rds,
)
from google.protobuf.wrappers_pb2 import UInt32Value
from tidegate.mesh.compiler.routes.envoy_routes.destinations import Scope, hash_policy
from tidegate.mesh.compiler.routes.envoy_routes.envoy_routes import (
    applicable,
    hash_policies,
    weighted,
)
from tidegate.mesh.compiler.routes.envoy_routes.filters import grpc_filters, inject_fault
from tidegate.mesh.compiler.routes.envoy_routes.matches import is_catch_all, route_match
from tidegate.mesh.compiler.routes.envoy_routes.retries import retry_policy

from tidegate.istio.names import MESH
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import HttpRoute, VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.hosts.services import Port
from tidegate.mesh.compiler.hosts.upstreams import Target
from tidegate.mesh.compiler.naming import cluster_name
from tidegate.mesh.compiler.protobuf import ADS, duration, packed
from tidegate.mesh.resources import Resource, ResourceType

__all__ = ["client_resources"]

_Route: TypeAlias = route_components_pb2.Route


def client_resources(
    target: Target,
    service: VirtualService | None,
    targets: Mapping[HostName, Target],
    errors: list[CompileError],
) -> Iterator[Resource]:
    """The listeners and routes of a host for clients inside the mesh.

    Args:
        target: the host.
        service: the VirtualService for it, if there is one.
        targets: all hosts.
        errors: takes what is found wrong.
    """
    for port in target.service.ports.values():
        if not port.http2:
            continue
        scope = Scope(MESH, port.number, False, targets, errors)
        routes = list(_routes(service, scope)) if service else []
        # Where no rule of the VirtualService holds, the host is routed as if there were none.
        routes = routes or [_default(target, port)]
        name = cluster_name(target.service.host, port.number)
        address = f"{target.service.host}:{port.number}"
        yield Resource.of(ResourceType.LISTENER, address, _listener(address, name))
        yield Resource.of(
            ResourceType.ROUTE,
            name,
            route_pb2.RouteConfiguration(
                name=name,
                virtual_hosts=[
                    route_components_pb2.VirtualHost(
                        name=address, domains=[target.service.host, address], routes=routes
                    )
                ],
            ),
        )


def _listener(address: str, routes: str) -> listener_pb2.Listener:
    manager = HttpConnectionManager(
        rds=Rds(route_config_name=routes, config_source=ADS), http_filters=grpc_filters()
    )
    return listener_pb2.Listener(
        name=address, api_listener=api_listener_pb2.ApiListener(api_listener=packed(manager))
    )


def _default(target: Target, port: Port) -> _Route:
    """Everything to the host itself, as istiod routes a host without a VirtualService."""
    route = _Route(match=route_match(None))
    route.route.cluster = cluster_name(target.service.host, port.number)
    route.route.max_stream_duration.max_stream_duration.CopyFrom(duration(dt.timedelta()))
    hashing = target.hashed_by(port.number)
    if hashing:
        route.route.hash_policy.append(hash_policy(hashing))
    retries = retry_policy(None, hashed=False)
    if retries is not None:
        route.route.retry_policy.CopyFrom(retries)
    return route


def _routes(service: VirtualService, scope: Scope) -> Iterator[_Route]:
    for index, rule, match in applicable(service, scope):
        route = _Route(name=rule.name or "", match=route_match(match))
        if rule.redirect or rule.direct_response:
            route.non_forwarding_action.SetInParent()
        else:
            _forward(route, service, f"spec.http[{index}]", rule, scope)
        if rule.fault:
            inject_fault(route, rule.fault)
        yield route
        if is_catch_all(route.match):
            return


def _forward(
    route: _Route, service: VirtualService, path: str, rule: HttpRoute, scope: Scope
) -> None:
    action = route.route
    action.max_stream_duration.max_stream_duration.CopyFrom(
        duration(rule.timeout or dt.timedelta())
    )
    called = weighted(service, path, rule, scope)
    single = len(rule.route) == 1
    for _, cluster, weight in called:
        if single:
            action.cluster = cluster
        else:
            action.weighted_clusters.clusters.add(name=cluster, weight=UInt32Value(value=weight))
    policies = hash_policies(called, scope)
    action.hash_policy.extend(policies)
    retries = retry_policy(rule.retries, hashed=bool(policies) and single)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)
