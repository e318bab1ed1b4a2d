"""How routes divided requests before a rollout changed them, as an annotation keeps it.

A split says percentages; an author may have written 1 and 3, or no weight at all. At its end a
rollout gives routes back in the very form that they had, if that form still means the same.
"""

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["RecordedDestination", "RecordedRoute", "RecordedRoutes", "parse_recorded_routes"]


@dataclass(frozen=True, slots=True)
class RecordedDestination:
    """A destination of requests, or of copies of them.

    Attributes:
        host: The full name of the host.
        subset: The subset, if one is named.
        port: The port, if one is named.
        number: The weight, or the percentage of the copies; None where the author wrote none.
    """

    host: str
    subset: str | None
    port: int | None
    number: int | float | None


@dataclass(frozen=True, slots=True)
class RecordedRoute:
    """How one route divided its requests.

    Attributes:
        route: Its destinations.
        mirror: Its single mirror, if it had one.
        mirrors: Its mirrors in the list.
    """

    route: tuple[RecordedDestination, ...]
    mirror: RecordedDestination | None = None
    mirrors: tuple[RecordedDestination, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordedRoutes:
    """How the routes of a host divided its requests, in their order.

    Attributes:
        routes: The routes.
    """

    routes: tuple[RecordedRoute, ...]

    def __str__(self) -> str:
        routes = [
            {"route": [_row(each) for each in route.route]}
            | ({"mirror": _row(route.mirror)} if route.mirror is not None else {})
            | ({"mirrors": [_row(each) for each in route.mirrors]} if route.mirrors else {})
            for route in self.routes
        ]
        return json.dumps(routes, separators=(",", ":"))


def parse_recorded_routes(text: str) -> RecordedRoutes | None:
    """Parses the text of recorded routes; returns None for any other text."""
    try:
        return RecordedRoutes(tuple(map(_route, _list(json.loads(text)))))
    except (KeyError, RecursionError, TypeError, ValueError):
        return None


def _row(each: RecordedDestination) -> list[Any]:
    return [each.host, each.subset, each.port, each.number]


def _route(value: Any) -> RecordedRoute:
    mirror = value.get("mirror") if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.keys() - {"route", "mirror", "mirrors"}:
        raise ValueError(value)
    return RecordedRoute(
        tuple(map(_destination, _list(value["route"]))),
        None if mirror is None else _destination(mirror),
        tuple(map(_destination, _list(value.get("mirrors", [])))),
    )


def _destination(value: Any) -> RecordedDestination:
    host, subset, port, number = _list(value)
    if not (
        isinstance(host, str)
        and isinstance(subset, str | None)
        and _is_number(port, int)
        and _is_number(number, int | float)
    ):
        raise ValueError(value)
    return RecordedDestination(host, subset, port, number)


def _is_number(value: Any, kinds: Any) -> bool:
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value
