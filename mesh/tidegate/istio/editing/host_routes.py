"""The routes of a host: which of them divide its requests, and their copies of requests.

A shift and a split change the same parts of a route. What both need is here.
"""

from collections.abc import Mapping
from dataclasses import replace

from tidegate.istio.editing.subsets import is_subset
from tidegate.istio.errors import EditError
from tidegate.istio.shapes import HeaderName, HostName, StringMatch, SubsetName
from tidegate.istio.virtual_service import Destination, HttpMatchRequest, HttpRoute, Mirror

__all__ = [
    "check_mirrors",
    "divides_requests",
    "header_conditions",
    "mirrors_of",
    "names_host",
    "narrowed",
    "sends_requests",
    "unread_mirror_share",
    "with_mirrors",
]

_MIRROR_SHARES = ("mirrorPercent", "mirror_percent", "mirrorPercentage")


def names_host(route: HttpRoute, host: HostName) -> bool:
    """Returns whether a destination of a route is the host, whatever its weight."""
    return host in [each.destination.host for each in route.route]


def sends_requests(route: HttpRoute, host: HostName) -> bool:
    """Returns whether a route sends requests to a host. A single destination gets all of them."""
    return any(
        each.destination.host == host and (each.weight or len(route.route) == 1)
        for each in route.route
    )


def divides_requests(route: HttpRoute, host: HostName) -> bool:
    """Returns whether a route divides the requests of a host, whatever headers they have."""
    return sends_requests(route, host) and header_conditions(route) == {}


def header_conditions(route: HttpRoute) -> Mapping[HeaderName, StringMatch] | None:
    """Returns the header conditions that all matches of a route share; None where they differ."""
    if any("headers" in match.opaque for match in route.match):
        return None
    each = [match.headers for match in route.match] or [{}]
    return each[0] if all(headers == each[0] for headers in each) else None


def narrowed(
    route: HttpRoute, match: Mapping[HeaderName, StringMatch], name: str | None
) -> HttpRoute:
    """Returns the route for requests that also meet conditions on headers.

    Args:
        route: The route.
        match: The conditions.
        name: The name of the narrowed route.
    """
    matches = route.match or (HttpMatchRequest(),)
    return replace(
        route,
        name=name,
        match=tuple(replace(each, headers={**each.headers, **match}) for each in matches),
    )


def check_mirrors(mirrors: Mapping[SubsetName, float], field: str) -> None:
    """Checks the percentages of mirrors.

    Args:
        mirrors: The percentages by subset.
        field: The field that has them.

    Raises:
        EditError: A percentage is not from 0 to 100.
    """
    for index, (subset, percentage) in enumerate(mirrors.items()):
        # This comparison also catches NaN.
        if not 0 <= percentage <= 100:
            raise EditError(
                f"the mirror of {subset} cannot be {percentage:g} %; write 0 to 100",
                f"{field}[{index}].percent",
            )


def unread_mirror_share(route: HttpRoute) -> str | None:
    """Returns the field with the share of the single mirror, where that field is not read."""
    if route.mirror is None:
        return None
    return next((each for each in _MIRROR_SHARES if each in route.opaque), None)


def mirrors_of(route: HttpRoute) -> tuple[Mirror, ...]:
    """Returns the mirrors of a route, the single one first."""
    if route.mirror is None:
        return route.mirrors
    share = route.mirror_percentage
    single = Mirror(destination=route.mirror, percentage=100.0 if share is None else share)
    return (single, *route.mirrors)


def with_mirrors(
    route: HttpRoute, host: HostName, changes: Mapping[SubsetName, float], place: str
) -> HttpRoute:
    """Returns a route with other mirrors of a host's subsets.

    Args:
        route: The route.
        host: The host.
        changes: The new percentages by subset; 0 removes a mirror.
        place: The name of the route in errors.

    Raises:
        EditError: The share of the present mirror is not known.
    """
    if field := unread_mirror_share(route):
        raise EditError(
            f"{place}.{field} is not read, so the share of the mirror there is not known; "
            "write 'mirrorPercentage: {value: N}'",
            "mirrors",
        )
    mirrors = mirrors_of(route)
    port = next(
        (each.destination.port for each in route.route if each.destination.host == host), None
    )
    for subset, percentage in changes.items():
        target = Destination(host=host, subset=subset, port=port)
        others = tuple(each for each in mirrors if not is_subset(each.destination, host, subset))
        added = (Mirror(destination=target, percentage=percentage),) if percentage else ()
        mirrors = (*others, *added)
    return replace(route, mirror=None, mirror_percentage=None, mirrors=mirrors)
