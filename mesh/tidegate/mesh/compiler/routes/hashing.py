"""Hash policies: which part of a request Envoy hashes to choose an endpoint or a destination.

Envoy mixes the hashes of all policies of a route into one number. That number chooses the endpoint
where a DestinationRule asks for ``consistentHash``, and the destination where the annotation
``tidegate.dev/sticky`` does.
"""

from collections.abc import Iterable
from typing import TypeAlias

from envoy.config.route.v3 import route_components_pb2

from tidegate.istio.annotations import Sticky
from tidegate.istio.destination_rule import ConsistentHash
from tidegate.istio.shapes import HeaderName
from tidegate.istio.virtual_service import HttpRoute, VirtualService
from tidegate.mesh.compiler.errors import CompileError
from tidegate.mesh.compiler.protobuf import duration
from tidegate.mesh.compiler.routes.destinations import RouteContext
from tidegate.mesh.compiler.routes.weights import WeightedCluster

__all__ = ["add_hash_policies", "hash_policies", "hash_policy"]

_Action: TypeAlias = route_components_pb2.RouteAction
_HashPolicy: TypeAlias = route_components_pb2.RouteAction.HashPolicy


def add_hash_policies(
    action: _Action,
    virtual_service: VirtualService,
    path: str,
    rule: HttpRoute,
    called: Iterable[WeightedCluster],
    context: RouteContext,
) -> bool:
    """Adds hash policies to a route, and lets one choose the destination where it is sticky.

    Args:
        action: The route; its destinations are set.
        virtual_service: The object.
        path: The path of the rule in it.
        rule: The rule.
        called: The destinations of the rule that get requests.
        context: Where the route is; it takes errors.

    Returns:
        Whether a hash chooses the endpoint.
    """
    policies = hash_policies(called, context)
    sticky = virtual_service.annotations.sticky
    if sticky and not action.cluster:
        action.weighted_clusters.use_hash_policy.value = True
        wanted = _sticky_policy(sticky)
        # A destination without weight may get some later, which is too late to refuse it.
        hashed = filter(None, (context.consistent_hash(each.destination) for each in rule.route))
        if any(hash_policy(each) != wanted for each in hashed):
            context.errors.append(
                CompileError(
                    virtual_service.name,
                    "metadata.annotations[tidegate.dev/sticky]",
                    f"{path} has a destination whose DestinationRule hashes something else than "
                    f"{sticky}, and Envoy makes one hash of a request",
                    f"write {_consistent_hash(sticky)} in the DestinationRule, or remove one of "
                    "the two",
                )
            )
        action.hash_policy.append(wanted)
    else:
        action.hash_policy.extend(policies)
    return bool(policies)


def hash_policies(called: Iterable[WeightedCluster], context: RouteContext) -> list[_HashPolicy]:
    """The hash policies of the destinations that get requests, each policy once.

    Destinations without weight have no say: the users of a finished shift would move when the
    other version's header changes. istiod repeats a policy that two destinations share, so users
    change endpoints when such a shift begins and ends.
    """
    policies: list[_HashPolicy] = []
    for each in called:
        hashing = context.consistent_hash(each.destination.destination)
        if hashing and (policy := hash_policy(hashing)) not in policies:
            policies.append(policy)
    return policies


def hash_policy(hashing: ConsistentHash) -> _HashPolicy:
    """A DestinationRule's ``consistentHash`` as Envoy's hash policy."""
    if hashing.http_header_name:
        return _header_policy(hashing.http_header_name)
    policy = _HashPolicy()
    if hashing.http_cookie:
        cookie = hashing.http_cookie
        policy.cookie.name = cookie.name
        if cookie.path:
            policy.cookie.path = cookie.path
        if cookie.ttl is not None:
            policy.cookie.ttl.CopyFrom(duration(cookie.ttl))
    elif hashing.http_query_parameter_name:
        policy.query_parameter.name = hashing.http_query_parameter_name
    else:
        policy.connection_properties.source_ip = True
    return policy


def _sticky_policy(sticky: Sticky) -> _HashPolicy:
    if sticky.header is not None:
        return _header_policy(sticky.header)
    # Without a lifetime Envoy makes no cookie for requests that have none.
    return _HashPolicy(cookie=_HashPolicy.Cookie(name=sticky.cookie or ""))


def _consistent_hash(sticky: Sticky) -> str:
    if sticky.header is not None:
        return f"consistentHash.httpHeaderName: {sticky.header}"
    return f"consistentHash.httpCookie: {{name: {sticky.cookie}}}"


def _header_policy(header: HeaderName) -> _HashPolicy:
    policy = _HashPolicy()
    policy.header.header_name = header
    return policy
