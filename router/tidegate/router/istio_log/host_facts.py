"""What the cluster's objects say of hosts, for `Attribution`: pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tidegate.istio import IstioObject
from tidegate.istio.destination_rule import DestinationRule
from tidegate.istio.editing.host_routes import mirrors_of
from tidegate.istio.editing.tester_routes import TESTER_ROUTE_PREFIX
from tidegate.istio.virtual_service import VirtualService
from tidegate.router.istio_log.attribution import HostFacts

__all__ = ["facts_of"]


def facts_of(
    objects: Iterable[IstioObject], selectors: Mapping[str, Mapping[str, str]]
) -> dict[str, HostFacts]:
    """Returns the facts of all hosts that objects name.

    Args:
        objects: The VirtualServices and DestinationRules; others are passed over.
        selectors: The labels of the Pods of each Service, by the full name of its host.
    """
    timeouts: dict[str, set[float]] = defaultdict(set)
    subsets: dict[str, dict[str, Mapping[str, str]]] = defaultdict(dict)
    mirrored: dict[str, set[str]] = defaultdict(set)
    served: dict[str, set[str]] = defaultdict(set)
    for each in objects:
        if isinstance(each, VirtualService):
            for route in each.http:
                for mirror in mirrors_of(route):
                    mirrored[mirror.destination.host].add(mirror.destination.subset or "")
                if not (route.name or "").startswith(TESTER_ROUTE_PREFIX):
                    for served_by in route.route:
                        if len(route.route) == 1 or served_by.weight:
                            subset = served_by.destination.subset or ""
                            served[served_by.destination.host].add(subset)
                if route.timeout is not None:
                    for destination in route.route:
                        timeouts[destination.destination.host].add(route.timeout.total_seconds())
        elif isinstance(each, DestinationRule):
            subsets[each.host] |= {subset.name: subset.labels for subset in each.subsets}
    return {
        host: HostFacts(
            namespace=_namespace(host),
            selector=selectors.get(host, {}),
            subsets=subsets.get(host, {}),
            shadows=frozenset(mirrored.get(host, set()) - served.get(host, set()) - {""}),
            timeouts_s=frozenset(timeouts.get(host, ())),
        )
        for host in {*timeouts, *subsets, *mirrored, *selectors}
    }


def _namespace(host: str) -> str:
    """The namespace in the name of a Service's host; empty for another host."""
    parts = host.split(".")
    return parts[1] if len(parts) > 2 and parts[2] == "svc" else ""
