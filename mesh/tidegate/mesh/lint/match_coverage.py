"""Whether an earlier rule takes every request of a later rule, so that the later never matches.

The answer is yes only where it is certain. Conditions are compared one by one: the later rule must
have every condition of the earlier rule, at least as strict.
"""

from collections.abc import Mapping
from typing import TypeVar

from tidegate.istio.expressions import full_match
from tidegate.istio.shapes import StringMatch, StringMatchKind
from tidegate.istio.virtual_service import HttpMatchRequest, HttpRoute

__all__ = ["match_covers", "matches_of", "may_match"]

_K = TypeVar("_K")


def matches_of(rule: HttpRoute) -> tuple[HttpMatchRequest, ...]:
    """The conditions of a rule, one of which must hold; a rule without any has an empty one."""
    return rule.match or (HttpMatchRequest(),)


def match_covers(one: HttpMatchRequest, other: HttpMatchRequest) -> bool:
    """Whether every request that meets the conditions of ``other`` meets those of ``one``."""
    path = None if _any_path(one.uri) else one.uri
    if path is not None and one.ignore_uri_case != other.ignore_uri_case:
        return False
    alone = ("scheme", "method", "authority")
    return (
        _implied(path, other.uri)
        and all(_implied(getattr(one, name), getattr(other, name)) for name in alone)
        and _all_implied(one.headers, other.headers)
        and _all_implied(one.query_params, other.query_params)
        and one.without_headers.items() <= other.without_headers.items()
        and one.port in (None, other.port)
        and (not one.gateways or (bool(other.gateways) and {*other.gateways} <= {*one.gateways}))
    )


def may_match(match: HttpMatchRequest, path: str) -> bool:
    """Whether a request for this path can meet the conditions on paths."""
    uri = match.uri
    if uri is None:
        return True
    value, asked = uri.value, path
    if match.ignore_uri_case:
        value, asked = value.lower(), asked.lower()
    if uri.kind is StringMatchKind.EXACT:
        return asked == value
    if uri.kind is StringMatchKind.PREFIX:
        return asked.startswith(value)
    if uri.kind is StringMatchKind.REGEX:
        return full_match(uri.value, path)
    return True


def _any_path(uri: StringMatch | None) -> bool:
    if uri is None or uri.kind is StringMatchKind.PRESENT:
        return True
    if uri.kind is StringMatchKind.PREFIX:
        return uri.value in ("", "/")
    return uri.kind is StringMatchKind.REGEX and uri.value == ".*"


def _all_implied(one: Mapping[_K, StringMatch], other: Mapping[_K, StringMatch]) -> bool:
    return all(_implied(condition, other.get(name)) for name, condition in one.items())


def _implied(wide: StringMatch | None, narrow: StringMatch | None) -> bool:
    """Whether what meets the narrow condition meets the wide one."""
    if wide is None or wide == narrow:
        return True
    if narrow is None:
        return False
    if wide.kind is StringMatchKind.PRESENT:
        return True
    texts = (StringMatchKind.EXACT, StringMatchKind.PREFIX)
    if wide.kind is StringMatchKind.PREFIX:
        return narrow.kind in texts and narrow.value.startswith(wide.value)
    if wide.kind is not StringMatchKind.REGEX:
        return False
    if narrow.kind is StringMatchKind.EXACT:
        return full_match(wide.value, narrow.value)
    # An empty text meets '.*' only.
    return wide.value == ".*" or (
        wide.value == ".+" and narrow.kind in texts and narrow.value != ""
    )
