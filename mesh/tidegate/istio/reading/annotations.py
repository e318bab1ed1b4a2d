"""Reads ``tidegate.dev/*`` annotations; an unknown one is an error and never ignored."""

import datetime as dt
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from yaml.nodes import MappingNode, Node

from tidegate.istio.annotations import HttpPath, LoadBalancerOption, RolloutName, Sticky
from tidegate.istio.reading.nodes import entries
from tidegate.istio.reading.scalar_readers import (
    NOTHING,
    SCALAR_READERS,
    Reading,
    join,
    meant,
    wrong_kind,
)
from tidegate.istio.recorded_routes import RecordedRoutes, parse_recorded_routes
from tidegate.istio.scalars import (
    duration_text,
    is_cookie_name,
    is_header_name,
    is_object_name,
    parse_duration,
)
from tidegate.istio.shapes import HeaderName

__all__ = [
    "ENVIRONMENT",
    "PREFIX",
    "annotation_names",
    "annotation_text",
    "parse_http_path",
    "parse_rollout_name",
    "parse_sticky",
    "read_annotations",
]

PREFIX = "tidegate.dev/"
ENVIRONMENT = f"{PREFIX}environment"
"""Every object may have it, since a kustomization gives it to all; lint alone reads it."""
# Printable ASCII without white space, so that it cannot end the request's first line.
_HTTP_PATH = re.compile(r"/[!-~]{0,255}")


def annotation_names(annotations: type) -> Mapping[str, str]:
    """Returns the fields of a kind's annotations by their names in YAML."""
    return {PREFIX + each.name.replace("_", "-"): each.name for each in fields(annotations)}


def parse_sticky(text: str) -> Sticky | None:
    """Parses ``header:x-user-id`` or ``cookie:user``; returns None for any other text."""
    source, _, name = text.partition(":")
    if source == "header" and is_header_name(name.lower()):
        return Sticky(header=HeaderName(name.lower()))
    if source == "cookie" and is_cookie_name(name):
        return Sticky(cookie=name)
    return None


def parse_rollout_name(text: str) -> RolloutName | None:
    """Parses ``models/vision-v2``; returns None for any other text."""
    namespace, _, name = text.partition("/")
    if not (is_object_name(namespace) and is_object_name(name)):
        return None
    return RolloutName(namespace, name)


def parse_http_path(text: str) -> HttpPath | None:
    """Parses ``/readyz``; returns None for any other text."""
    return HttpPath(text) if _HTTP_PATH.fullmatch(text) else None


def read_annotations(node: Node | None, annotations: type, path: str, reading: Reading) -> Any:
    """Reads the annotations of one kind.

    Args:
        node: The node of ``metadata.annotations``; None where there are none.
        annotations: The class of the kind's annotations.
        path: The path of the node.
        reading: Collects the problems.
    """
    if node is None:
        return annotations()
    if not isinstance(node, MappingNode):
        wrong_kind(node, path, reading, "a mapping")
        return annotations()
    hints = typing.get_type_hints(annotations)
    known = annotation_names(annotations)
    values: dict[str, object] = {}
    for key, (key_node, value_node) in entries(node)[0].items():
        if not key.startswith(PREFIX) or key == ENVIRONMENT:
            continue
        place = join(path, key)
        if key not in known and reading.validated:
            # A newer version of Tidegate may know it.
            continue
        if key not in known:
            fix = meant(key, known) if known else "remove it; this kind has none"
            reading.refuse(key_node, place, "is not an annotation of Tidegate for this kind", fix)
            continue
        text = SCALAR_READERS[str](value_node, place, reading)
        if text is NOTHING:
            continue
        parse, words = _PARSERS[_without_none(hints[known[key]])]
        value = parse(text)
        if value is None:
            reading.refuse(value_node, place, f"cannot be {text!r}", f"write {words}")
        else:
            values[known[key]] = value
    return annotations(**values)


def annotation_text(value: object) -> str:
    """Returns the text of an annotation's value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dt.timedelta):
        return duration_text(value)
    return str(value.value) if isinstance(value, LoadBalancerOption) else str(value)


def _without_none(hint: Any) -> Any:
    """Returns the type without the None of a missing annotation."""
    return next((one for one in typing.get_args(hint) if one is not type(None)), hint)


def _load_balancer(text: str) -> LoadBalancerOption | None:
    return next((option for option in LoadBalancerOption if option.value == text), None)


_PARSERS: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    HttpPath: (parse_http_path, "a path, as /readyz"),
    bool: ({"true": True, "false": False}.get, "'true' or 'false', in quotes"),
    dt.timedelta: (parse_duration, "a duration such as 1.5s"),
    LoadBalancerOption: (_load_balancer, "orca or full-scan"),
    RecordedRoutes: (parse_recorded_routes, "what the rollout wrote, or remove it"),
    RolloutName: (parse_rollout_name, "NAMESPACE/NAME of a rollout, as models/vision-v2"),
    Sticky: (parse_sticky, "header:NAME or cookie:NAME, as header:x-user-id"),
}
