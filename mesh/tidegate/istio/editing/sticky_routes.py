"""Routes whose users stay on one version on Istio: their names, and their weights.

Istio has no field for sticky weights. An EnvoyFilter adds them to routes that it finds by their
exact names. So a route that keeps users has a name of its own, and has it only while two or more
versions get requests: istiod makes something else of a route to a single version.

The names end with one of a few revisions, in turn. So the EnvoyFilter can list them all before the
first split, and each split still has another name than the one before it.

Envoy takes the hash of a user modulo the sum of the weights. So the sum is always the same.
Otherwise every user would be drawn anew when 10 % (of 100) becomes 10.5 % (of 1000).
"""

import re
from dataclasses import replace
from typing import Final

from tidegate.istio.virtual_service import HttpRoute

__all__ = [
    "STICKY_REVISIONS",
    "STICKY_TOTAL",
    "divides_users",
    "following_sticky_revision",
    "is_sticky_route",
    "sticky_route_name",
    "with_sticky_total",
]

STICKY_TOTAL: Final = 100_000
"""The sum of the weights: its unit is the smallest share of a split."""

STICKY_REVISIONS: Final = tuple(f"s{number}" for number in range(8))
"""The revisions of names. Proxies have the routes of the last few splits at most."""

_PREFIX: Final = "tidegate-sticky."
_REVISION: Final = re.compile(r"s(\d)")


def sticky_route_name(namespace: str, service: str) -> str:
    """Returns the name of the route that keeps users, without its revision.

    No other route of the mesh has it: an EnvoyFilter of a gateway sees those of all namespaces.

    Args:
        namespace: The namespace of the VirtualService.
        service: The name of the VirtualService.
    """
    return f"{_PREFIX}{namespace}.{service}"


def is_sticky_route(route: HttpRoute) -> bool:
    """Returns whether an EnvoyFilter keeps the users of a route on their versions."""
    return (route.name or "").startswith(_PREFIX)


def following_sticky_revision(last: str) -> str:
    """Returns the revision after another one; the first after one that is not of sticky routes."""
    found = _REVISION.fullmatch(last)
    number = int(found[1]) + 1 if found else 0
    return STICKY_REVISIONS[number % len(STICKY_REVISIONS)]


def divides_users(route: HttpRoute) -> bool:
    """Returns whether a route has two or more destinations that get requests."""
    return sum(1 for each in route.route if each.weight) > 1


def with_sticky_total(route: HttpRoute) -> HttpRoute:
    """Returns a route with the same shares, and weights whose sum is `STICKY_TOTAL`.

    Args:
        route: The route of a split. The sum of its weights divides `STICKY_TOTAL`, since shares
            have at most three decimals.
    """
    total = sum(each.weight for each in route.route)
    weighted = (replace(each, weight=each.weight * STICKY_TOTAL // total) for each in route.route)
    return replace(route, route=tuple(weighted))
