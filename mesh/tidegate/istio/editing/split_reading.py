"""Reads the split of a host from its objects: the inverse of an edit by `splits`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidegate.istio.annotations import RolloutName
from tidegate.istio.editing.host_routes import divides_requests, mirrors_of, unread_mirror_share
from tidegate.istio.editing.shifts import find_host
from tidegate.istio.editing.splits import HostSplit, mirror_percentages, percentages, without_zeros
from tidegate.istio.editing.subsets import subset_names
from tidegate.istio.editing.tester_routes import (
    SplitTester,
    is_tester_route,
    tester_of,
    without_testers,
)
from tidegate.istio.objects import IstioObjects
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.istio.virtual_service import HttpRoute, VirtualService

__all__ = ["SplitInEffect", "read_split"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitInEffect:
    """How a host's requests are divided now.

    Attributes:
        host: The full name of the host.
        split: The split; that of the first route if there is a problem.
        subsets: The subsets that DestinationRules define for the host.
        owner: The rollout that owns the split; None if none does.
        problem: Why the split cannot be told as one; empty if it can.
    """

    host: HostName
    split: HostSplit
    subsets: tuple[SubsetName, ...]
    owner: RolloutName | None
    problem: str


def read_split(objects: IstioObjects, host: str) -> SplitInEffect:
    """Reads the split of a host.

    Args:
        objects: The objects.
        host: The host, by its full name or its first label.

    Raises:
        EditError: There is no such host.
    """
    name = find_host(objects, host)
    services = [
        each
        for each in objects.virtual_services.values()
        if any(divides_requests(r, name) or is_tester_route(r, name) for r in each.http)
    ]
    routes = [
        (f"{service.name} http[{index}]", route)
        for service in services
        for index, route in enumerate(service.http)
        if divides_requests(route, name) and not is_tester_route(route, name)
    ]
    owners = dict.fromkeys(each.annotations.rollout for each in services)
    return SplitInEffect(
        host=name,
        split=HostSplit(
            weights=_known(percentages(routes[0][1], name)) if routes else {},
            testers=_testers(services, name),
            sticky=services[0].annotations.sticky if services else None,
            mirrors=_known(mirror_percentages(routes[0][1], name)) if routes else {},
        ),
        subsets=subset_names(objects, name),
        owner=next(filter(None, owners), None),
        problem=next(_problems(services, routes, name), ""),
    )


def _known(shares: dict[SubsetName | None, float]) -> dict[SubsetName, float]:
    return {subset: share for subset, share in shares.items() if subset is not None}


def _testers(services: Sequence[VirtualService], host: HostName) -> tuple[SplitTester, ...]:
    found = (
        tester_of(route, host)
        for service in services
        for route in service.http
        if is_tester_route(route, host)
    )
    return tuple(dict.fromkeys(each for each in found if each is not None))


def _problems(
    services: Sequence[VirtualService], routes: Sequence[tuple[str, HttpRoute]], host: HostName
) -> Iterator[str]:
    """Yields why the routes of a host have no split in common."""
    if not routes:
        yield f"no route without conditions on headers sends requests to {host}; add one"
        return
    for place, route in routes:
        yield from _problems_of_route(place, route, host)
    (first, model), *others = routes
    for place, route in others:
        for one, other in (
            (percentages(model, host), percentages(route, host)),
            (mirror_percentages(model, host), mirror_percentages(route, host)),
        ):
            if without_zeros(one) != without_zeros(other):
                yield (
                    f"{first} and {place} divide the requests differently ({_text(one)}, and "
                    f"{_text(other)}); make them alike"
                )
    for words, found in (
        ("is sticky", [each.annotations.sticky for each in services]),
        ("belongs to the rollout", [each.annotations.rollout for each in services]),
    ):
        if len(set(found)) > 1:
            named = ", ".join(
                f"{service.name} {words} {value}" if value else f"{service.name} not"
                for service, value in zip(services, found, strict=True)
            )
            yield f"the VirtualServices differ: {named}; make their annotations alike"
    yield from _problems_of_testers(services, host)


def _problems_of_route(place: str, route: HttpRoute, host: HostName) -> Iterator[str]:
    others = dict.fromkeys(
        each.destination.host
        for each in route.route
        if each.destination.host != host and each.weight
    )
    if others:
        yield f"{place} also sends requests to {', '.join(others)}; give {host} a route of its own"
    if percentages(route, host).get(None) or any(
        each.destination.host == host and each.destination.subset is None and each.percentage
        for each in mirrors_of(route)
    ):
        yield (
            f"{place} sends requests to every endpoint of {host}; name a subset in each destination"
        )
    if field := unread_mirror_share(route):
        yield f"{place}.{field} is not read; write 'mirrorPercentage: {{value: N}}'"


def _problems_of_testers(services: Sequence[VirtualService], host: HostName) -> Iterator[str]:
    """Yields where the routes of testers are not those that a split added."""
    counts: list[Counter[SplitTester | None]] = []
    for service in services:
        own = sum(divides_requests(r, host) for r in without_testers(service.http, host))
        added = Counter(tester_of(r, host) for r in service.http if is_tester_route(r, host))
        counts.append(Counter(dict.fromkeys(added, own)))
        if added != counts[-1] or None in added:
            yield (
                f"somebody has changed the routes of testers in {service.name}; restore or remove "
                "them"
            )
    if any(set(each) != set(counts[0]) for each in counts):
        yield f"the VirtualServices of {host} have different testers; make them alike"


def _text(shares: dict[SubsetName | None, float]) -> str:
    return " ".join(f"{subset or 'all'}={share:g}" for subset, share in shares.items()) or "none"
