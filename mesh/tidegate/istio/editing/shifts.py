"""Traffic shifts, as functions from objects to objects.

``tidegate shift vision v1=90 v2=10`` becomes a :class:`Shift`. Its weights apply to every route
that sends requests to the host under the named conditions on headers, or to the routes without such
conditions. A subset that a route does not name yet is added in front of the others: a canary only
keeps its users while the order stays and the newest comes first.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tidegate.istio.annotations import Sticky
from tidegate.istio.editing.shares import check_shares, with_shares
from tidegate.istio.editing.subsets import check_subset, is_subset
from tidegate.istio.errors import EditError
from tidegate.istio.objects import IstioObjects
from tidegate.istio.reading.annotations import parse_sticky
from tidegate.istio.scalars import is_header_name
from tidegate.istio.shapes import HeaderName, HostName, StringMatch, StringMatchKind, SubsetName
from tidegate.istio.virtual_service import (
    Destination,
    HttpMatchRequest,
    HttpRoute,
    Mirror,
    VirtualService,
)

__all__ = [
    "Shift",
    "find_host",
    "header_condition",
    "shift",
    "sticky_source",
]

_MIRROR_SHARES = ("mirrorPercent", "mirror_percent", "mirrorPercentage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A change of where a host's requests go.

    Attributes:
        host: The host, by its full name or its first label.
        weights: The new shares of subsets, in percent of the host's requests in a route. The other
            subsets divide the rest of 100 in their proportion. Where these have none, the last one
            of the route, the baseline, gets the rest. See `shares`.
        match: Conditions on headers; a route for them is added where there is none.
        sticky: The part of a request that decides its destination; None leaves it unchanged.
        mirrors: Percentages of requests of which subsets get copies; 0 ends a mirror.
    """

    host: str
    weights: Mapping[SubsetName, float] = field(default_factory=dict)
    match: Mapping[HeaderName, StringMatch] = field(default_factory=dict)
    sticky: Sticky | None = None
    mirrors: Mapping[SubsetName, float] = field(default_factory=dict)


def shift(objects: IstioObjects, change: Shift) -> IstioObjects:
    """Returns the objects after a shift.

    Raises:
        EditError: The host or a subset is unknown, no route sends requests to it, or the shares are
            impossible.
    """
    host = find_host(objects, change.host)
    for name, named in (("weights", change.weights), ("mirrors", change.mirrors)):
        for index, subset in enumerate(named):
            check_subset(subset, objects, host, f"{name}[{index}].subset")
    check_shares(change.weights)
    for index, (subset, percentage) in enumerate(change.mirrors.items()):
        if not 0 <= percentage <= 100:
            raise EditError(
                f"the mirror of {subset} cannot be {percentage:g} %; write 0 to 100",
                f"mirrors[{index}].percent",
            )
    changed = [
        edited
        for service in objects.virtual_services.values()
        if (edited := _shifted(service, host, change)) is not None
    ]
    if not changed:
        raise _no_route_error(objects, host, change)
    return objects.with_(*(each for each in changed if each != objects[each.name]))


def find_host(objects: IstioObjects, name: str) -> HostName:
    """Returns the host of a full name or, where only one host has it, of a first label.

    Raises:
        EditError: No host has the name, or several do; the message lists them.
    """
    if any(name in entry.hosts for entry in objects.service_entries.values()):
        return HostName(name)
    hosts = _hosts(objects)
    if name in hosts:
        return HostName(name)
    matching = [host for host in hosts if host.split(".")[0] == name or host.startswith(f"{name}.")]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(matching)
        raise EditError(f"several hosts are called {name}: {names}; write one in full")
    shorts = {host.split(".")[0]: host for host in hosts}
    close = difflib.get_close_matches(name, [*hosts, *shorts], n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(hosts) or 'none'}"
    raise EditError(f"there is no host {name}; {hint}")


def header_condition(text: str) -> tuple[HeaderName, StringMatch]:
    """Parses ``header:x-user-tier=beta``, or ``header:x-user-tier`` for its presence.

    Raises:
        EditError: The text has another form.
    """
    source, _, rest = text.partition(":")
    name, equals, value = rest.partition("=")
    if source != "header" or not is_header_name(name.lower()) or (equals and not value):
        raise EditError(f"{text!r} is not a condition; write it like header:x-user-tier=beta")
    kind = StringMatchKind.EXACT if equals else StringMatchKind.PRESENT
    return HeaderName(name.lower()), StringMatch(kind, value)


def sticky_source(text: str) -> Sticky:
    """Parses ``header:x-user-id``.

    Raises:
        EditError: The text has another form.
    """
    sticky = parse_sticky(text)
    if sticky is None:
        raise EditError(f"{text!r} is not a sticky source; write it like header:x-user-id")
    return sticky


def _shifted(service: VirtualService, host: HostName, change: Shift) -> VirtualService | None:
    """Returns the VirtualService after a shift; None where it has no such route."""
    routes: list[HttpRoute] = []
    applies = False
    # An existing route for the conditions gets the weights, and no second one is added.
    has_own_route = any(
        _conditions(route) == change.match and _names_host(route, host) for route in service.http
    )
    for index, route in enumerate(service.http):
        place = f"{service.name} http[{index}]"
        if not _sends_requests(route, host):
            routes.append(route)
        elif _conditions(route) == change.match:
            routes.append(_with_shift(route, host, change, place))
            applies = True
        elif change.match and not has_own_route and _conditions(route) == {}:
            routes += [_with_shift(_narrowed(route, change.match), host, change, place), route]
            applies = True
        else:
            routes.append(route)
    if not applies:
        return None
    annotations = service.annotations
    if change.sticky is not None:
        annotations = replace(annotations, sticky=change.sticky)
    return replace(service, http=tuple(routes), annotations=annotations)


def _with_shift(route: HttpRoute, host: HostName, change: Shift, place: str) -> HttpRoute:
    if change.weights:
        divided = tuple(with_shares(route.route, host, change.weights, place))
        route = replace(route, route=divided)
    if change.mirrors:
        mirrors = route.mirrors
        if route.mirror is not None:
            if field := next((each for each in _MIRROR_SHARES if each in route.opaque), None):
                raise EditError(
                    f"{place}.{field} is not read, so the share of the mirror there is not known; "
                    "write 'mirrorPercentage: {value: N}'",
                    "mirrors",
                )
            share = route.mirror_percentage
            single = Mirror(destination=route.mirror, percentage=100.0 if share is None else share)
            mirrors = (single, *mirrors)
        port = next(
            (each.destination.port for each in route.route if each.destination.host == host), None
        )
        for subset, percentage in change.mirrors.items():
            target = Destination(host=host, subset=subset, port=port)
            mirror = Mirror(destination=target, percentage=percentage)
            others = tuple(
                each for each in mirrors if not is_subset(each.destination, host, subset)
            )
            mirrors = (*others, mirror) if percentage else others
        route = replace(route, mirror=None, mirror_percentage=None, mirrors=mirrors)
    return route


def _no_route_error(objects: IstioObjects, host: HostName, change: Shift) -> EditError:
    """Returns the error of a shift that applies to no route."""
    routes = [
        route
        for service in objects.virtual_services.values()
        for route in service.http
        if _names_host(route, host)
    ]
    if not routes:
        return EditError(
            f"no route sends requests to {host}: add a VirtualService with a route to it", "host"
        )
    if not any(_sends_requests(route, host) for route in routes):
        return EditError(
            f"every route to {host} gives it weight 0, so its subsets have nothing to divide: give "
            "it a weight beside the other hosts by hand",
            "host",
        )
    conditions_there = dict.fromkeys(
        " and ".join(f"header:{key} {value}" for key, value in conditions.items())
        for route in routes
        if (conditions := _conditions(route))
    )
    there = f" ({'; '.join(conditions_there)})" if conditions_there else ""
    return EditError(
        f"every route to {host} has {'other ' if change.match else ''}conditions on headers{there};"
        " name them with --match",
        "matches",
    )


def _narrowed(route: HttpRoute, match: Mapping[HeaderName, StringMatch]) -> HttpRoute:
    """Returns the route for requests that also meet conditions on headers."""
    matches = route.match or (HttpMatchRequest(),)
    words = "-".join([route.name or "", *(f"{key}-{each.value}" for key, each in match.items())])
    return replace(
        route,
        name=re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") if route.name else None,
        match=tuple(replace(each, headers={**each.headers, **match}) for each in matches),
    )


def _conditions(route: HttpRoute) -> Mapping[HeaderName, StringMatch] | None:
    """Returns the header conditions that all matches of a route share; None where they differ."""
    if any("headers" in match.opaque for match in route.match):
        return None
    each = [match.headers for match in route.match] or [{}]
    return each[0] if all(headers == each[0] for headers in each) else None


def _names_host(route: HttpRoute, host: HostName) -> bool:
    return host in [each.destination.host for each in route.route]


def _sends_requests(route: HttpRoute, host: HostName) -> bool:
    """Returns whether a route sends requests to a host. A single destination gets all of them."""
    return any(
        each.destination.host == host and (each.weight or len(route.route) == 1)
        for each in route.route
    )


def _hosts(objects: IstioObjects) -> tuple[HostName, ...]:
    """Returns the defined hosts, and those that routes or rules name."""
    defined = [host for entry in objects.service_entries.values() for host in entry.hosts]
    ruled = [rule.host for rule in objects.destination_rules.values()]
    routed = [
        each.destination.host
        for service in objects.virtual_services.values()
        for route in service.http
        for each in route.route
    ]
    return tuple(dict.fromkeys([*defined, *ruled, *routed]))
