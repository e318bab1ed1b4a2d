"""Converts objects back to plain values: the inverse of reading.

An edit is the difference between the plain values of an object before and after. `yaml_text`
applies it to a text, and `manifests` to plain values from an API server.

Default values are omitted, except numbers: a weight of 0 is written because someone chose it.
"""

import dataclasses
import datetime as dt
import difflib
import enum
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any

from tidegate.istio.objects import IstioObject
from tidegate.istio.reading.annotations import annotation_names, annotation_text
from tidegate.istio.reading.messages import fields_of
from tidegate.istio.scalars import duration_text
from tidegate.istio.shapes import Inside, Message, StringMatch, StringMatchKind

__all__ = ["ListStep", "list_steps", "plain"]


def plain(item: IstioObject) -> dict[str, Any]:
    """Returns an object as the plain values of a manifest, with full names of hosts."""
    annotations = {
        key: annotation_text(value)
        for key, name in annotation_names(type(item.annotations)).items()
        if (value := getattr(item.annotations, name)) not in (None, False)
    }
    # The mapping is there even when empty: other programs may have annotations in it.
    metadata = {
        "name": item.name.name,
        "namespace": item.name.namespace,
        "annotations": annotations,
    }
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": item.name.kind.value,
        "metadata": metadata,
        "spec": _message(item),
    }


@dataclass(frozen=True, slots=True)
class ListStep:
    """A step from a list to a list of later values.

    Attributes:
        before: The indexes of the items before.
        after: The indexes of the items after.
        paired: Whether each item before becomes the item after at the same place. Otherwise the
            items before are removed, and those after are inserted.
    """

    before: range
    after: range
    paired: bool


def list_steps(before: Sequence[Any], after: Sequence[Any]) -> Iterator[ListStep]:
    """Yields the steps from a list to a list of later values."""
    matcher = difflib.SequenceMatcher(
        None, list(map(_identity, before)), list(map(_identity, after)), autojunk=False
    )
    for verb, start, end, new_start, new_end in matcher.get_opcodes():
        same_number = verb == "replace" and end - start == new_end - new_start
        yield ListStep(range(start, end), range(new_start, new_end), verb == "equal" or same_number)


def _identity(item: Any) -> str:
    """Returns what stays the same in an item of a list when its other fields change."""
    if isinstance(item, Mapping):
        for key in ("destination", "name", "match", "port"):
            if key in item:
                return json.dumps([key, item[key]], sort_keys=True)
        if "route" in item:
            return "a route that takes every request"
    return json.dumps(item, sort_keys=True)


def _message(message: Message) -> dict[str, Any]:
    defaults = {each.name: each for each in dataclasses.fields(message)}
    values: dict[str, Any] = {}
    for shape in fields_of(type(message)).values():
        value = getattr(message, shape.name)
        if value is None or (not _is_number(value) and value == _default(defaults[shape.name])):
            continue
        written = _plain(value)
        for marker in _markers(shape.type):
            if isinstance(marker, Inside):
                written = {marker.field: written}
        values[shape.yaml_name] = written
    return {**values, **message.opaque}


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return _message(value)
    if isinstance(value, StringMatch):
        present = value.kind is StringMatchKind.PRESENT
        return {} if present else {value.kind.value: value.value}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dt.timedelta):
        return duration_text(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _markers(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
