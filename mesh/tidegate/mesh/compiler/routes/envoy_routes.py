"""Routes of a VirtualService as Envoy takes them.

Each ``match`` of a rule becomes a route of its own, in order, and the first route that matches
takes the request. Rules after the first catch-all can never be reached and are left out.

Timeouts: Envoy enforces the ``timeout`` of a rule and nothing else. It does not enforce a client's
deadline. A proxy cannot send a status after the response has begun: it resets the stream, and the
client gets ``INTERNAL``. The server and the client's own gRPC library end the call with
``DEADLINE_EXCEEDED``. Envoy forwards the client's ``grpc-timeout``. Do not set
``grpc_timeout_header_max`` here: any value, 0 too, makes Envoy enforce the client's deadline.
With a ``timeout``, Envoy replaces ``grpc-timeout`` by it; so a listener keeps a copy of the
client's (see `route_tables`), and the route puts that back. A call without a deadline keeps Envoy's
value.
"""

import datetime as dt
from typing import Final, TypeAlias

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from tidegate.istio.editing.host_routes import header_conditions
from tidegate.istio.virtual_service import HttpMatchRequest, HttpRoute, VirtualService
from tidegate.mesh.compiler.protobuf import duration, share
from tidegate.mesh.compiler.routes.destinations import RouteContext, mirrors_of
from tidegate.mesh.compiler.routes.filters import allow_origins, inject_fault
from tidegate.mesh.compiler.routes.hashing import add_hash_policies
from tidegate.mesh.compiler.routes.matches import is_catch_all, matches_at, route_match
from tidegate.mesh.compiler.routes.retries import retry_policy
from tidegate.mesh.compiler.routes.rewrites import (
    authority_of,
    change_headers,
    redirect,
    respond,
    rewrite_path,
)
from tidegate.mesh.compiler.routes.route_tables import DEADLINE_HEADER
from tidegate.mesh.compiler.routes.weights import weighted_clusters
from tidegate.mesh.resources import (
    MIRRORED_HEADER,
    ROUTE_BY_HEADERS,
    ROUTE_METADATA,
    ROUTE_TIMEOUT_MS,
)

__all__ = ["routes_of"]

_Action: TypeAlias = route_components_pb2.RouteAction
_Route: TypeAlias = route_components_pb2.Route

# By this header the log of mirrored copies leaves out all other requests.
_MARK: Final = mutation_rules_pb2.HeaderMutation(
    append=base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=MIRRORED_HEADER, value="1"),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
)


def routes_of(virtual_service: VirtualService, context: RouteContext) -> list[_Route]:
    """The routes of a VirtualService, in order."""
    routes = []
    for index, rule, match in matches_at(virtual_service, context.gateway, context.port):
        path = f"spec.http[{index}]"
        route = _Route(name=_name(rule, match), match=route_match(match))
        change_headers(route, rule.headers)
        if rule.redirect:
            redirect(route, virtual_service, path, rule.redirect, context)
        elif rule.direct_response:
            respond(route, rule.direct_response)
        else:
            _forward(route, virtual_service, path, rule, context)
        if rule.fault:
            inject_fault(route, rule.fault)
        if rule.cors_policy:
            allow_origins(route, rule.cors_policy)
        route.decorator.operation = _operation(route, virtual_service, context.port)
        routes.append(route)
        if is_catch_all(route.match):
            break
    return routes


def _forward(
    route: _Route,
    virtual_service: VirtualService,
    path: str,
    rule: HttpRoute,
    context: RouteContext,
) -> None:
    action = route.route
    _limit_time(route, rule)
    if header_conditions(rule) != {}:
        route.metadata.filter_metadata[ROUTE_METADATA].update({ROUTE_BY_HEADERS: "1"})
    authority = authority_of(rule.headers)
    if rule.rewrite:
        rewrite_path(action, rule.rewrite)
        authority = rule.rewrite.authority or authority
    if authority:
        action.host_rewrite_literal = authority
    _mirror(action, virtual_service, path, rule, context)
    single = len(rule.route) == 1
    called = weighted_clusters(virtual_service, path, rule, context)
    for each in called:
        headers = each.destination.headers
        own_authority = authority_of(headers)
        if single:
            action.cluster = each.cluster
            change_headers(route, headers)
            if own_authority and not authority:
                action.host_rewrite_literal = own_authority
        else:
            part = action.weighted_clusters.clusters.add(
                name=each.cluster, weight=UInt32Value(value=each.weight)
            )
            change_headers(part, headers)
            if own_authority:
                part.host_rewrite_literal = own_authority
    hashed = add_hash_policies(action, virtual_service, path, rule, called, context)
    retries = retry_policy(rule.retries, hashed=hashed and single)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)


def _limit_time(route: _Route, rule: HttpRoute) -> None:
    timeout = duration(rule.timeout or dt.timedelta())
    route.route.timeout.CopyFrom(timeout)
    route.route.max_stream_duration.max_stream_duration.CopyFrom(timeout)
    if rule.timeout:
        # Envoy sends the server its own timeout instead of the client's deadline.
        kept = base_pb2.HeaderValue(key="grpc-timeout", value=f"%REQ({DEADLINE_HEADER})%")
        overwrite = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        route.request_headers_to_add.add(header=kept, append_action=overwrite)
        # The server may end the call before Envoy does; the access log tells whose time was up.
        route.metadata.filter_metadata[ROUTE_METADATA].update(
            {ROUTE_TIMEOUT_MS: f"{rule.timeout.total_seconds() * 1000:g}"}
        )


def _mirror(
    action: _Action,
    virtual_service: VirtualService,
    path: str,
    rule: HttpRoute,
    context: RouteContext,
) -> None:
    for place, mirror in mirrors_of(rule):
        cluster = context.cluster(virtual_service.name, f"{path}.{place}", mirror.destination)
        if mirror.percentage:
            action.request_mirror_policies.add(
                cluster=cluster,
                runtime_fraction=share(mirror.percentage),
                trace_sampled=BoolValue(value=False),
                # A server that routes by host must see the host for which the client asked.
                disable_shadow_host_suffix_append=True,
                request_headers_mutations=[_MARK],
            )


def _name(rule: HttpRoute, match: HttpMatchRequest | None) -> str:
    if match is None or not match.name:
        return rule.name or ""
    return f"{rule.name or ''}.{match.name}"


def _operation(route: _Route, virtual_service: VirtualService, port: int) -> str:
    """The name of a route's spans: host and path, or the object where it has several hosts."""
    match = route.match
    path = match.path or match.safe_regex.regex or f"{match.prefix}*"
    if not route.route.cluster:
        return f"{virtual_service.name.name}:{port}{path}"
    _, cluster_port, _, host = route.route.cluster.split("|")
    return f"{host}:{cluster_port}{path}"
