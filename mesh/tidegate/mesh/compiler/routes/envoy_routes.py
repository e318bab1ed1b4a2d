"""Routes of a VirtualService as Envoy takes them.

Each ``match`` of a rule becomes a route of its own, in order, and the first route that matches
takes the request. What follows the first catch-all can never be reached and is left out.

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
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import regex_pb2
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value
from tidegate.mesh.compiler.routes.envoy_routes.destinations import (
    Scope,
    hash_by_header,
    hash_policy,
)
from tidegate.mesh.compiler.routes.envoy_routes.filters import allow_origins, inject_fault
from tidegate.mesh.compiler.routes.envoy_routes.matches import is_catch_all, route_match
from tidegate.mesh.compiler.routes.envoy_routes.retries import retry_policy
from tidegate.mesh.compiler.routes.envoy_routes.rewrites import authority_of, change_headers
from tidegate.mesh.compiler.routes.envoy_routes.route_tables import DEADLINE_HEADER
from tidegate.mesh.compiler.routes.envoy_routes.weights import for_random, for_sticky

from tidegate.istio.virtual_service import (
    DirectResponse,
    HttpMatchRequest,
    HttpRedirect,
    HttpRewrite,
    HttpRoute,
    HttpRouteDestination,
    Mirror,
    RedirectPort,
    VirtualService,
)
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.protobuf import duration, share

__all__ = ["applicable", "hash_policies", "routes_of", "weighted"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_REDIRECTS: Final = {
    301: route_components_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: route_components_pb2.RedirectAction.FOUND,
    303: route_components_pb2.RedirectAction.SEE_OTHER,
    307: route_components_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: route_components_pb2.RedirectAction.PERMANENT_REDIRECT,
}

_Action: TypeAlias = route_components_pb2.RouteAction
_HashPolicy: TypeAlias = route_components_pb2.RouteAction.HashPolicy
_Route: TypeAlias = route_components_pb2.Route


def routes_of(service: VirtualService, scope: Scope) -> list[_Route]:
    """The routes of a VirtualService, in order."""
    routes = []
    for index, rule, match in applicable(service, scope):
        route = _Route(name=_name(rule, match), match=route_match(match))
        change_headers(route, rule.headers)
        if rule.redirect:
            _redirect(route, service, f"spec.http[{index}].redirect", rule.redirect, scope)
        elif rule.direct_response:
            _respond(route, rule.direct_response)
        else:
            _forward(route, service, f"spec.http[{index}]", rule, scope)
        if rule.fault:
            inject_fault(route, rule.fault)
        if rule.cors_policy:
            allow_origins(route, rule.cors_policy)
        route.decorator.operation = _operation(route, service, scope.port)
        routes.append(route)
        if is_catch_all(route.match):
            break
    return routes


def applicable(
    service: VirtualService, scope: Scope
) -> Iterator[tuple[int, HttpRoute, HttpMatchRequest | None]]:
    """The rules that hold at some gateways and a port, once for each of their conditions."""
    for index, rule in enumerate(service.http):
        if not rule.match:
            yield index, rule, None
        for match in rule.match:
            if match.holds_at(scope.gateway, scope.port):
                yield index, rule, match


def weighted(
    service: VirtualService, path: str, rule: HttpRoute, scope: Scope
) -> list[tuple[HttpRouteDestination, str, int]]:
    """The destinations that get requests, each with its cluster and its weight.

    A single destination gets everything, whatever its weight; of several, those without weight get
    nothing and are left out.
    """
    clusters = [
        scope.cluster(service.name, f"{path}.route[{index}].destination", each.destination)
        for index, each in enumerate(rule.route)
    ]
    if len(rule.route) == 1:
        return [(rule.route[0], clusters[0], 1)]
    weights = [each.weight for each in rule.route]
    bring = for_sticky if service.annotations.sticky else for_random
    return [
        (each, cluster, weight)
        for each, cluster, weight in zip(rule.route, clusters, bring(weights), strict=True)
        if weight
    ]


def hash_policies(
    called: Iterable[tuple[HttpRouteDestination, str, int]], scope: Scope
) -> list[_HashPolicy]:
    """What of a request is hashed for the destinations that get requests, each policy once.

    Envoy mixes the hashes of all policies. A destination without weight has no say, or the users of
    a finished shift would move when the other version's header changes. istiod repeats a policy
    that two destinations share, so that users change endpoints when such a shift begins and ends.
    """
    policies: list[_HashPolicy] = []
    for each, _, _ in called:
        hashing = scope.consistent_hash(each.destination)
        if hashing and (policy := hash_policy(hashing)) not in policies:
            policies.append(policy)
    return policies


def _forward(
    route: _Route, service: VirtualService, path: str, rule: HttpRoute, scope: Scope
) -> None:
    action = route.route
    timeout = duration(rule.timeout or dt.timedelta())
    action.timeout.CopyFrom(timeout)
    action.max_stream_duration.max_stream_duration.CopyFrom(timeout)
    if rule.timeout:
        # Envoy tells the server of its own clock instead of the client's deadline.
        kept = base_pb2.HeaderValue(key="grpc-timeout", value=f"%REQ({DEADLINE_HEADER})%")
        overwrite = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        route.request_headers_to_add.add(header=kept, append_action=overwrite)
    authority = authority_of(rule.headers)
    if rule.rewrite:
        _rewrite(action, rule.rewrite)
        authority = rule.rewrite.authority or authority
    if authority:
        action.host_rewrite_literal = authority
    _mirror(action, service, path, rule, scope)
    single = len(rule.route) == 1
    called = weighted(service, path, rule, scope)
    for destination, cluster, weight in called:
        if single:
            action.cluster = cluster
            change_headers(route, destination.headers)
            own_authority = authority_of(destination.headers)
            if own_authority and not authority:
                action.host_rewrite_literal = own_authority
        else:
            part = action.weighted_clusters.clusters.add(
                name=cluster, weight=UInt32Value(value=weight)
            )
            change_headers(part, destination.headers)
            own_authority = authority_of(destination.headers)
            if own_authority:
                part.host_rewrite_literal = own_authority
    hashed = _hash(action, service, path, rule, hash_policies(called, scope), scope)
    retries = retry_policy(rule.retries, hashed=hashed and single)
    if retries is not None:
        action.retry_policy.CopyFrom(retries)


def _hash(
    action: _Action,
    service: VirtualService,
    path: str,
    rule: HttpRoute,
    policies: list[_HashPolicy],
    scope: Scope,
) -> bool:
    """Says what of a request is hashed; returns whether endpoints are chosen by it."""
    sticky = service.annotations.sticky
    if sticky and not action.cluster:
        action.weighted_clusters.use_hash_policy.value = True
        wanted = hash_by_header(sticky.header)
        # A destination without weight may get some, and then it is too late to refuse.
        every = filter(None, (scope.consistent_hash(each.destination) for each in rule.route))
        if any(hash_policy(each) != wanted for each in every):
            scope.errors.append(
                CompileError(
                    service.name,
                    "metadata.annotations[tidegate.dev/sticky]",
                    f"{path} has a destination whose DestinationRule hashes something else than "
                    f"{sticky}, and Envoy makes one hash of a request",
                    f"write consistentHash.httpHeaderName: {sticky.header} in the DestinationRule, "
                    "or remove one of the two",
                )
            )
        action.hash_policy.append(wanted)
        return bool(policies)
    action.hash_policy.extend(policies)
    return bool(policies)


def _mirror(
    action: _Action, service: VirtualService, path: str, rule: HttpRoute, scope: Scope
) -> None:
    mirrors = [(f"{path}.mirrors[{i}].destination", each) for i, each in enumerate(rule.mirrors)]
    if rule.mirror:
        percentage = 100.0 if rule.mirror_percentage is None else rule.mirror_percentage
        single = Mirror(destination=rule.mirror, percentage=percentage)
        mirrors.insert(0, (f"{path}.mirror", single))
    for where, mirror in mirrors:
        cluster = scope.cluster(service.name, where, mirror.destination)
        if mirror.percentage:
            action.request_mirror_policies.add(
                cluster=cluster,
                runtime_fraction=share(mirror.percentage),
                trace_sampled=BoolValue(value=False),
                # A target that routes by host must see the host that the client asked for.
                disable_shadow_host_suffix_append=True,
            )


def _rewrite(action: _Action, rewrite: HttpRewrite) -> None:
    if rewrite.uri_regex_rewrite:
        action.regex_rewrite.pattern.CopyFrom(
            regex_pb2.RegexMatcher(regex=rewrite.uri_regex_rewrite.match)
        )
        action.regex_rewrite.substitution = rewrite.uri_regex_rewrite.rewrite
    elif rewrite.uri:
        action.prefix_rewrite = rewrite.uri


def _redirect(
    route: _Route, service: VirtualService, path: str, redirect: HttpRedirect, scope: Scope
) -> None:
    action = route.redirect
    code = _REDIRECTS.get(redirect.redirect_code)
    if code is None:
        known = ", ".join(map(str, _REDIRECTS))
        reason = f"Envoy cannot redirect with {redirect.redirect_code}"
        scope.errors.append(
            CompileError(service.name, f"{path}.redirectCode", reason, f"write one of {known}")
        )
        return
    action.response_code = code
    if redirect.authority:
        action.host_redirect = redirect.authority
    if redirect.uri:
        action.path_redirect = redirect.uri
    if redirect.scheme:
        action.scheme_redirect = redirect.scheme
    port = redirect.port
    if redirect.derive_port is RedirectPort.FROM_REQUEST_PORT:
        port = scope.port
    scheme = redirect.scheme or ("https" if scope.tls else "http")
    if port and port != _DEFAULT_PORTS.get(scheme):
        action.port_redirect = port


def _respond(route: _Route, response: DirectResponse) -> None:
    route.direct_response.status = response.status
    if response.body is not None:
        route.direct_response.body.CopyFrom(base_pb2.DataSource(inline_string=response.body))


def _name(rule: HttpRoute, match: HttpMatchRequest | None) -> str:
    if match is None or not match.name:
        return rule.name or ""
    return f"{rule.name or ''}.{match.name}"


def _operation(route: _Route, service: VirtualService, port: int) -> str:
    """What spans of the route are called: host and path, or the object where hosts are several."""
    match = route.match
    path = match.path or match.safe_regex.regex or f"{match.prefix}*"
    if not route.route.cluster:
        return f"{service.name.name}:{port}{path}"
    _, cluster_port, _, host = route.route.cluster.split("|")
    return f"{host}:{cluster_port}{path}"
