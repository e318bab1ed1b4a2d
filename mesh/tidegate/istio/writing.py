"""From objects back to plain YAML values: the inverse of reading.

What has its default is left out, but for numbers: a weight of 0 is written, since it is a decision.
"""

import dataclasses
import datetime as dt
import enum
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from tidegate.istio.annotations_reading import annotation_names, annotation_text
from tidegate.istio.objects import IstioObject
from tidegate.istio.reading import fields_of
from tidegate.istio.scalars import duration_text
from tidegate.istio.shapes import Inside, Message, StringMatch, StringMatchKind

__all__ = ["plain"]


def plain(item: IstioObject) -> dict[str, Any]:
    """An object as a manifest's plain values, with full names of hosts."""
    metadata: dict[str, Any] = {"name": item.name.name, "namespace": item.name.namespace}
    annotations = {
        key: annotation_text(value)
        for key, name in annotation_names(type(item.annotations)).items()
        if (value := getattr(item.annotations, name)) not in (None, False)
    }
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": item.name.kind.value,
        "metadata": metadata,
        "spec": _message(item),
    }


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
    return values


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
