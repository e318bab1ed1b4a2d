"""The objects that Tidegate makes: a VirtualService for the modes own and delegate, and its rule.

Tidegate applies them whole, as the field manager ``tidegate``. The label
``app.kubernetes.io/managed-by: tidegate`` says that an object is Tidegate's. Without the label an
object is somebody else's, and Tidegate does not take it over.

The objects have no owner reference to the Rollout. Deleting a Rollout must not delete routes that
carry traffic, and the next rollout of the host goes on with the same objects.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tidegate.istio import IstioObjects, Kind, ObjectName, full_gateway_name, full_host_name
from tidegate.istio.annotations import RolloutName
from tidegate.istio.destination_rule import DestinationRule, Subset
from tidegate.istio.editing.plain_values import plain
from tidegate.istio.editing.splits import HostSplit, with_split
from tidegate.istio.editing.sticky_routes import (
    divides_users,
    sticky_route_name,
    with_sticky_total,
)
from tidegate.istio.names import MESH
from tidegate.istio.shapes import GatewayName, HostName, SubsetName
from tidegate.istio.virtual_service import (
    Destination,
    HttpRetry,
    HttpRoute,
    HttpRouteDestination,
    VirtualService,
)
from tidegate.kube.resources import Manifest, Resource
from tidegate.rollout.spec.model import Rollout, WriteMode
from tidegate.traffic.cluster.capacity import count_endpoints
from tidegate.traffic.cluster.host_objects import HostObjects, ServiceHost
from tidegate.traffic.router import TrafficError

__all__ = [
    "CAPACITY_ANNOTATION",
    "MANAGED_BY",
    "MANAGER",
    "ROLLOUT_ANNOTATION",
    "OwnedRoutes",
    "delegation_problem",
    "foreign_problem",
    "is_ours",
    "overlap_problem",
    "owned_rule",
    "owned_service",
    "planned_subsets",
    "revision_of",
    "rule_body",
    "same_routes",
    "service_port",
    "target_name",
]

MANAGER: Final = "tidegate"
"""The field manager of everything that Tidegate writes."""

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
"""The label that says whose an object is."""

ROLLOUT_ANNOTATION: Final = "tidegate.dev/rollout"
"""The rollout that owns the split, as ``namespace/name``."""

CAPACITY_ANNOTATION: Final = "tidegate.dev/rollout-capacity"
"""``VERSION=NUMBER``: the Ready endpoints that the baseline had when the rollout began."""

_VERSION: Final = "version"
_REVISION: Final = re.compile(r"@[^@]*$")


# Only requests that no server has seen. By Istio's default a failed call is repeated, which begins
# a stream twice and hides the failures of a bad version.
_RETRIES: Final = HttpRetry(attempts=2, retry_on="connect-failure,refused-stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedRoutes:
    """What a VirtualService of Tidegate's says beside the split.

    Attributes:
        name: Its name.
        host: The host that it routes.
        port: The port of the host.
        hosts: The hosts of its callers; none for a delegate.
        gateways: The gateways with its routes; none for a delegate.
    """

    name: str
    host: ServiceHost
    port: int
    hosts: tuple[str, ...]
    gateways: tuple[str, ...]


def target_name(rollout: Rollout, host: ServiceHost) -> str:
    """Returns the name of the VirtualService of a rollout that owns it or delegates to it."""
    traffic = rollout.spec.traffic
    suffix = "-rollout" if traffic.write is WriteMode.DELEGATE else ""
    return traffic.virtual_service or f"{host.service}{suffix}"


def service_port(rollout: Rollout, objects: HostObjects) -> int:
    """Returns the port of the host that a rollout's own routes name.

    Raises:
        TrafficError: The Service has several, or none that the rollout names.
    """
    named = rollout.spec.traffic.port
    service = objects.service
    ports = [] if service is None else [each.port for each in service.spec.ports]
    where = f"the Service {objects.host.namespace}/{objects.host.service}"
    if service is None:
        raise TrafficError(f"there is no {where.removeprefix('the ')}; make it")
    if named is None and len(ports) == 1:
        return ports[0]
    known = ", ".join(map(str, ports)) or "none"
    if named is None:
        raise TrafficError(
            f"{where} has the ports {known}; name one as spec.traffic.port", permanent=True
        )
    if named not in ports:
        raise TrafficError(
            f"{where} has no port {named}, which spec.traffic.port names; it has {known}",
            permanent=True,
        )
    return named


def owned_service(
    routes: OwnedRoutes,
    split: HostSplit,
    rule: DestinationRule,
    baseline: str,
    owner: RolloutName | None,
    revision: str,
) -> dict[str, Any]:
    """Returns a VirtualService of Tidegate's as a body for server-side apply.

    Args:
        routes: What it says beside the split.
        split: The split.
        rule: The rule that defines the subsets.
        baseline: The version that comes last in its routes.
        owner: The rollout that owns the split; None gives it back.
        revision: What the names of its routes end with. A route that keeps users has one of
            `STICKY_REVISIONS`.

    Raises:
        EditError: The split is impossible.
    """
    host, namespace = routes.host.name, routes.host.namespace
    destination = Destination(host=host, subset=SubsetName(baseline), port=routes.port)
    bare = VirtualService(
        name=ObjectName(Kind.VIRTUAL_SERVICE, namespace, routes.name),
        hosts=tuple(full_host_name(each, namespace) for each in routes.hosts),
        gateways=tuple(full_gateway_name(each, namespace) for each in routes.gateways) or (MESH,),
        http=(
            HttpRoute(
                name=routes.host.service,
                route=(HttpRouteDestination(destination=destination, weight=100),),
                # A delegate leaves them out: those of the route that delegates hold.
                retries=_RETRIES if routes.hosts else None,
            ),
        ),
    )
    edited = with_split(IstioObjects.of([bare, rule]), host, split, owner)
    made = edited.virtual_services[bare.name]
    http = [
        _keeping_users(each, routes) if split.sticky is not None and divides_users(each) else each
        for each in made.http
    ]
    named = replace(
        made,
        http=tuple(replace(each, name=f"{each.name}@{revision}") for each in http),
        annotations=replace(made.annotations, rollout_before=None),
    )
    return _body(plain(named))


def _keeping_users(route: HttpRoute, routes: OwnedRoutes) -> HttpRoute:
    """Returns a route with the name by which an EnvoyFilter finds it."""
    name = sticky_route_name(routes.host.namespace, routes.name)
    return replace(with_sticky_total(route), name=name)


def owned_rule(name: str, host: ServiceHost, subsets: Sequence[str]) -> DestinationRule:
    """Returns the DestinationRule of Tidegate's: subsets by the label ``version``.

    Args:
        name: Its name.
        host: The host.
        subsets: The subsets.
    """
    return DestinationRule(
        name=ObjectName(Kind.DESTINATION_RULE, host.namespace, name),
        host=host.name,
        subsets=tuple(Subset(name=SubsetName(each), labels={_VERSION: each}) for each in subsets),
    )


def rule_body(rule: DestinationRule) -> dict[str, Any]:
    """Returns a DestinationRule of Tidegate's as a body for server-side apply."""
    return _body(plain(rule))


def planned_subsets(
    rollout: Rollout, objects: HostObjects, rule: DestinationRule | None
) -> tuple[str, ...]:
    """Returns the subsets that the DestinationRule of Tidegate's is to have.

    These are the rollout's versions. A subset of before stays as long as a route names it or a Pod
    of it is left: so no request can be open on it when it goes.

    Args:
        rollout: The rollout.
        objects: What there is for the host.
        rule: The rule as it is now; None if there is none.
    """
    wanted = (rollout.spec.baseline, *rollout.spec.candidate_names)
    named = set(_named_subsets(objects))
    kept = (
        each.name
        for each in (rule.subsets if rule is not None else ())
        if each.name in named or count_endpoints(objects, each.labels).all
    )
    return tuple(dict.fromkeys((*wanted, *map(str, kept))))


def is_ours(item: Manifest) -> bool:
    """Returns whether an object is Tidegate's."""
    return item.metadata.labels.get(MANAGED_BY) == MANAGER


def foreign_problem(item: Manifest | None, resource: Resource[Manifest]) -> str:
    """Says that somebody else made an object, and what to do; empty if it is Tidegate's."""
    if item is None or is_ours(item):
        return ""
    return (
        f"{resource.kind} {item.key} is there and Tidegate did not make it; use `write: patch` to"
        " divide the requests in it, name another object as spec.traffic.virtualService, or hand"
        f" it over with the label {MANAGED_BY}={MANAGER}"
    )


def overlap_problem(routes: OwnedRoutes, objects: HostObjects) -> str:
    """Says which other VirtualService routes the same callers; empty if none does.

    Of two VirtualServices for one host in the mesh, istiod uses the older one.
    """
    namespace = routes.host.namespace
    hosts = {full_host_name(each, namespace) for each in routes.hosts}
    gateways = {full_gateway_name(each, namespace) for each in routes.gateways}
    for each in objects.virtual_services:
        if each.metadata.name == routes.name:
            continue
        there = {full_host_name(str(name), namespace) for name in each.spec.get("hosts") or ()}
        if hosts & there and gateways & _gateways(each):
            shared = ", ".join(sorted(hosts & there))
            return (
                f"VirtualService {each.key} also routes {shared}; remove it, or use `write: patch`"
                " to divide the requests in it"
            )
    return ""


def delegation_problem(name: str, objects: HostObjects) -> str:
    """Says that no VirtualService delegates to one; empty if one does.

    Args:
        name: The name of the delegate, in the namespace of the host.
        objects: What there is for the host.
    """
    namespace = objects.host.namespace
    for each in objects.delegating:
        for route in each.spec.get("http") or ():
            target = route.get("delegate") or {}
            where = target.get("namespace") or each.metadata.namespace
            if target.get("name") == name and where == namespace:
                return ""
    return (
        f"no VirtualService delegates to {namespace}/{name}; write"
        f" `delegate: {{name: {name}, namespace: {namespace}}}` in a route of the one that has the"
        " callers' hosts, in a namespace that Tidegate reads"
    )


def revision_of(spec: Mapping[str, Any]) -> str:
    """Returns the revision in the names of the routes of a spec; empty if there is none."""
    for each in spec.get("http") or ():
        if found := _REVISION.search(str(each.get("name", ""))):
            return found.group()[1:]
    return ""


def same_routes(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Returns whether two specs are equal but for the revisions in the names of their routes."""
    return _without_revisions(one) == _without_revisions(other)


def _without_revisions(spec: Mapping[str, Any]) -> dict[str, Any]:
    routes = [
        {**each, "name": _REVISION.sub("", str(each.get("name", "")))}
        for each in spec.get("http") or ()
    ]
    return {**spec, "http": routes}


def _body(values: dict[str, Any]) -> dict[str, Any]:
    metadata = values["metadata"]
    return {**values, "metadata": {**metadata, "labels": {MANAGED_BY: MANAGER}}}


def _gateways(item: Manifest) -> set[GatewayName]:
    named = item.spec.get("gateways") or (MESH,)
    return {full_gateway_name(str(each), item.metadata.namespace) for each in named}


def _named_subsets(objects: HostObjects) -> Iterator[str]:
    host = objects.host
    for item in objects.virtual_services:
        for route in item.spec.get("http") or ():
            mirrors = [route.get("mirror"), *(_destination(e) for e in route.get("mirrors") or ())]
            for each in (*map(_destination, route.get("route") or ()), *mirrors):
                if each and _is_host(each.get("host"), item, host.name) and each.get("subset"):
                    yield str(each["subset"])


def _destination(each: Mapping[str, Any]) -> Any:
    return each.get("destination")


def _is_host(name: Any, item: Manifest, host: HostName) -> bool:
    return isinstance(name, str) and full_host_name(name, item.metadata.namespace) == host
