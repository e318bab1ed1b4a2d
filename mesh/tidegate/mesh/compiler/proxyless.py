"""Proxyless gRPC: a listener and routes for clients that dial ``xds:///HOST:PORT``.

VirtualServices for the gateway ``mesh`` (Istio's default) hold for these clients. A client gets the
parts of a route that gRPC supports: conditions, destinations with weights, the longest time of a
call, retries by gRPC status, and faults. gRPC ignores some of the other parts and refuses the whole
route for others, so they are left out; ``tidegate mesh lint`` says where that matters.
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

from tidegate.istio.names import MESH
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import HttpRoute, VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.hosts.services import RegisteredPort
from tidegate.mesh.compiler.hosts.upstreams import Upstream
from tidegate.mesh.compiler.naming import cluster_name
from tidegate.mesh.compiler.protobuf import ADS, duration, packed
from tidegate.mesh.compiler.routes.destinations import RouteContext
from tidegate.mesh.compiler.routes.filters import grpc_filters, inject_fault
from tidegate.mesh.compiler.routes.hashing import hash_policies, hash_policy
from tidegate.mesh.compiler.routes.matches import is_catch_all, matches_at, route_match
from tidegate.mesh.compiler.routes.retries import retry_policy
from tidegate.mesh.compiler.routes.weights import weighted_clusters
from tidegate.mesh.resources import Resource, ResourceType

__all__ = ["client_resources"]

_Route: TypeAlias = route_components_pb2.Route


def client_resources(
    upstream: Upstream,
    virtual_service: VirtualService | None,
    upstreams: Mapping[HostName, Upstream],
    errors: list[CompileError],
) -> Iterator[Resource]:
    """The listeners and routes of a host for clients inside the mesh.

    Args:
        upstream: The host.
        virtual_service: The VirtualService of the host, if it has one.
        upstreams: All hosts.
        errors: Takes the errors that are found.
    """
    host = upstream.service.host
    for port in upstream.service.ports.values():
        if not port.http2:
            continue
        context = RouteContext(MESH, port.number, False, upstreams, errors)
        routes = list(_routes(virtual_service, context)) if virtual_service else []
        # A host for which no rule holds is routed as if it had no VirtualService.
        routes = routes or [_default(upstream, port)]
        name = cluster_name(host, port.number)
        address = f"{host}:{port.number}"
        yield Resource.of(ResourceType.LISTENER, address, _listener(address, name))
        yield Resource.of(
            ResourceType.ROUTE,
            name,
            route_pb2.RouteConfiguration(
                name=name,
                virtual_hosts=[
                    route_components_pb2.VirtualHost(
                        name=address, domains=[host, address], routes=routes
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


def _default(upstream: Upstream, port: RegisteredPort) -> _Route:
    """A route for every request to the host itself, as istiod makes it."""
    route = _Route(match=route_match(None))
    route.route.cluster = cluster_name(upstream.service.host, port.number)
    route.route.max_stream_duration.max_stream_duration.CopyFrom(duration(dt.timedelta()))
    hashing = upstream.hashed_by(port.number)
    if hashing:
        route.route.hash_policy.append(hash_policy(hashing))
    retries = retry_policy(None, hashed=False)
    if retries is not None:
        route.route.retry_policy.CopyFrom(retries)
    return route


def _routes(virtual_service: VirtualService, context: RouteContext) -> Iterator[_Route]:
    for index, rule, match in matches_at(virtual_service, context.gateway, context.port):
        route = _Route(name=rule.name or "", match=route_match(match))
        if rule.redirect or rule.direct_response:
            route.non_forwarding_action.SetInParent()
        else:
            _forward(route, virtual_service, f"spec.http[{index}]", rule, context)
        if rule.fault:
            inject_fault(route, rule.fault)
        yield route
        if is_catch_all(route.match):
            return


def _forward(
    route: _Route,
    virtual_service: VirtualService,
    path: str,
    rule: HttpRoute,
    context: RouteContext,
) -> None:
    action = route.route
    action.max_stream_duration.max_stream_duration.CopyFrom(
        duration(rule.timeout or dt.timedelta())
    )
    called = weighted_clusters(virtual_service, path, rule, context)
    single = len(rule.route) == 1
    for each in called:
        if single:
            action.cluster = each.cluster
        else:
            action.weighted_clusters.clusters.add(
                name=each.cluster, weight=UInt32Value(value=each.weight)
            )
    policies = hash_policies(called, context)
    action.hash_policy.extend(policies)
    retries = retry_policy(rule.retries, hashed=bool(policies) and single)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)
