"""Converts the spec of a rollout to messages and back, field by field.

Fields have the same names in the model and in the messages, so one walk over the model's fields
serves all of them; a test compares the two. What differs is how a value is held: durations, the
enums' names, and a tolerance or a bound, which is text in files.
"""

import enum
import math
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from tidegate.evidence.plan import Importance
from tidegate.rollout.spec.checking import Steps, check, path_of
from tidegate.rollout.spec.faults import Fault, SpecError
from tidegate.rollout.spec.fields import Field, fields_of, find_field
from tidegate.rollout.spec.model import API_VERSION, KIND, Metadata, Rollout, RolloutSpec
from tidegate.rollout.spec.objectives import StrictModel
from tidegate.rollout.spec.quantities import Bound, Form, Tolerance, duration_text, number_text
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["IMPORTANCES", "enum_number", "rollout_of", "spec_message"]


def spec_message(rollout: Rollout) -> rollout_pb2.Rollout:
    """Returns a rollout as a message without a status."""
    message = rollout_pb2.Rollout()
    _fill(message.metadata, rollout.metadata)
    _fill(message.spec, rollout.spec)
    return message


def rollout_of(message: rollout_pb2.Rollout) -> Rollout:
    """Returns the rollout of a message; its status is ignored.

    Raises:
        SpecError: The message has faults. Their paths have the names of the message's fields.
    """
    values: dict[str, object] = {"apiVersion": API_VERSION, "kind": KIND}
    faults: list[Fault] = []
    if message.HasField("metadata"):
        values["metadata"] = _values(message.metadata, Metadata, "metadata", faults)
    if message.HasField("spec"):
        values["spec"] = _values(message.spec, RolloutSpec, "spec", faults)
    if faults:
        raise SpecError(faults)
    found = check(values)
    if isinstance(found, Rollout):
        return found
    raise SpecError(Fault(path_of(_in_message(steps)), text) for steps, text in found)


def enum_number(descriptor: EnumDescriptor, member: enum.Enum) -> int:
    """Returns the number of an enum's member in a message: ``ABORT`` is ``IMPORTANCE_ABORT``."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return int(descriptor.values_by_name[prefix + member.name].number)


def _fill(message: Any, model: StrictModel) -> None:
    for field in fields_of(type(model)):
        value = getattr(model, field.name)
        if value is None:
            continue
        descriptor = message.DESCRIPTOR.fields_by_name[field.name]
        if isinstance(value, tuple):
            for each in value:
                _add(getattr(message, field.name), each)
        elif isinstance(value, dict):
            getattr(message, field.name).update(value)
        elif isinstance(value, StrictModel):
            getattr(message, field.name).SetInParent()
            _fill(getattr(message, field.name), value)
        elif isinstance(value, enum.Enum):
            setattr(message, field.name, enum_number(descriptor.enum_type, value))
        elif isinstance(value, Tolerance):
            held = message.tolerate
            if value.ratio is not None:
                held.ratio = value.ratio
            else:
                held.difference = value.difference
        elif isinstance(value, Bound):
            held = getattr(message, field.name)
            held.value, held.is_duration = value.value, value.is_duration
        elif field.form is Form.DURATION:
            getattr(message, field.name).FromMicroseconds(round(value * 1e6))
        else:
            setattr(message, field.name, value)


def _add(repeated: Any, value: object) -> None:
    if isinstance(value, StrictModel):
        _fill(repeated.add(), value)
    else:
        repeated.append(value)


def _values(
    message: Message, model: type[StrictModel], path: str, faults: list[Fault]
) -> dict[str, object]:
    """Returns the fields of a message that are set, as a file has them."""
    found: dict[str, object] = {}
    for field in fields_of(model):
        descriptor = message.DESCRIPTOR.fields_by_name[field.name]
        if descriptor.has_presence and not message.HasField(field.name):
            continue
        held = getattr(message, field.name)
        place = f"{path}.{field.name}"
        if field.is_mapping:
            value: object = dict(held)
        elif field.is_list and field.model is not None:
            value = [
                _values(each, field.model, f"{place}[{index}]", faults)
                for index, each in enumerate(held)
            ]
        elif field.is_list:
            value = list(held)
        elif field.model is not None:
            value = _values(held, field.model, place, faults)
        else:
            value = _plain(held, field, descriptor, place, faults)
        # Without presence an empty value is an absent one.
        if descriptor.has_presence or value not in ("", [], {}, False, None):
            found[field.key] = value
    return found


def _plain(held: Any, field: Field, descriptor: Any, path: str, faults: list[Fault]) -> object:
    if descriptor.enum_type is not None:
        return _choice(held, field, descriptor.enum_type, path, faults)
    if isinstance(held, Duration):
        return _duration(held)
    match field.form:
        case Form.TOLERANCE:
            kind = held.WhichOneof("kind")
            if kind is None:
                faults.append(Fault(path, "is empty; set ratio or difference"))
                return None
            number = getattr(held, kind)
            if not math.isfinite(number):
                faults.append(Fault(f"{path}.{kind}", f"{number} is out of range"))
                return None
            return f"{number_text(number)}x" if kind == "ratio" else number
        case Form.BOUND:
            return _duration_of(held.value) if held.is_duration else held.value
        case _:
            return held


def _choice(
    number: int, field: Field, descriptor: EnumDescriptor, path: str, faults: list[Fault]
) -> object:
    if number == 0 and not field.required:
        return None
    value = descriptor.values_by_number.get(number)
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    if value is None or number == 0:
        known = ", ".join(each.name for each in descriptor.values if each.number)
        shown = "is missing" if number == 0 else f"{number} is not known"
        faults.append(Fault(path, f"{shown}; set one of {known}"))
        return None
    return _VALUES[descriptor.name][value.name.removeprefix(prefix)]


def _duration(held: Duration) -> str:
    return _duration_of(held.seconds + held.nanos / 1e9)


def _duration_of(seconds: float) -> str:
    # Out of the range of the model; its words name the value.
    if not 0 <= seconds < 1e12:
        return f"{seconds:g}s"
    return duration_text(seconds)


def _in_message(steps: Steps) -> Steps:
    """Returns a place with the names that the fields have in messages."""
    named: list[str | int] = []
    for index, step in enumerate(steps):
        field = find_field(Rollout, steps[: index + 1])
        is_key = field is not None and step == field.key
        named.append(field.name if field is not None and is_key else step)
    return tuple(named)


def _enums() -> dict[str, dict[str, str]]:
    """Returns the values of each enum in files, by the names of the enum and of its members."""
    found: dict[str, dict[str, str]] = {}
    seen: set[type] = set()

    def visit(model: type[StrictModel]) -> None:
        seen.add(model)
        for info, field in zip(model.model_fields.values(), fields_of(model), strict=True):
            annotation = info.annotation
            for kind in (annotation, *getattr(annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, enum.Enum):
                    found[kind.__name__] = {each.name: str(each.value) for each in kind}
            if field.model is not None and field.model not in seen:
                visit(field.model)

    visit(Rollout)
    return found


_VALUES: Final = _enums()

IMPORTANCES: Final = {
    each: enum_number(rollout_pb2.Importance.DESCRIPTOR, each) for each in Importance
}
"""The numbers of importances in messages."""
