"""The traffic of a host as its objects say it, for one rollout.

Where a rollout makes its own objects, they may not be there yet. Then the view has what the first
write will make: all traffic at the baseline, and a DestinationRule with the rollout's versions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.istio import IstioObjects, Kind, ObjectName, full_host_name
from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.editing.host_routes import divides_requests
from tidegate.istio.editing.split_reading import SplitInEffect, read_split
from tidegate.istio.editing.sticky_routes import divides_users, is_sticky_route
from tidegate.istio.shapes import HostName
from tidegate.istio.virtual_service import VirtualService
from tidegate.kube.resources import DESTINATION_RULES, VIRTUAL_SERVICES, Manifest
from tidegate.rollout.engine.stages import sticky_of
from tidegate.rollout.spec.model import Rollout, WriteMode
from tidegate.rollout.traffic import HostTraffic, Sticky, TrafficSplit
from tidegate.traffic.cluster.capacity import EndpointCount, baseline_shortfall, count_endpoints
from tidegate.traffic.cluster.host_objects import HostObjects, ManifestParser, ServiceHost
from tidegate.traffic.cluster.owned_objects import (
    CAPACITY_ANNOTATION,
    ROLLOUT_ANNOTATION,
    OwnedRoutes,
    delegation_problem,
    foreign_problem,
    is_ours,
    overlap_problem,
    owned_rule,
    planned_subsets,
    service_port,
    target_name,
)
from tidegate.traffic.cluster.split_values import traffic_split
from tidegate.traffic.cluster.sticky import (
    filter_spec,
    filters_hold,
    foreign_filter_problem,
    sticky_of_annotation,
    sticky_problem,
)
from tidegate.traffic.router import TrafficError

__all__ = [
    "HostView",
    "NotRoutedError",
    "OwnedRule",
    "callers_of",
    "view_of",
    "written_name",
]


class NotRoutedError(TrafficError):
    """There is no VirtualService that could be patched."""


@dataclass(frozen=True, slots=True)
class OwnedRule:
    """The DestinationRule of Tidegate's.

    Attributes:
        wanted: What it is to say.
        live: What there is; None if it is not made yet.
    """

    wanted: DestinationRule
    live: Manifest | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A host as one rollout sees it.

    Attributes:
        objects: What there is.
        name: The VirtualService that the rollout writes.
        live: Its value; None if it is not there.
        istio: That VirtualService and the DestinationRules of the host, as edits take them.
        routes: What the VirtualService says beside the split; None with the mode patch.
        rule: The DestinationRule of Tidegate's; None if somebody else's defines the subsets.
        baseline: The baseline of the rollout.
        obstacle: Why the rollout must not begin to write; empty if it may.
        traffic: The traffic.
    """

    objects: HostObjects
    name: str
    live: Manifest | None
    istio: IstioObjects
    routes: OwnedRoutes | None
    rule: OwnedRule | None
    baseline: str
    obstacle: str
    traffic: HostTraffic

    @property
    def virtual_service(self) -> VirtualService | None:
        """The VirtualService as its parsed value."""
        wanted = ObjectName(Kind.VIRTUAL_SERVICE, self.objects.host.namespace, self.name)
        return self.istio.virtual_services.get(wanted)

    def count(self, version: str) -> EndpointCount:
        """Counts the endpoints of a version."""
        return count_endpoints(self.objects, _labels(self.istio).get(version, {}))

    def filter_spec(self, sticky: Sticky) -> dict[str, Any]:
        """Returns what the EnvoyFilters say that keep users on one version.

        Args:
            sticky: What names the users; only the modes own and delegate have it.
        """
        assert self.routes is not None  # noqa: S101 - a sticky split of others' routes is refused
        return filter_spec(self.routes, self.objects, self.baseline, sticky)

    def sticky_problem(self, rollout: Rollout, sticky: Sticky) -> str:
        """Says why the rollout cannot keep users on one version here; empty if it can."""
        rules = self.istio.destination_rules.values()
        return _sticky_problem(rollout, sticky, self.objects, rules)

    @property
    def recorded_capacity(self) -> int | None:
        """The Ready endpoints that the baseline had when the rollout began, if it has begun."""
        return None if self.live is None else _recorded_capacity(self.live)


def written_name(rollout: Rollout, host: ServiceHost) -> str:
    """Returns the VirtualService that a rollout writes; empty if its objects have to tell."""
    if rollout.spec.traffic.write is WriteMode.PATCH:
        return rollout.spec.traffic.virtual_service or ""
    return target_name(rollout, host)


def callers_of(rollout: Rollout, host: ServiceHost) -> tuple[HostName, ...]:
    """Returns the hosts of the callers whose requests a rollout routes itself."""
    if rollout.spec.traffic.write is not WriteMode.OWN:
        return ()
    named = rollout.spec.traffic.hosts or (host.name,)
    return tuple(full_host_name(each, host.namespace) for each in named)


def view_of(rollout: Rollout, objects: HostObjects, parser: ManifestParser) -> HostView:
    """Returns a host as a rollout sees it.

    Args:
        rollout: The rollout.
        objects: What there is for its host.
        parser: Parses manifests.

    Raises:
        TrafficError: An object cannot be read, or nothing routes the host that could be patched.
    """
    if rollout.spec.traffic.write is WriteMode.PATCH:
        return _view_of_patched(rollout, objects, parser)
    return _view_of_owned(rollout, objects, parser)


def _view_of_patched(rollout: Rollout, objects: HostObjects, parser: ManifestParser) -> HostView:
    named = rollout.spec.traffic.virtual_service
    routing = objects.routing()
    if named is not None:
        live = objects.virtual_service(named)
        missing = f"there is no VirtualService {objects.host.namespace}/{named}"
    else:
        owned = (each for each in routing if _is_owned(each, rollout))
        live = next(owned, routing[0] if routing else None)
        missing = (
            f"no VirtualService of the namespace {objects.host.namespace} routes"
            f" {objects.host.name}"
        )
    if live is None:
        raise NotRoutedError(f"{missing}; make it, or let the rollout make one with `write: own`")
    obstacle = ""
    if named is None and len(routing) > 1 and not _is_owned(live, rollout):
        names = ", ".join(sorted(each.metadata.name for each in routing))
        obstacle = (
            f"several VirtualServices route it ({names}); name one as spec.traffic.virtualService"
        )
    rules = parser.destination_rules(objects.rules())
    istio = IstioObjects.of([parser.virtual_service(live), *rules])
    return HostView(
        objects=objects,
        name=live.metadata.name,
        live=live,
        istio=istio,
        routes=None,
        rule=None,
        baseline=rollout.spec.baseline,
        obstacle=obstacle,
        traffic=_traffic(rollout, objects, istio, live, obstacle, None),
    )


def _view_of_owned(rollout: Rollout, objects: HostObjects, parser: ManifestParser) -> HostView:
    host, spec = objects.host, rollout.spec.traffic
    name = target_name(rollout, host)
    live = objects.virtual_service(name)
    is_delegate = spec.write is WriteMode.DELEGATE
    routes = OwnedRoutes(
        name=name,
        host=host,
        port=service_port(rollout, objects),
        hosts=callers_of(rollout, host),
        gateways=() if is_delegate else spec.gateways or ("mesh",),
    )
    rule = _owned_rule(rollout, objects, parser)
    rules = parser.destination_rules(objects.rules()) if rule is None else (rule.wanted,)
    services = () if live is None else (parser.virtual_service(live),)
    istio = IstioObjects.of([*services, *rules])
    obstacle = foreign_problem(live, VIRTUAL_SERVICES) or (
        delegation_problem(name, objects) if is_delegate else overlap_problem(routes, objects)
    )
    return HostView(
        objects=objects,
        name=name,
        live=live,
        istio=istio,
        routes=routes,
        rule=rule,
        baseline=rollout.spec.baseline,
        obstacle=obstacle,
        traffic=_traffic(rollout, objects, istio, live, obstacle, routes),
    )


def _owned_rule(rollout: Rollout, objects: HostObjects, parser: ManifestParser) -> OwnedRule | None:
    """Returns the rule of Tidegate's, unless somebody else's is for the host."""
    rules = objects.rules()
    if any(not is_ours(each) for each in rules):
        return None
    live = rules[0] if rules else None
    name = objects.host.service if live is None else live.metadata.name
    if live is None:
        same_name = (e for e in objects.destination_rules if e.metadata.name == name)
        if problem := foreign_problem(next(same_name, None), DESTINATION_RULES):
            raise TrafficError(problem, permanent=True)
    parsed = None if live is None else parser.destination_rules([live])[0]
    subsets = planned_subsets(rollout, objects, parsed)
    return OwnedRule(owned_rule(name, objects.host, subsets), live)


def _is_owned(item: Manifest, rollout: Rollout) -> bool:
    return item.metadata.annotations.get(ROLLOUT_ANNOTATION) == rollout.key


def _traffic(
    rollout: Rollout,
    objects: HostObjects,
    istio: IstioObjects,
    live: Manifest | None,
    problem: str,
    routes: OwnedRoutes | None,
) -> HostTraffic:
    labels = _labels(istio)
    found: SplitInEffect | None = None
    split = TrafficSplit(weights={rollout.spec.baseline: 100.0})
    if live is not None:
        found = read_split(istio, objects.host.name)
        problem = problem or found.problem or _undivided_problem(rollout, objects, istio)
        split = traffic_split(found.split, _sticky_in_force(rollout, objects, found, live, routes))
    if (sticky := sticky_of(rollout.spec)) is not None:
        rules = istio.destination_rules.values()
        problem = _sticky_problem(rollout, sticky, objects, rules) or problem
    owner = None if found is None else found.owner
    return HostTraffic(
        host=objects.host.name,
        split=split,
        versions=tuple(labels),
        owner="" if owner is None else str(owner),
        ready=tuple(
            name for name, wanted in labels.items() if count_endpoints(objects, wanted).ready
        ),
        problem=problem,
        warning=_warning(rollout, objects, labels, live),
    )


def _sticky_problem(
    rollout: Rollout, sticky: Sticky, objects: HostObjects, rules: Iterable[DestinationRule]
) -> str:
    return sticky_problem(rollout, sticky, objects.filters, rules) or foreign_filter_problem(
        objects.filters
    )


def _sticky_in_force(
    rollout: Rollout,
    objects: HostObjects,
    found: SplitInEffect,
    live: Manifest,
    routes: OwnedRoutes | None,
) -> Sticky | None:
    """Returns what keeps users on a version: what the annotation says, if EnvoyFilters do it."""
    annotation = found.split.sticky
    if annotation is None or routes is None or not is_ours(live):
        # Istio does not read the annotation of an object that others made.
        return None
    sticky = sticky_of_annotation(annotation)
    spec = filter_spec(routes, objects, rollout.spec.baseline, sticky)
    return sticky if filters_hold(objects.filters, spec) else None


def _undivided_problem(rollout: Rollout, objects: HostObjects, istio: IstioObjects) -> str:
    """Says that somebody left one version in a route that keeps users; empty if nobody did."""
    for service in istio.virtual_services.values():
        for route in service.http:
            if (
                is_sticky_route(route)
                and divides_requests(route, objects.host.name)
                and not divides_users(route)
            ):
                return (
                    f"the route {route.name} of {service.name} keeps users on a version, and only"
                    " one version has weight in it: proxies may send its requests to"
                    f" {rollout.spec.baseline} all the same; give two versions weight, or remove"
                    " the name"
                )
    return ""


def _warning(
    rollout: Rollout,
    objects: HostObjects,
    labels: Mapping[str, Mapping[str, str]],
    live: Manifest | None,
) -> str:
    """Says that the baseline could not take all traffic back; empty if it could."""
    baseline = rollout.spec.baseline
    recorded = _recorded_capacity(live) if live is not None and _is_owned(live, rollout) else None
    if recorded is None or baseline not in labels:
        return ""
    return baseline_shortfall(baseline, count_endpoints(objects, labels[baseline]), recorded)


def _recorded_capacity(live: Manifest) -> int | None:
    number = live.metadata.annotations.get(CAPACITY_ANNOTATION, "").partition("=")[2]
    return int(number) if number.isascii() and number.isdigit() else None


def _labels(istio: IstioObjects) -> Mapping[str, Mapping[str, str]]:
    """Returns the labels of each subset."""
    return {
        str(subset.name): subset.labels
        for rule in istio.destination_rules.values()
        for subset in rule.subsets
    }
