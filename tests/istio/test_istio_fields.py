"""The declarations against Istio's own schema: each field is read, or kept and refused by name.

`crd_fields.json` has the fields of Istio's CRDs (v1, the same in v1beta1) by name, with the values
of enums.
"""

import enum
import json
import types
import typing
from pathlib import Path

import pytest

from tidegate.istio.objects import CLASSES
from tidegate.istio.reading.messages import fields_of
from tidegate.istio.reading.scalar_readers import Reading
from tidegate.istio.shapes import Inside, Message, StringMatch
from tidegate.mesh.compiler.unsupported import (
    UNSUPPORTED_FIELDS,
    UNSUPPORTED_VALUES,
    unsupported,
)

SCHEMAS = json.loads(Path(__file__).with_name("crd_fields.json").read_text())


def bare(hint):
    """Returns a type without None, tuple, mapping and annotation, and the field that wraps it."""
    wrapper = None
    while True:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            wrapper = next((one.field for one in args[1:] if isinstance(one, Inside)), wrapper)
            hint = args[0]
        elif origin in (types.UnionType, typing.Union):
            hint = next(one for one in args if one is not type(None))
        elif origin is tuple:
            hint = args[0]
        elif origin is not None:
            hint = args[1]
        else:
            return hint, wrapper


def unwrapped(schema):
    """Returns a schema without the list or map around it."""
    if isinstance(schema, list):
        return unwrapped(schema[0])
    return unwrapped(schema["*"]) if isinstance(schema, dict) and "*" in schema else schema


def compared(message, schema, path):
    """Yields the differences between a message and Istio's schema."""
    declared = fields_of(message)
    for name in schema.keys() - declared.keys() - message.OPAQUE:
        yield f"{path}.{name} is neither read nor kept"
    for name in (declared.keys() | message.OPAQUE) - schema.keys():
        yield f"{path}.{name} is not a field of Istio"
    for name in declared.keys() & schema.keys():
        hint, wrapper = bare(declared[name].type)
        inner = unwrapped(schema[name])
        place = f"{path}.{name}"
        if wrapper is not None:
            if wrapper not in schema[name]:
                yield f"{place} is not wrapped in {wrapper}"
        elif isinstance(hint, type) and issubclass(hint, Message):
            yield from compared(hint, inner, place)
        elif isinstance(hint, type) and issubclass(hint, enum.Enum):
            words = {member.value for member in hint}
            if "|" in inner and words != set(inner.split("|")):
                yield f"{place} has the values {words}, Istio {inner}"
        elif hint is StringMatch:
            if inner.keys() != {"exact", "prefix", "regex"}:
                yield f"{place} is not a condition on a text"
        elif isinstance(inner, dict):
            yield f"{place} is a message"


@pytest.mark.parametrize("message", CLASSES.values(), ids=lambda each: each.__name__)
def test_every_field_of_istio_is_read_or_kept_by_name(message):
    assert list(compared(message, SCHEMAS[message.__name__], "spec")) == []


@pytest.mark.parametrize("message", CLASSES.values(), ids=lambda each: each.__name__)
def test_every_refusal_says_why_and_what_to_do(message):
    def refusals(each):
        for owner in each.__mro__:
            yield from UNSUPPORTED_FIELDS.get(owner, {}).values()
        for shape in fields_of(each).values():
            hint, _ = bare(shape.type)
            if isinstance(hint, type) and issubclass(hint, Message):
                yield from refusals(hint)
            yield from UNSUPPORTED_VALUES.get(hint, {}).values()

    assert [words for words in refusals(message) if "; " not in words] == []


@pytest.mark.parametrize("message", CLASSES.values(), ids=lambda each: each.__name__)
def test_every_field_that_is_not_read_is_refused_by_the_compiler(message):
    def unread(each):
        refused = {name for owner in each.__mro__ for name in UNSUPPORTED_FIELDS.get(owner, ())}
        yield from (f"{each.__name__}.{name}" for name in refused ^ each.OPAQUE)
        for shape in fields_of(each).values():
            hint, _ = bare(shape.type)
            if isinstance(hint, type) and issubclass(hint, Message):
                yield from unread(hint)

    assert list(unread(message)) == []


def test_every_refused_value_is_one_of_its_field():
    for kind, refused in UNSUPPORTED_VALUES.items():
        assert refused.keys() <= {member.value for member in kind}


@pytest.mark.parametrize("kind", UNSUPPORTED_VALUES, ids=lambda each: each.__name__)
def test_hints_leave_out_every_refused_value(kind):
    reading = Reading("models", refused_values=unsupported.refused_values)
    assert (
        set(reading.known(kind)) == {each.value for each in kind} - UNSUPPORTED_VALUES[kind].keys()
    )
