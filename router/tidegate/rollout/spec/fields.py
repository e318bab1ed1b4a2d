"""The fields of a rollout, found in the pydantic model: by path, with their ranges and forms.

The reader of files words its errors by them, the conversion to messages finds its fields by them,
and the reference of the documentation is made of them.
"""

import enum
import functools
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tidegate.rollout.spec.objectives import StrictModel
from tidegate.rollout.spec.quantities import (
    Bound,
    Form,
    Tolerance,
    duration_text,
    fraction_text,
    number_text,
)

__all__ = ["Field", "fields_of", "find_field"]

_UNIONS: Final = (typing.Union, types.UnionType)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the model.

    Attributes:
        name: Its name in Python and in the messages: ``false_abort``.
        key: Its name in files: ``falseAbort``.
        description: What it is, from the docstring under the attribute.
        required: Whether it must be given.
        default: Its default; None if there is none.
        form: How its value is written.
        choices: The values of an enum; empty for other forms.
        model: The model of its value, or of the items of a list; None for a plain value.
        is_list: Whether it is a list.
        is_mapping: Whether it maps names to values.
        is_optional: Whether absence means something else than any value.
        minimum: The smallest value, and whether it is itself excluded; None without one.
        maximum: The largest value, and whether it is itself excluded; None without one.
        pattern: The pattern of a text; empty without one.
        most: The largest number of items of a list; None without one.
    """

    name: str
    key: str
    description: str
    required: bool
    default: object
    form: Form
    choices: tuple[str, ...]
    model: type[StrictModel] | None
    is_list: bool
    is_mapping: bool
    is_optional: bool
    minimum: tuple[float, bool] | None
    maximum: tuple[float, bool] | None
    pattern: str
    most: int | None

    def worded(self, number: float) -> str:
        """Returns a number as one writes it in this field: ``0.5`` is ``50%`` in a share."""
        match self.form:
            case Form.DURATION:
                return duration_text(number)
            case Form.SHARE:
                return fraction_text(number)
            case _:
                return number_text(number)

    @property
    def range_text(self) -> str:
        """The range, such as ``above 0% and up to 50%``; empty without one."""
        low = high = ""
        if self.minimum is not None:
            number, excluded = self.minimum
            low = f"{'above' if excluded else 'from'} {self.worded(number)}"
        if self.maximum is not None:
            number, excluded = self.maximum
            high = f"{'below' if excluded else 'up to'} {self.worded(number)}"
        if low.startswith("from") and high.startswith("up to"):
            return f"{low} {high.removeprefix('up ')}"
        return f"{low} and {high}" if low and high else low or high


@functools.cache
def fields_of(model: type[StrictModel]) -> tuple[Field, ...]:
    """Returns the fields of a model, in order."""
    return tuple(_field(name, info) for name, info in model.model_fields.items())


def find_field(model: type[StrictModel], steps: Sequence[str | int]) -> Field | None:
    """Returns the field at a path from a model; None if the path leaves the model.

    Args:
        model: The model at which the path begins.
        steps: Keys and indices, such as ``("spec", "testers", 0, "to")``.
    """
    found: Field | None = None
    at: type[StrictModel] | None = model
    for step in steps:
        if isinstance(step, int) or (found is not None and found.is_mapping):
            continue
        if at is None:
            return None
        found = next((each for each in fields_of(at) if step in (each.key, each.name)), None)
        if found is None:
            return None
        at = found.model
    return found


def _field(name: str, info: FieldInfo) -> Field:
    types_ = list(_leaves(info.annotation))
    metadata = [*info.metadata, *_metadata(info.annotation)]
    lists = _origins(info.annotation)
    models = [t for t in types_ if isinstance(t, type) and issubclass(t, StrictModel)]
    enums = [t for t in types_ if isinstance(t, type) and issubclass(t, enum.Enum)]
    literals = [str(t) for t in types_ if isinstance(t, str)]
    minimum: tuple[float, bool] | None = None
    maximum: tuple[float, bool] | None = None
    pattern, most = "", None
    for each in metadata:
        match each:
            case annotated_types.Ge():
                minimum = (_number(each.ge), False)
            case annotated_types.Gt():
                minimum = (_number(each.gt), True)
            case annotated_types.Le():
                maximum = (_number(each.le), False)
            case annotated_types.Lt():
                maximum = (_number(each.lt), True)
            case annotated_types.MaxLen() if tuple in lists:
                most = each.max_length
            case _:
                pattern = getattr(each, "pattern", None) or pattern
    default = None if info.default is PydanticUndefined else info.default
    choices = [str(each.value) for each in enums[0]] if enums else literals
    return Field(
        name=name,
        key=info.alias or name,
        description=" ".join((info.description or "").split()),
        required=info.is_required(),
        default=default,
        form=_form(types_, metadata, is_choice=bool(choices)),
        choices=tuple(choices),
        model=models[0] if models else None,
        is_list=tuple in lists,
        is_mapping=dict in lists,
        is_optional=type(None) in types_,
        minimum=minimum,
        maximum=maximum,
        pattern=pattern,
        most=most,
    )


def _form(types_: list[Any], metadata: list[Any], *, is_choice: bool) -> Form:
    for each in metadata:
        if isinstance(each, Form):
            return each
    if is_choice:
        return Form.CHOICE
    for kind, form in _FORMS.items():
        if kind in types_:
            return form
    return Form.MAPPING


_FORMS: Final = {
    Tolerance: Form.TOLERANCE,
    Bound: Form.BOUND,
    bool: Form.TRUTH,
    int: Form.WHOLE,
    float: Form.NUMBER,
    str: Form.TEXT,
}


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yields the plain types in an annotation, and the values of a Literal."""
    origin = typing.get_origin(annotation)
    if origin is None:
        yield annotation
        return
    inner = typing.get_args(annotation)
    if origin is typing.Annotated:
        inner = inner[:1]
    elif origin is dict:
        inner = inner[1:]
    elif origin is typing.Literal:
        yield from inner
        return
    for each in inner:
        if each is not Ellipsis:
            yield from _leaves(each)


def _metadata(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin is None or origin is typing.Literal:
        return
    inner = typing.get_args(annotation)
    if origin is typing.Annotated:
        for each in inner[1:]:
            yield from each.metadata if isinstance(each, FieldInfo) else (each,)
        inner = inner[:1]
    for each in inner:
        yield from _metadata(each)


def _origins(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin is None or origin is typing.Literal:
        return set()
    found = set() if origin in _UNIONS or origin is typing.Annotated else {origin}
    for each in typing.get_args(annotation):
        found |= _origins(each)
    return found


def _number(value: Any) -> float:
    return float(value)
