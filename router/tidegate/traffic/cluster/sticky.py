"""What keeps users on one version on Istio: an EnvoyFilter for the routes of one VirtualService.

istiod does not read the annotation ``tidegate.dev/sticky``. For a split that keeps users, Tidegate
writes the annotation to its own VirtualService, gives the route a name that only such routes have,
and has an EnvoyFilter in each namespace whose proxies send the calls. istiod merges two settings
into each route with one of the names: which part of a request is hashed, and that the hash chooses
the version.

**A route to a single version** cannot take them. istiod makes a route without weights of it, the
merge would leave weights of no version, and a proxy would reject all its routes. The router never
gives such a route the name. Somebody else may edit the route, so the EnvoyFilter also adds the
baseline with the weight 1 of 100,001: then there is always a version.

The annotation says what is meant, and the EnvoyFilters what is in force. A split is sticky only
where both agree, so an EnvoyFilter that somebody deletes is seen as a change of the traffic.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tidegate.istio.annotations import Sticky as StickyAnnotation
from tidegate.istio.destination_rule import ConsistentHash, DestinationRule
from tidegate.istio.editing.sticky_routes import STICKY_REVISIONS, sticky_route_name
from tidegate.istio.shapes import HeaderName
from tidegate.kube.resources import Manifest
from tidegate.rollout.spec.model import Rollout, WriteMode
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.traffic.cluster.host_objects import HostObjects
from tidegate.traffic.cluster.owned_objects import (
    MANAGED_BY,
    MANAGER,
    ROLLOUT_ANNOTATION,
    OwnedRoutes,
    is_ours,
)

__all__ = [
    "STICKY_ANNOTATION",
    "filter_body",
    "filter_name",
    "filter_spec",
    "filters_hold",
    "foreign_filter_problem",
    "namespace_of_filter",
    "sticky_annotation",
    "sticky_of_annotation",
    "sticky_problem",
]

STICKY_ANNOTATION: Final = "tidegate.dev/sticky"
"""``header:NAME`` or ``cookie:NAME``: what names the users that stay on one version."""

_INSTEAD: Final = "or name the users of the candidate as `testers` instead of `sticky`"
_PREFIX: Final = "tidegate-sticky."
_GUARD_WEIGHT: Final = 1


def filter_name(namespace: str, service: str) -> str:
    """Returns the name of the EnvoyFilters for the routes of a VirtualService.

    Args:
        namespace: The namespace of the VirtualService.
        service: The name of the VirtualService.
    """
    # A namespace has no dot, so no other VirtualService gets the same name.
    return f"{_PREFIX}{namespace}.{service}"


def namespace_of_filter(name: str) -> str:
    """Returns the namespace of the VirtualService of an EnvoyFilter; empty for another's name."""
    return name.removeprefix(_PREFIX).partition(".")[0] if name.startswith(_PREFIX) else ""


def filter_spec(
    routes: OwnedRoutes, objects: HostObjects, baseline: str, sticky: Sticky
) -> dict[str, Any]:
    """Returns what an EnvoyFilter for the routes of a VirtualService says.

    Args:
        routes: What the VirtualService says beside the split.
        objects: What there is for the host: those that delegate to the VirtualService decide the
            names of its routes at the proxies.
        baseline: The baseline.
        sticky: What names the users.
    """
    where = routes.host
    guard = f"outbound|{routes.port}|{baseline}|{where.name}"
    value = {
        "route": {
            "weighted_clusters": {
                "clusters": [{"name": guard, "weight": _GUARD_WEIGHT}],
                "use_hash_policy": True,
            },
            "hash_policy": [_hash_policy(sticky)],
        }
    }
    name = sticky_route_name(where.namespace, routes.name)
    return {
        "configPatches": [
            {
                "applyTo": "HTTP_ROUTE",
                "match": {
                    "context": context,
                    "routeConfiguration": {
                        "vhost": {"route": {"name": f"{before}{name}@{revision}{after}"}}
                    },
                },
                "patch": {"operation": "MERGE", "value": value},
            }
            for before, after in sorted(_around_names(routes, objects))
            for revision in STICKY_REVISIONS
            for context in ("GATEWAY", "SIDECAR_OUTBOUND")
        ]
    }


def filter_body(name: str, namespace: str, owner: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an EnvoyFilter as a body for server-side apply.

    Args:
        name: Its name.
        namespace: Its namespace.
        owner: The rollout that needs it, as ``namespace/name``.
        spec: What it says.
    """
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {MANAGED_BY: MANAGER},
            "annotations": {ROLLOUT_ANNOTATION: owner},
        },
        "spec": dict(spec),
    }


def filters_hold(filters: Mapping[str, Manifest | None], spec: Mapping[str, Any]) -> bool:
    """Returns whether there are EnvoyFilters, and each is Tidegate's and says this."""
    return bool(filters) and all(
        each is not None and is_ours(each) and each.spec == spec for each in filters.values()
    )


def foreign_filter_problem(filters: Mapping[str, Manifest | None]) -> str:
    """Says that somebody else made one of the EnvoyFilters; empty if nobody did."""
    for each in filters.values():
        if each is not None and not is_ours(each):
            return (
                f"EnvoyFilter {each.key} is there and Tidegate did not make it; remove it, or hand"
                f" it over with the label {MANAGED_BY}={MANAGER}"
            )
    return ""


def sticky_problem(
    rollout: Rollout,
    sticky: Sticky,
    filters: Mapping[str, Manifest | None],
    rules: Iterable[DestinationRule],
) -> str:
    """Says why a rollout cannot keep users on one version; empty if it can.

    Args:
        rollout: The rollout.
        sticky: What names the users.
        filters: The EnvoyFilters, by the namespaces in which the router may write them.
        rules: The DestinationRules of the host.
    """
    if rollout.spec.traffic.write is WriteMode.PATCH:
        return (
            "Istio keeps users on one version only in routes that Tidegate names, and with `write:"
            " patch` your routes keep their names; use `write: delegate` or `write: own`,"
            f" {_INSTEAD}"
        )
    if not filters:
        return (
            "this router may not keep users on one version, which takes an EnvoyFilter on Istio;"
            " name the namespaces of the callers' proxies in the router's setting"
            " --sticky-namespaces, and give it the rights of the component"
            f" mesh/istio/components/sticky, {_INSTEAD}"
        )
    for rule in rules:
        if any(not _hashes(each, sticky) for each in _consistent_hashes(rule)):
            wanted = (
                f"httpHeaderName: {sticky.name}"
                if sticky.kind is MatchKind.HEADER
                else f"httpCookie: {{name: {sticky.name}}}"
            )
            return (
                f"{rule.name} hashes something else than {sticky}, and Envoy makes one hash of a"
                f" request; write `consistentHash: {{{wanted}}}` there, or remove one of the two"
            )
    return ""


def sticky_annotation(sticky: Sticky) -> StickyAnnotation:
    """Returns what names the users as annotations have it."""
    if sticky.kind is MatchKind.HEADER:
        return StickyAnnotation(header=HeaderName(sticky.name))
    return StickyAnnotation(cookie=sticky.name)


def sticky_of_annotation(annotation: StickyAnnotation) -> Sticky:
    """Returns what names the users as the engine has it."""
    if annotation.header is not None:
        return Sticky(kind=MatchKind.HEADER, name=annotation.header)
    return Sticky(kind=MatchKind.COOKIE, name=annotation.cookie or "")


def _hash_policy(sticky: Sticky) -> dict[str, Any]:
    if sticky.kind is MatchKind.HEADER:
        return {"header": {"header_name": sticky.name}}
    # Without a lifetime Envoy makes no cookie for requests that have none.
    return {"cookie": {"name": sticky.name}}


def _around_names(routes: OwnedRoutes, objects: HostObjects) -> set[tuple[str, str]]:
    """What istiod puts before and after the names of the VirtualService's routes.

    A route of a delegate is named for the route that delegates too, and for a match of it.
    """
    if routes.hosts:
        return {("", "")}
    namespace = routes.host.namespace
    found: set[tuple[str, str]] = set()
    for each in objects.delegating:
        for route in each.spec.get("http") or ():
            target = route.get("delegate") or {}
            where = target.get("namespace") or each.metadata.namespace
            if target.get("name") != routes.name or where != namespace:
                continue
            before = f"{route['name']}-" if route.get("name") else ""
            matches: list[Mapping[str, Any]] = route.get("match") or [{}]
            names = (each.get("name") for each in matches)
            found |= {(before, f".{each}" if each else "") for each in names}
    return found


def _consistent_hashes(rule: DestinationRule) -> Iterator[ConsistentHash]:
    for policy in (rule.traffic_policy, *(each.traffic_policy for each in rule.subsets)):
        if policy is None:
            continue
        ports = (each.load_balancer for each in policy.port_level_settings)
        for balancer in (policy.load_balancer, *ports):
            if balancer is not None and balancer.consistent_hash is not None:
                yield balancer.consistent_hash


def _hashes(hashing: ConsistentHash, sticky: Sticky) -> bool:
    """Whether a hash for endpoints is of the same part of a request."""
    if sticky.kind is MatchKind.HEADER:
        return hashing.http_header_name == sticky.name
    cookie = hashing.http_cookie
    return (
        cookie is not None
        and cookie.name == sticky.name
        # Envoy would make a cookie of its own for a request without one.
        and cookie.ttl is None
        and not cookie.path
    )
