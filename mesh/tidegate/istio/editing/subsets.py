"""Subsets of a host: added, removed, checked, as functions from objects to objects."""

import difflib
from dataclasses import replace

from tidegate.istio.destination_rule import DestinationRule, Subset
from tidegate.istio.errors import EditError
from tidegate.istio.objects import IstioObjects
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.istio.virtual_service import Destination, HttpRoute, VirtualService

__all__ = [
    "add_subset",
    "check_subset",
    "is_subset",
    "remove_subset",
    "subset_names",
    "without_idle",
]


def subset_names(objects: IstioObjects, host: HostName) -> tuple[SubsetName, ...]:
    """Returns the subsets that DestinationRules define for a host, each once, in their order."""
    return tuple(
        dict.fromkeys(
            subset.name
            for rule in objects.destination_rules.values()
            if rule.host == host
            for subset in rule.subsets
        )
    )


def check_subset(
    subset: SubsetName, objects: IstioObjects, host: HostName, field: str = "weights"
) -> None:
    """Checks that a DestinationRule defines a subset of a host.

    Args:
        subset: The subset.
        objects: All objects.
        host: The host.
        field: The field of the shift that names the subset.

    Raises:
        EditError: No DestinationRule does; the message has the subsets that there are.
    """
    known = sorted(subset_names(objects, host))
    if subset in known:
        return
    rules = sorted(
        str(rule.name) for rule in objects.destination_rules.values() if rule.host == host
    )
    there = (
        f"{' and '.join(rules)} ha{'s' if len(rules) == 1 else 've'} {', '.join(known) or 'none'}"
        if rules
        else "no DestinationRule defines any for it"
    )
    close = difflib.get_close_matches(subset, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise EditError(f"{host} has no subset {subset}: {there}{hint}", field)


def is_subset(destination: Destination, host: HostName, subset: SubsetName) -> bool:
    """Returns whether a destination is a subset of a host."""
    return destination.host == host and destination.subset == subset


def add_subset(objects: IstioObjects, host: HostName, subset: Subset) -> IstioObjects:
    """Returns the objects with a subset of a host added, or replaced if it has the same name.

    Raises:
        EditError: No DestinationRule is for the host.
    """
    rule = _rule_of(objects, host)
    names = [each.name for each in rule.subsets]
    subsets = (
        tuple(subset if each.name == subset.name else each for each in rule.subsets)
        if subset.name in names
        else (*rule.subsets, subset)
    )
    return objects.with_(replace(rule, subsets=subsets))


def remove_subset(objects: IstioObjects, host: HostName, name: SubsetName) -> IstioObjects:
    """Returns the objects without a subset, its destinations of weight 0 and its mirrors of 0 %.

    Raises:
        EditError: The host has no such subset, or a route sends requests to it.
    """
    check_subset(name, objects, host)
    changed: list[VirtualService | DestinationRule] = [
        replace(rule, subsets=tuple(each for each in rule.subsets if each.name != name))
        for rule in objects.destination_rules.values()
        if rule.host == host and any(each.name == name for each in rule.subsets)
    ]
    for service in objects.virtual_services.values():
        routes = tuple(_without_subset(route, host, name, service) for route in service.http)
        if routes != service.http:
            changed.append(replace(service, http=routes))
    return objects.with_(*changed)


def without_idle(objects: IstioObjects, mesh: IstioObjects) -> IstioObjects:
    """Returns the objects without destinations of weight 0 whose subset is not defined.

    Args:
        objects: Some of the objects of a mesh.
        mesh: All objects of the mesh; their DestinationRules define the subsets.
    """
    subsets = {
        (rule.host, each.name) for rule in mesh.destination_rules.values() for each in rule.subsets
    }
    changed = []
    for service in objects.virtual_services.values():
        routes = tuple(
            replace(
                rule,
                route=tuple(
                    each
                    for each in rule.route
                    # A single destination gets every request, whatever its weight.
                    if each.weight
                    or len(rule.route) == 1
                    or each.destination.subset is None
                    or (each.destination.host, each.destination.subset) in subsets
                ),
            )
            for rule in service.http
        )
        if routes != service.http:
            changed.append(replace(service, http=routes))
    return objects.with_(*changed)


def _without_subset(
    route: HttpRoute, host: HostName, name: SubsetName, service: VirtualService
) -> HttpRoute:
    for each in route.route:
        if is_subset(each.destination, host, name) and (each.weight or len(route.route) == 1):
            raise EditError(
                f"{service.name} sends requests to the subset {name} of {host}; give it weight 0 "
                "first"
            )
    mirrors = [each for each in route.mirrors if is_subset(each.destination, host, name)]
    if any(each.percentage for each in mirrors) or (
        route.mirror is not None and is_subset(route.mirror, host, name)
    ):
        raise EditError(
            f"{service.name} mirrors requests to the subset {name} of {host}; end the mirror first"
        )
    return replace(
        route,
        route=tuple(each for each in route.route if not is_subset(each.destination, host, name)),
        mirrors=tuple(each for each in route.mirrors if each not in mirrors),
    )


def _rule_of(objects: IstioObjects, host: HostName) -> DestinationRule:
    for rule in objects.destination_rules.values():
        if rule.host == host:
            return rule
    raise EditError(f"no DestinationRule is for {host}; write one that defines subsets")
