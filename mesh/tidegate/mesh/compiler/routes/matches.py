"""Conditions of a route: Istio's ``match`` as Envoy's ``RouteMatch``.

A rule without ``match``, and a condition without a path, become the prefix ``/``. Header conditions
stand in the order of their names, so that equal conditions make equal resources.
"""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import regex_pb2
from google.protobuf.wrappers_pb2 import BoolValue

from tidegate.istio.shapes import GatewayName, HeaderName, StringMatch, StringMatchKind
from tidegate.istio.virtual_service import HttpMatchRequest, HttpRoute, VirtualService
from tidegate.mesh.compiler.protobuf import string_matcher

__all__ = ["is_catch_all", "matches_at", "route_match"]

_HeaderMatcher: TypeAlias = route_components_pb2.HeaderMatcher
_RouteMatch: TypeAlias = route_components_pb2.RouteMatch


def matches_at(
    virtual_service: VirtualService, gateway: GatewayName, port: int
) -> Iterator[tuple[int, HttpRoute, HttpMatchRequest | None]]:
    """The rules that hold at a gateway and a port, once for each of their conditions.

    Yields:
        The index of the rule, the rule, and a condition that holds there; None for a rule without
        conditions.
    """
    for index, rule in enumerate(virtual_service.http):
        if not rule.match:
            yield index, rule, None
        for match in rule.match:
            if match.holds_at(gateway, port):
                yield index, rule, match


def route_match(match: HttpMatchRequest | None) -> _RouteMatch:
    """Makes the conditions under which a route takes a request.

    Ports and gateways are not among them: they decide which route configurations have the route.

    Args:
        match: The condition in the object; None for every request.
    """
    if match is None:
        return _RouteMatch(prefix="/")
    result = _RouteMatch(case_sensitive=BoolValue(value=not match.ignore_uri_case))
    _path(result, match.uri)
    result.headers.extend(_headers(match.headers, match.without_headers))
    for name, condition in (
        (":method", match.method),
        (":authority", match.authority),
        (":scheme", match.scheme),
    ):
        if condition is not None:
            result.headers.append(_header(name, condition))
    for name, condition in sorted(match.query_params.items(), key=lambda item: item[0]):
        parameter = result.query_parameters.add(name=name)
        if _asks_for_presence(condition):
            parameter.present_match = True
        else:
            parameter.string_match.CopyFrom(string_matcher(condition))
    return result


def is_catch_all(match: _RouteMatch) -> bool:
    """Whether every request meets the conditions, so that no later route is reached."""
    everywhere = match.prefix == "/" or match.safe_regex.regex == ".*"
    return everywhere and not match.headers and not match.query_parameters


def _path(result: _RouteMatch, uri: StringMatch | None) -> None:
    if uri is None:
        result.prefix = "/"
        return
    match uri.kind:
        case StringMatchKind.EXACT:
            result.path = uri.value
        case StringMatchKind.PREFIX:
            result.prefix = uri.value
        case StringMatchKind.REGEX:
            result.safe_regex.CopyFrom(regex_pb2.RegexMatcher(regex=uri.value))
        case StringMatchKind.PRESENT:
            result.prefix = "/"


def _headers(
    with_: Mapping[HeaderName, StringMatch], without: Mapping[HeaderName, StringMatch]
) -> Iterator[_HeaderMatcher]:
    matchers = [_header(name, condition) for name, condition in with_.items()]
    for name, condition in without.items():
        matcher = _header(name, condition)
        matcher.invert_match = True
        # A request without the header does not have the unwanted value either.
        matcher.treat_missing_header_as_empty = not _asks_for_presence(condition)
        matchers.append(matcher)
    yield from sorted(matchers, key=lambda each: each.name)


def _header(name: str, condition: StringMatch) -> _HeaderMatcher:
    if _asks_for_presence(condition):
        return _HeaderMatcher(name=name, present_match=True)
    return _HeaderMatcher(name=name, string_match=string_matcher(condition))


def _asks_for_presence(condition: StringMatch) -> bool:
    return condition.kind is StringMatchKind.PRESENT
