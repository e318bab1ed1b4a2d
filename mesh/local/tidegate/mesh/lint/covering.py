"""Whether one rule takes every request that another would: then the other never matches.

The answer is yes only where it is sure. Conditions are compared one by one: the earlier has to ask
for nothing that the later does not ask for at least as strictly.
"""

from collections.abc import Mapping
from typing import TypeVar

from tidegate.mesh.istio.expressions import full_match
from tidegate.mesh.istio.shapes import StringMatch, StringMatchKind
from tidegate.mesh.istio.virtual_service import HttpMatchRequest, HttpRoute

__all__ = ["covers", "may_match"]

_K = TypeVar("_K")


def covers(earlier: HttpRoute, later: HttpRoute) -> bool:
    """Whether every request that ``later`` matches is matched by ``earlier``."""
    if not earlier.match:
        return True
    return bool(later.match) and all(
        any(_match_covers(one, other) for one in earlier.match) for other in later.match
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


def _match_covers(one: HttpMatchRequest, other: HttpMatchRequest) -> bool:
    if one.ignore_uri_case != other.ignore_uri_case and one.uri is not None:
        return False
    alone = ("uri", "scheme", "method", "authority")
    return (
        all(_implied(getattr(one, name), getattr(other, name)) for name in alone)
        and _all_implied(one.headers, other.headers)
        and _all_implied(one.query_params, other.query_params)
        and one.without_headers.items() <= other.without_headers.items()
        and one.port in (None, other.port)
        and (not one.gateways or (bool(other.gateways) and {*other.gateways} <= {*one.gateways}))
    )


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
    if wide.kind is StringMatchKind.PREFIX:
        texts = (StringMatchKind.EXACT, StringMatchKind.PREFIX)
        return narrow.kind in texts and narrow.value.startswith(wide.value)
    if wide.kind is not StringMatchKind.REGEX:
        return False
    if narrow.kind is StringMatchKind.EXACT:
        return full_match(wide.value, narrow.value)
    return wide.value in (".*", ".+")
