"""Reads declared messages from YAML nodes.

The declarations in the dataclasses give one reader for each type. A reader takes a node and returns
a value. Where the node is wrong, the reader adds a problem and returns ``NOTHING``. Reading
continues after a problem, so that all problems of reading are reported at once. A message whose
optional field is wrong is still made, but its own rules are not applied. A message whose required
field is wrong is not made, so neither its rules nor the compiler's check apply until it is mended.
"""

import dataclasses
import datetime as dt
import enum
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tidegate.istio import rules
from tidegate.istio.reading.nodes import entries, find, is_null, value_of
from tidegate.istio.reading.scalar_readers import (
    NOTHING,
    SCALAR_READERS,
    Read,
    Reading,
    join,
    meant,
    read_key,
    read_optional_match,
    wrong_kind,
)
from tidegate.istio.scalars import duration_text
from tidegate.istio.shapes import AnyCase, Inside, Message, Positive, Range, StringMatch

__all__ = ["FieldShape", "annotations_of", "camel_case", "fields_of", "read_message"]

_NOT_IN_SPEC = ("name", "annotations")


@dataclass(frozen=True, slots=True)
class FieldShape:
    """One declared field.

    Attributes:
        name: Its name in Python.
        yaml_name: Its name in YAML.
        type: Its type, annotations included.
        required: Whether the field is required.
    """

    name: str
    yaml_name: str
    type: Any
    required: bool


_FIELDS: dict[type, Mapping[str, FieldShape]] = {}


def fields_of(message: type[Message]) -> Mapping[str, FieldShape]:
    """Returns the fields of a message by their names in YAML.

    An object's name and annotations are not among them, because they come from its metadata.
    """
    if message not in _FIELDS:
        hints = typing.get_type_hints(message, include_extras=True)
        excluded = ("opaque", *(_NOT_IN_SPEC if "annotations" in hints else ()))
        shapes = (
            FieldShape(
                each.name,
                camel_case(each.name),
                hints[each.name],
                each.default is MISSING and each.default_factory is MISSING,
            )
            for each in dataclasses.fields(message)
            if each.name not in excluded
        )
        _FIELDS[message] = {shape.yaml_name: shape for shape in shapes}
    return _FIELDS[message]


@functools.cache
def annotations_of(message: type[Message]) -> type:
    """Returns the class of an object's annotations."""
    kind: type = typing.get_type_hints(message)["annotations"]
    return kind


def camel_case(name: str) -> str:
    """Returns a field's name in YAML."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def read_message(
    node: Node, message: type[Message], path: str, reading: Reading, **given: object
) -> Any:
    """Reads a message.

    Args:
        node: The message's node.
        message: The message's class.
        path: The path of the node, from the object's root.
        reading: Collects the problems.
        **given: Fields that do not come from the node.

    Returns:
        The message, or ``NOTHING`` where a required field is missing or wrong. ``reading`` then has
        a problem.
    """
    if not isinstance(node, MappingNode):
        return wrong_kind(node, path, reading, "a mapping")
    values: dict[str, Any] = dict(given)
    whole = _read_fields(node, message, path, reading, values)
    shapes = fields_of(message)
    if any(shape.required and shape.name not in values for shape in shapes.values()):
        return NOTHING
    made = message(**values)
    if whole and not reading.validated:
        for each in rules.violations(made):
            place = find(node, each.path)
            reading.refuse(place, _below(path, each.path), each.problem, each.fix)
    return made


def _read_fields(
    node: MappingNode,
    message: type[Message],
    path: str,
    reading: Reading,
    values: dict[str, object],
) -> bool:
    """Reads the fields of a message into ``values``; returns whether all are read and valid."""
    found, twice = entries(node)
    for each in twice:
        reading.refuse(each.node, join(path, each.key), "is given twice", "keep one")
    shapes = fields_of(message)
    whole = not twice
    opaque: dict[str, Any] = {}
    for key, (key_node, value_node) in found.items():
        shape = shapes.get(key)
        if shape is None and (key in message.OPAQUE or reading.validated):
            opaque[key] = value_of(value_node)
            whole = False
        elif shape is None:
            reading.refuse(key_node, join(path, key), "is not a field here", meant(key, shapes))
            whole = False
        elif not is_null(value_node):
            before = len(reading.problems)
            value = _reader(shape.type)(value_node, join(path, key), reading)
            if value is NOTHING and reading.validated and not shape.required:
                del reading.problems[before:]
                opaque[key] = value_of(value_node)
            elif value is NOTHING:
                whole = False
            elif value == () and not shape.required:
                # Istio treats an empty list like a missing one: `gateways: []` is the mesh.
                pass
            elif value != "":
                values[shape.name] = value
            elif shape.required:
                reading.refuse(value_node, join(path, key), "is empty", "write it")
    _refuse_missing(node, message, path, reading)
    if opaque:
        values["opaque"] = opaque
    return whole


def _refuse_missing(node: MappingNode, message: type[Message], path: str, reading: Reading) -> None:
    found, _ = entries(node)
    for name, shape in fields_of(message).items():
        if shape.required and (name not in found or is_null(found[name][1])):
            reading.refuse(node, join(path, name), "is missing", "add it")


@functools.cache
def _reader(hint: Any) -> Read:
    """Returns the reader of a type."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _annotated(hint)
    if origin in (types.UnionType, typing.Union):
        return _reader(next(one for one in typing.get_args(hint) if one is not type(None)))
    if origin is tuple:
        return functools.partial(_read_tuple, _reader(typing.get_args(hint)[0]))
    if origin is not None:
        key, value = typing.get_args(hint)
        read_value = read_optional_match if value is StringMatch else _reader(value)
        return functools.partial(_read_mapping, _reader(key), read_value)
    if isinstance(hint, type) and issubclass(hint, Message):
        return lambda node, path, reading: read_message(node, hint, path, reading)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return functools.partial(_read_enum, hint)
    return SCALAR_READERS[hint]


def _annotated(hint: Any) -> Read:
    base, *markers = typing.get_args(hint)
    read = _reader(base)
    for marker in reversed(markers):
        if isinstance(marker, Range):
            read = functools.partial(_read_in_range, read, marker)
        elif isinstance(marker, Positive):
            read = functools.partial(_read_long_enough, read, marker)
        elif isinstance(marker, Inside):
            read = functools.partial(_read_inside, read, marker)
    return read


def _read_inside(read: Read, wrapper: Inside, node: Node, path: str, reading: Reading) -> Any:
    if not isinstance(node, MappingNode):
        example = f"{{{wrapper.field}: {node.value}}}" if isinstance(node, ScalarNode) else ""
        return wrong_kind(node, path, reading, f"a mapping {example}".rstrip())
    found, _ = entries(node)
    unknown = [key for key in found if key != wrapper.field]
    for key in unknown:
        fix = meant(key, [wrapper.field])
        reading.refuse(found[key][0], join(path, key), "is not a field here", fix)
    if wrapper.field not in found:
        return reading.refuse(node, path, f"lacks '{wrapper.field}'", f"add '{wrapper.field}'")
    value = read(found[wrapper.field][1], f"{path}.{wrapper.field}", reading)
    # The value alone would lose the other fields, which an API server may know.
    return NOTHING if unknown else value


def _read_tuple(read: Read, node: Node, path: str, reading: Reading) -> Any:
    if not isinstance(node, SequenceNode):
        return wrong_kind(node, path, reading, "a list")
    read_items = [read(item, f"{path}[{index}]", reading) for index, item in enumerate(node.value)]
    return NOTHING if NOTHING in read_items else tuple(read_items)


def _read_mapping(
    read_name: Read, read_value: Read, node: Node, path: str, reading: Reading
) -> Any:
    if not isinstance(node, MappingNode):
        return wrong_kind(node, path, reading, "a mapping")
    found, twice = entries(node)
    for each in twice:
        reading.refuse(each.node, join(path, each.key), "is given twice", "keep one")
    values: dict[Any, Any] = {}
    for key, (key_node, value_node) in found.items():
        place = join(path, key)
        name = read_key(read_name, key_node, place, reading)
        values[name] = read_value(value_node, place, reading)
    return NOTHING if twice or NOTHING in values or NOTHING in values.values() else values


def _read_enum(kind: type[enum.Enum], node: Node, path: str, reading: Reading) -> Any:
    text = SCALAR_READERS[str](node, path, reading)
    if text is NOTHING:
        return text
    if issubclass(kind, AnyCase):
        # Istio treats an empty text like a missing field.
        text = text.upper()
        if text == "":
            return text
    try:
        return kind(text)
    except ValueError:
        return reading.refuse(node, path, f"cannot be {text!r}", meant(text, reading.known(kind)))


def _read_in_range(read: Read, limits: Range, node: Node, path: str, reading: Reading) -> Any:
    value = read(node, path, reading)
    if value is NOTHING or limits.minimum <= value <= limits.maximum:
        return value
    span = f"{limits.minimum:,g} to {limits.maximum:,g}".replace(",", "")
    if isinstance(value, int):
        span = f"{int(limits.minimum)} to {int(limits.maximum)}"
    return reading.doubt(value, node, path, f"cannot be {value}", f"write a number of {span}")


def _read_long_enough(read: Read, limit: Positive, node: Node, path: str, reading: Reading) -> Any:
    value = read(node, path, reading)
    if value is NOTHING:
        return value
    if value < limit.minimum:
        least = duration_text(limit.minimum)
        return reading.doubt(value, node, path, f"cannot be {node.value}", f"at least {least}")
    if value % dt.timedelta(milliseconds=1):
        problem = f"{node.value} has parts of a millisecond"
        return reading.doubt(value, node, path, problem, "write whole milliseconds")
    return value


def _below(path: str, rest: str) -> str:
    return f"{path}.{rest}" if path and rest else path or rest
