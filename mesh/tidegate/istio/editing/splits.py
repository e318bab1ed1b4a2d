"""Splits: how all requests of a host are divided, as one value that is put in force.

A shift changes a part of the routes and leaves the rest as it is. A split is the whole: the shares
of all subsets, testers, stickiness and mirrors. A rollout owns the split of a host while it runs.
Two annotations of the VirtualService say so: the owner, and how the routes were before, so that the
end of the rollout gives them back in the form that their author wrote.

Everything else stays value for value: routes of other hosts, routes with conditions on headers,
mirrors to other hosts, other annotations, and fields that are not read.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final, TypeVar

from tidegate.istio.annotations import RolloutName, Sticky
from tidegate.istio.editing.host_routes import (
    check_mirrors,
    divides_requests,
    mirrors_of,
    with_mirrors,
)
from tidegate.istio.editing.shares import MAX_DECIMALS, check_shares, divided, with_shares
from tidegate.istio.editing.shifts import find_host, no_route_error
from tidegate.istio.editing.subsets import check_subset
from tidegate.istio.editing.tester_routes import (
    SplitTester,
    check_tester,
    is_tester_route,
    with_testers,
    without_testers,
)
from tidegate.istio.errors import EditError
from tidegate.istio.objects import IstioObjects
from tidegate.istio.recorded_routes import RecordedDestination, RecordedRoute, RecordedRoutes
from tidegate.istio.shapes import HostName, SubsetName
from tidegate.istio.virtual_service import (
    Destination,
    HttpRoute,
    HttpRouteDestination,
    Mirror,
    VirtualService,
)

__all__ = ["HostSplit", "mirror_percentages", "percentages", "with_split", "without_zeros"]

_UNITS: Final = 10**MAX_DECIMALS

_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSplit:
    """How the requests of a host are divided among its subsets.

    Attributes:
        weights: The share of each subset in percent, with at most three decimals. They sum to 100;
            a subset that is not named gets nothing.
        testers: Requests that go to one subset whatever the shares are.
        sticky: The part of a request that decides its subset; None if chance does.
        mirrors: Percentages of requests of which subsets get copies.
    """

    weights: Mapping[SubsetName, float]
    testers: tuple[SplitTester, ...] = ()
    sticky: Sticky | None = None
    mirrors: Mapping[SubsetName, float] = field(default_factory=dict)


def with_split(
    objects: IstioObjects, host: str, split: HostSplit, owner: RolloutName | None
) -> IstioObjects:
    """Returns the objects with a host's requests divided in a way; unchanged ones are identical.

    The edit is idempotent. It changes every route, of any VirtualService, that sends requests to
    the host and has no conditions on headers.

    Args:
        objects: The objects.
        host: The host, by its full name or its first label.
        split: The split.
        owner: The rollout that owns the split from now on; None gives the routes back. Then each
            route that means the same as before the rollout gets the form that it had.

    Raises:
        EditError: The host or a subset is unknown, no route sends requests to the host, or the
            split is impossible. The field is a path below ``split``, or ``host``.
    """
    name = find_host(objects, host)
    _check(objects, name, split)
    changed = [
        _edited(service, name, split, owner)
        for service in objects.virtual_services.values()
        if _concerns(service, name)
    ]
    if not any(divides_requests(route, name) for each in changed for route in each.http):
        fix = "add a route without conditions"
        raise no_route_error(objects, name, fix, other=False)
    return objects.with_(*(each for each in changed if each != objects[each.name]))


def percentages(route: HttpRoute, host: HostName) -> dict[SubsetName | None, float]:
    """Returns the shares of a host's subsets in its requests of a route, in percent.

    They are rounded to three decimals, the largest remainders up, and sum to 100. The key is None
    for destinations without a subset.
    """
    weights: Counter[SubsetName | None] = Counter()
    for each in route.route:
        if each.destination.host == host:
            weights[each.destination.subset] += 1 if len(route.route) == 1 else each.weight
    parts = divided(100 * _UNITS, list(weights.values()))
    return {subset: part / _UNITS for subset, part in zip(weights, parts, strict=True)}


def mirror_percentages(route: HttpRoute, host: HostName) -> dict[SubsetName | None, float]:
    """Returns the percentages of a route's requests of which subsets of a host get copies."""
    found: dict[SubsetName | None, float] = defaultdict(float)
    for each in mirrors_of(route):
        if each.destination.host == host:
            found[each.destination.subset] += each.percentage
    return dict(found)


def without_zeros(shares: Mapping[_Name, float]) -> dict[_Name, float]:
    """Returns shares without those that are 0, which mean the same."""
    return {name: share for name, share in shares.items() if share}


def _check(objects: IstioObjects, host: HostName, split: HostSplit) -> None:
    for part, named in (("weights", split.weights), ("mirrors", split.mirrors)):
        for index, (subset, percentage) in enumerate(named.items()):
            # A subset that has gone may be named as long as it is to get nothing.
            if percentage:
                check_subset(subset, objects, host, f"split.{part}[{index}].subset")
    check_shares(split.weights, "split.weights")
    if (whole := sum(Fraction(str(each)) for each in split.weights.values())) != 100:
        raise EditError(
            f"the shares add up to {float(whole):g} %; name every subset that gets requests, and "
            "make the shares 100",
            "split.weights",
        )
    check_mirrors(split.mirrors, "split.mirrors")
    for index, tester in enumerate(split.testers):
        place = f"split.testers[{index}]"
        check_subset(tester.subset, objects, host, f"{place}.subset")
        check_tester(tester, place)
        if (tester.header, tester.cookie, tester.value) in [
            (each.header, each.cookie, each.value) for each in split.testers[:index]
        ]:
            raise EditError(f"{tester} is named twice; keep one", place)


def _concerns(service: VirtualService, host: HostName) -> bool:
    return any(
        divides_requests(route, host) or is_tester_route(route, host) for route in service.http
    )


def _edited(
    service: VirtualService, host: HostName, split: HostSplit, owner: RolloutName | None
) -> VirtualService:
    """Returns a VirtualService with the split."""
    plain = without_testers(service.http, host)
    record = service.annotations.rollout_before
    if owner is not None and record is None:
        own = (route for route in plain if divides_requests(route, host))
        record = RecordedRoutes(tuple(map(_recorded, own)))
    routes = tuple(
        _divided(route, host, split, f"{service.name} http[{index}]")
        if divides_requests(route, host)
        else route
        for index, route in enumerate(plain)
    )
    if owner is None and record is not None:
        routes = _given_back(routes, host, record)
    edited = replace(service, http=routes)
    return replace(
        edited,
        http=with_testers(edited, host, split.testers),
        annotations=replace(
            service.annotations,
            sticky=split.sticky,
            rollout=owner,
            rollout_before=None if owner is None else record,
        ),
    )


def _divided(route: HttpRoute, host: HostName, split: HostSplit, place: str) -> HttpRoute:
    """Returns a route with the shares and mirrors of a split; as it is where it has them."""
    present = percentages(route, host)
    if without_zeros(present) != without_zeros(split.weights):
        shares = {name: split.weights.get(name, 0.0) for name in present if name is not None}
        shares |= {name: share for name, share in split.weights.items() if share}
        route = replace(route, route=tuple(with_shares(route.route, host, shares, place)))
    copies = {
        name: percentage
        for name, percentage in mirror_percentages(route, host).items()
        if name is not None
    }
    if without_zeros(copies) != without_zeros(split.mirrors):
        changes = dict.fromkeys(copies, 0.0) | without_zeros(split.mirrors)
        route = with_mirrors(route, host, changes, place)
    return route


def _recorded(route: HttpRoute) -> RecordedRoute:
    return RecordedRoute(
        tuple(_record(each.destination, each.weight) for each in route.route),
        None if route.mirror is None else _record(route.mirror, route.mirror_percentage),
        tuple(_record(each.destination, each.percentage) for each in route.mirrors),
    )


def _record(destination: Destination, number: float | None) -> RecordedDestination:
    return RecordedDestination(destination.host, destination.subset, destination.port, number)


def _given_back(
    routes: Sequence[HttpRoute], host: HostName, record: RecordedRoutes
) -> tuple[HttpRoute, ...]:
    """Returns the routes in the form that they had, where that means what they mean now."""
    own = [index for index, route in enumerate(routes) if divides_requests(route, host)]
    if len(own) != len(record.routes):
        return tuple(routes)
    found = list(routes)
    for index, recorded in zip(own, record.routes, strict=True):
        form = _in_form(found[index], recorded)
        if form is not None and _means_the_same(form, found[index]):
            found[index] = form
    return tuple(found)


def _in_form(route: HttpRoute, recorded: RecordedRoute) -> HttpRoute | None:
    """Returns a route with its recorded weights and mirrors; None where a destination has gone."""
    destinations = defaultdict(list)
    for each in route.route:
        destinations[_key(each.destination)].append(each)
    mirrors = {_key(each.destination): each for each in mirrors_of(route)}
    weighted: list[HttpRouteDestination] = []
    for row in recorded.route:
        there = destinations[_key(row)]
        if not there or row.number is None:
            return None
        weighted.append(replace(there.pop(0), weight=int(row.number)))
    copies: list[Mirror] = []
    for row in recorded.mirrors:
        if _key(row) not in mirrors or row.number is None:
            return None
        copies.append(replace(mirrors[_key(row)], percentage=float(row.number)))
    single = recorded.mirror
    if single is not None and _key(single) not in mirrors:
        return None
    return replace(
        route,
        route=tuple(weighted),
        mirror=None if single is None else mirrors[_key(single)].destination,
        mirror_percentage=None if single is None or single.number is None else float(single.number),
        mirrors=tuple(copies),
    )


def _key(each: Destination | RecordedDestination) -> tuple[str, str | None, int | None]:
    return (each.host, each.subset, each.port)


def _means_the_same(one: HttpRoute, other: HttpRoute) -> bool:
    """Returns whether two routes with the same destinations divide their requests alike."""
    return all(
        without_zeros(percentages(one, each)) == without_zeros(percentages(other, each))
        and without_zeros(mirror_percentages(one, each))
        == without_zeros(mirror_percentages(other, each))
        for each in {*_named(one), *_named(other)}
    ) and _shares_of_hosts(one) == _shares_of_hosts(other)


def _named(route: HttpRoute) -> Iterable[HostName]:
    yield from (each.destination.host for each in route.route)
    yield from (each.destination.host for each in mirrors_of(route))


def _shares_of_hosts(route: HttpRoute) -> dict[HostName, Fraction]:
    """Returns the shares of hosts in all requests of a route."""
    if len(route.route) == 1:
        return {route.route[0].destination.host: Fraction(1)}
    weights: Counter[HostName] = Counter()
    for each in route.route:
        weights[each.destination.host] += each.weight
    whole = sum(weights.values()) or 1
    return {host: Fraction(weight, whole) for host, weight in weights.items() if weight}
