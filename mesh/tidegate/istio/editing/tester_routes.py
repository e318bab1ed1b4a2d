r"""Routes of testers: requests with a header or a cookie go to one subset, whatever the weights.

A tester's route is a copy of a route of the host, with one more condition and one destination. It
stands ahead of the host's other routes, and not ahead of routes of others. Its name marks it, so
that an edit finds and removes exactly the routes that were added.

A cookie is a part of the header ``cookie``. Istio has no condition on it, so it becomes a regular
expression on the header, as Istio's documentation writes it: ``^(.*?;\s*)?(user=jason)(;.*)?$``.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tidegate.istio.editing.host_routes import divides_requests, names_host, narrowed
from tidegate.istio.errors import EditError
from tidegate.istio.expressions import regex_problem
from tidegate.istio.scalars import is_cookie_name, is_cookie_value, is_header_name
from tidegate.istio.shapes import HeaderName, HostName, StringMatch, StringMatchKind, SubsetName
from tidegate.istio.virtual_service import (
    Destination,
    HttpRoute,
    HttpRouteDestination,
    VirtualService,
)

__all__ = [
    "TESTER_ROUTE_PREFIX",
    "SplitTester",
    "check_tester",
    "is_tester_route",
    "tester_of",
    "with_testers",
    "without_testers",
]

TESTER_ROUTE_PREFIX: Final = "tidegate-tester-"
"""What the name of a tester's route begins with."""

_COOKIE: Final = HeaderName("cookie")
_BEFORE: Final = r"^(.*?;\s*)?("
_AFTER: Final = r")(;.*)?$"
_ANY_VALUE: Final = "[^;]*"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitTester:
    """Requests that go to one subset whatever the weights are. It has a header or a cookie.

    Attributes:
        header: The header to compare, in lower case.
        cookie: The cookie to compare.
        value: The exact value; empty for any.
        subset: The subset that gets the requests.
    """

    header: HeaderName | None = None
    cookie: str | None = None
    value: str = ""
    subset: SubsetName

    def __str__(self) -> str:
        part = f"cookie {self.cookie}" if self.header is None else f"header {self.header}"
        return f"{part}={self.value}" if self.value else part


def check_tester(tester: SplitTester, field: str) -> None:
    """Checks that a tester's requests can be told by a route.

    Args:
        tester: The tester.
        field: The field that has it.

    Raises:
        EditError: It has no header and no cookie, or both; or a name or value is impossible.
    """
    if (tester.header is None) == (tester.cookie is None):
        raise EditError("a tester has either a header or a cookie; name one of them", field)
    if tester.header is not None:
        if not is_header_name(tester.header):
            raise EditError(
                f"{tester.header!r} is not the name of a header; write it like x-user-tier",
                f"{field}.header",
            )
        if tester.header == _COOKIE:
            raise EditError("the header cookie has many cookies in it; name a cookie", field)
        if _CONTROL.search(tester.value) or tester.value != tester.value.strip():
            raise EditError(
                f"the header {tester.header} never is {tester.value!r}; leave out spaces at the "
                "ends and control characters",
                f"{field}.value",
            )
        return
    if not is_cookie_name(tester.cookie or ""):
        raise EditError(
            f"{tester.cookie!r} is not the name of a cookie; use letters, digits, dashes and dots",
            f"{field}.cookie",
        )
    if tester.value and not is_cookie_value(tester.value):
        raise EditError(
            f"the cookie {tester.cookie} never is {tester.value!r}: a value has no spaces, quotes, "
            "commas, semicolons or backslashes; encode them",
            f"{field}.value",
        )
    _, condition = _condition(tester)
    if problem := regex_problem(condition.value):
        raise EditError(
            f"the condition on the cookie {tester.cookie} {problem}; use a shorter value",
            f"{field}.value",
        )


def is_tester_route(route: HttpRoute, host: HostName) -> bool:
    """Returns whether a route is one that was added for a tester of a host."""
    return (route.name or "").startswith(TESTER_ROUTE_PREFIX) and names_host(route, host)


def tester_of(route: HttpRoute, host: HostName) -> SplitTester | None:
    """Returns the tester of a route that was added for one.

    Args:
        route: The route.
        host: The host.

    Returns:
        The tester; None where somebody changed the route, so that it is of no tester any more.
    """
    conditions = {tuple(sorted(match.headers.items())) for match in route.match}
    if len(conditions) != 1 or len(route.route) != 1:
        return None
    (headers,) = conditions
    subset = route.route[0].destination.subset
    if len(headers) != 1 or route.route[0].destination.host != host or subset is None:
        return None
    ((name, condition),) = headers
    if name == _COOKIE:
        return _cookie_tester(condition, subset)
    if condition.kind not in (StringMatchKind.EXACT, StringMatchKind.PRESENT):
        return None
    return SplitTester(header=name, value=condition.value, subset=subset)


def without_testers(routes: Sequence[HttpRoute], host: HostName) -> tuple[HttpRoute, ...]:
    """Returns routes without those that were added for testers of a host."""
    return tuple(each for each in routes if not is_tester_route(each, host))


def with_testers(
    service: VirtualService, host: HostName, testers: Sequence[SplitTester]
) -> tuple[HttpRoute, ...]:
    """Returns the routes of a VirtualService with routes for testers added.

    Args:
        service: The VirtualService; it has no routes of the host's testers.
        host: The host.
        testers: The testers; of two that hold for a request the first counts.
    """
    if not testers:
        return service.http
    number = itertools.count(1)
    routes: list[HttpRoute] = []
    for beside, group in itertools.groupby(service.http, lambda each: _is_own(each, host)):
        block = list(group)
        if beside:
            routes += (
                _tester_route(route, host, tester, f"{TESTER_ROUTE_PREFIX}{next(number)}")
                for route in block
                if divides_requests(route, host)
                for tester in testers
            )
        routes += block
    return tuple(routes)


def _is_own(route: HttpRoute, host: HostName) -> bool:
    """Returns whether a tester's route may stand ahead of a route, because it is the host's own."""
    only = bool(route.route) and all(each.destination.host == host for each in route.route)
    return only or divides_requests(route, host)


def _tester_route(route: HttpRoute, host: HostName, tester: SplitTester, name: str) -> HttpRoute:
    """Returns the route for a tester: as another one, with one destination and a condition."""
    same = [each for each in route.route if each.destination.host == host]
    of_subset = [each for each in same if each.destination.subset == tester.subset]
    model = of_subset[0] if of_subset else same[0]
    header, condition = _condition(tester)
    target = Destination(host=host, subset=tester.subset, port=model.destination.port)
    destination = HttpRouteDestination(destination=target, weight=100)
    return replace(
        narrowed(route, {header: condition}, name),
        route=(replace(model, weight=100) if of_subset else destination,),
        mirror=None if route.mirror is not None and route.mirror.host == host else route.mirror,
        mirror_percentage=None
        if route.mirror is not None and route.mirror.host == host
        else route.mirror_percentage,
        mirrors=tuple(each for each in route.mirrors if each.destination.host != host),
    )


def _condition(tester: SplitTester) -> tuple[HeaderName, StringMatch]:
    if tester.header is not None:
        kind = StringMatchKind.EXACT if tester.value else StringMatchKind.PRESENT
        return tester.header, StringMatch(kind, tester.value)
    name = re.escape(tester.cookie or "")
    value = re.escape(tester.value) if tester.value else _ANY_VALUE
    return _COOKIE, StringMatch(StringMatchKind.REGEX, f"{_BEFORE}{name}={value}{_AFTER}")


def _cookie_tester(condition: StringMatch, subset: SubsetName) -> SplitTester | None:
    text = condition.value
    if not (text.startswith(_BEFORE) and text.endswith(_AFTER)):
        return None
    name, _, value = text[len(_BEFORE) : -len(_AFTER)].partition("=")
    tester = SplitTester(
        cookie=_unescaped(name),
        value="" if value == _ANY_VALUE else _unescaped(value),
        subset=subset,
    )
    return tester if _condition(tester) == (_COOKIE, condition) else None


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
