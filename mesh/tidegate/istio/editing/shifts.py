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
from tidegate.istio.editing.host_routes import (
    check_mirrors,
    header_conditions,
    names_host,
    narrowed,
    sends_requests,
    with_mirrors,
)
from tidegate.istio.editing.shares import check_shares, with_shares
from tidegate.istio.editing.subsets import check_subset
from tidegate.istio.errors import EditError
from tidegate.istio.objects import IstioObjects
from tidegate.istio.reading.annotations import parse_sticky
from tidegate.istio.scalars import is_header_name
from tidegate.istio.shapes import HeaderName, HostName, StringMatch, StringMatchKind, SubsetName
from tidegate.istio.virtual_service import HttpRoute, VirtualService

__all__ = [
    "Shift",
    "find_host",
    "header_condition",
    "no_route_error",
    "shift",
    "sticky_source",
]


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
    check_mirrors(change.mirrors, "mirrors")
    changed = [
        edited
        for service in objects.virtual_services.values()
        if (edited := _shifted(service, host, change)) is not None
    ]
    if not changed:
        raise no_route_error(objects, host, "name them with --match", other=bool(change.match))
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
    """Parses ``header:x-user-id`` or ``cookie:user``.

    Raises:
        EditError: The text has another form.
    """
    sticky = parse_sticky(text)
    if sticky is None:
        raise EditError(
            f"{text!r} is not a sticky source; write it like header:x-user-id or cookie:user"
        )
    return sticky


def _shifted(service: VirtualService, host: HostName, change: Shift) -> VirtualService | None:
    """Returns the VirtualService after a shift; None where it has no such route."""
    routes: list[HttpRoute] = []
    applies = False
    # An existing route for the conditions gets the weights, and no second one is added.
    has_own_route = any(
        header_conditions(route) == change.match and names_host(route, host)
        for route in service.http
    )
    for index, route in enumerate(service.http):
        place = f"{service.name} http[{index}]"
        if not sends_requests(route, host):
            routes.append(route)
        elif header_conditions(route) == change.match:
            routes.append(_with_shift(route, host, change, place))
            applies = True
        elif change.match and not has_own_route and header_conditions(route) == {}:
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
        route = with_mirrors(route, host, change.mirrors, place)
    return route


def no_route_error(objects: IstioObjects, host: HostName, fix: str, *, other: bool) -> EditError:
    """Returns the error of a change that applies to no route of a host.

    Args:
        objects: The objects.
        host: The host.
        fix: What to do where all its routes have conditions on headers.
        other: Whether the change is for requests with some headers.
    """
    routes = [
        route
        for service in objects.virtual_services.values()
        for route in service.http
        if names_host(route, host)
    ]
    if not routes:
        return EditError(
            f"no route sends requests to {host}: add a VirtualService with a route to it", "host"
        )
    if not any(sends_requests(route, host) for route in routes):
        return EditError(
            f"every route to {host} gives it weight 0, so its subsets have nothing to divide: give "
            "it a weight beside the other hosts by hand",
            "host",
        )
    conditions_there = dict.fromkeys(
        " and ".join(f"header:{key} {value}" for key, value in conditions.items())
        for route in routes
        if (conditions := header_conditions(route))
    )
    there = f" ({'; '.join(conditions_there)})" if conditions_there else ""
    return EditError(
        f"every route to {host} has {'other ' * other}conditions on headers{there}; {fix}",
        "matches",
    )


def _narrowed(route: HttpRoute, match: Mapping[HeaderName, StringMatch]) -> HttpRoute:
    """Returns the route for requests that also meet conditions on headers, with a name for both."""
    words = "-".join([route.name or "", *(f"{key}-{each.value}" for key, each in match.items())])
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") if route.name else None
    return narrowed(route, match, name)


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
