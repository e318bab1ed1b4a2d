"""The fields of Istio's objects that the compiler takes, derived from their declarations.

A field is a path such as ``VirtualService.http[].match[].uri.prefix``. An enum has a path for each
value that the compiler takes, such as ``DestinationRule…loadBalancer.simple=RANDOM``.
"""

import enum
import types
import typing

from tidegate.istio.objects import CLASSES
from tidegate.istio.reading.messages import fields_of
from tidegate.istio.shapes import Inside, Message, StringMatch
from tidegate.mesh.compiler.unsupported import UNSUPPORTED_VALUES

_CONDITIONS = ("exact", "prefix", "regex")


def supported_fields():
    """The paths of all fields that the compiler takes."""
    return {path for message in CLASSES.values() for path in _in_message(message, message.__name__)}


def fields_in(item):
    """The paths of the fields that an object has; ``item`` is a dictionary."""
    return set(_in_spec(item["spec"], CLASSES_BY_NAME[item["kind"]], item["kind"]))


CLASSES_BY_NAME = {message.__name__: message for message in CLASSES.values()}


def _in_message(message, path):
    for name, shape in fields_of(message).items():
        kind, wrapper, suffix = _bare(shape.type)
        place = f"{path}.{name}{suffix}" + (f".{wrapper}" if wrapper else "")
        yield from _in_value(kind, place)


def _in_value(kind, place):
    if kind is StringMatch:
        yield from (f"{place}.{each}" for each in _CONDITIONS)
    elif isinstance(kind, type) and issubclass(kind, Message):
        yield from _in_message(kind, place)
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        refused = UNSUPPORTED_VALUES.get(kind, {})
        yield from (f"{place}={each.value}" for each in kind if each.value not in refused)
    else:
        yield place


def _in_spec(spec, message, path):
    for name, value in spec.items():
        shape = fields_of(message).get(name)
        if shape is None:
            continue
        kind, wrapper, suffix = _bare(shape.type)
        if wrapper:
            value = value.get(wrapper)
        place = f"{path}.{name}{suffix}" + (f".{wrapper}" if wrapper else "")
        values = [value]
        if suffix == "[]":
            values = value
        elif suffix == "{}":
            values = value.values()
        for each in values:
            yield from _of_value(each, kind, place)


def _of_value(value, kind, place):
    if kind is StringMatch:
        yield from (f"{place}.{each}" for each in value)
    elif isinstance(kind, type) and issubclass(kind, Message):
        yield from _in_spec(value, kind, place)
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        yield f"{place}={value}"
    else:
        yield place


def _bare(hint):
    """A type without None, tuple, mapping and annotation; the field that wraps it; a suffix."""
    wrapper, suffix = None, ""
    while True:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            wrapper = next((each.field for each in args[1:] if isinstance(each, Inside)), wrapper)
            hint = args[0]
        elif origin in (types.UnionType, typing.Union):
            hint = next(each for each in args if each is not types.NoneType)
        elif origin is tuple:
            hint, suffix = args[0], "[]"
        elif origin is not None:
            hint, suffix = args[1], "{}"
        else:
            return hint, wrapper, suffix
