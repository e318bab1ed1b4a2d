"""The structural schema of a rollout's spec, made from the pydantic model of rollout files.

pydantic's own JSON Schema does not pass as a CRD: the API server refuses references and `const`,
wants booleans for exclusive limits, and estimates what a CEL rule may cost by the sizes that the
schema allows. So this module walks over the fields and takes each one's schema apart.

The schema has no defaults. The server would write them into each stored object: a GitOps tool
would see fields that Git does not have, and an object would keep the default of the version that
stored it. The controller applies the defaults, and the descriptions name them.
"""

import functools
from collections.abc import Mapping
from typing import Any, Final

from tidegate.rollout.crd.field_rules import FIELD_RULES, IMMUTABLE, SHAPES
from tidegate.rollout.crd.quantity_schemas import is_quantity, quantity_schema
from tidegate.rollout.spec.fields import Field, fields_of
from tidegate.rollout.spec.model import RolloutSpec
from tidegate.rollout.spec.objectives import ERROR_CODES, Objective, StrictModel
from tidegate.rollout.spec.schema import rollout_schema
from tidegate.rollout.spec.strategies import AbStrategy

__all__ = ["described", "spec_schema"]

_NAME: Final = 63
_HOST: Final = 253
_LONGEST: Final = {
    **dict.fromkeys(("baseline", "candidate", "candidates", "to", "name", "virtualService"), _NAME),
    "host": _HOST,
    "hosts": _HOST + 2,
    "gateways": _NAME + 1 + _HOST,
    **dict.fromkeys(("header", "cookie"), 256),
}
"""The largest length of texts whose pattern limits it, by key. The cost of a rule counts by it."""

_MOST_VERSIONS: Final = 11
_MOST_CODES: Final = 64
_KEPT: Final = ("enum", "maxItems", "maxLength", "minItems", "minLength", "pattern", "type")
_THOUSANDTHS: Final = {
    "rule": "double(int(self * 1000.0 + 0.5)) / 1000.0 == self",
    "message": "has too many decimals; write at most three",
}


@functools.cache
def spec_schema() -> dict[str, Any]:
    """Returns the schema of `spec`."""
    made = rollout_schema()["properties"]["spec"]
    return {"description": made["description"], **_object(RolloutSpec, made)}


def described(field: Field, description: str) -> str:
    """Returns what `kubectl explain` says about a field: its meaning, its form and its default.

    Args:
        field: The field.
        description: Its meaning.
    """
    words = [description.replace("``", "`")]
    if field.model is None and not field.choices:
        form = field.form.value
        value = f"a list, each {form}" if field.is_list else form
        words.append(f"Write {', '.join(part for part in (value, field.range_text) if part)}.")
    default = field.default
    if isinstance(default, bool):
        words += ["Default: true."] if default else []
    elif isinstance(default, int | float):
        words.append(f"Default: {field.worded(default)}.")
    elif isinstance(default, str) and field.choices:
        words.append(f"Default: {default}.")
    return " ".join(words)


def _object(model: type[StrictModel], made: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a model.

    Args:
        model: The model.
        made: Its JSON Schema, as rollout files have it.
    """
    properties = {
        field.key: _field(model, field, made["properties"][field.key]) for field in fields_of(model)
    }
    found: dict[str, Any] = {"type": "object", "properties": properties}
    if "required" in made:
        found["required"] = made["required"]
    if model in SHAPES:
        found["allOf"] = SHAPES[model]
    if model in FIELD_RULES:
        found["x-kubernetes-validations"] = FIELD_RULES[model]
    return found


def _field(model: type[StrictModel], field: Field, made: Mapping[str, Any]) -> dict[str, Any]:
    found = {"description": described(field, made["description"]), **_value(field, made)}
    if model is AbStrategy and field.key == "weights":
        found["maxProperties"] = _MOST_VERSIONS
    if model is Objective and field.key == "codes":
        found["items"]["enum"] = list(ERROR_CODES)
        found |= {"minItems": 1, "maxItems": _MOST_CODES}
    if (rule := IMMUTABLE.get((model, field.key))) is not None:
        found["x-kubernetes-validations"] = [rule]
    return found


def _value(field: Field, made: Mapping[str, Any]) -> dict[str, Any]:
    if is_quantity(field):
        return quantity_schema(field)
    if field.is_list:
        return _list(field, made)
    if field.model is not None:
        return _object(field.model, made)
    if field.is_mapping:
        values = _plain(field, made["additionalProperties"])
        return {"type": "object", "additionalProperties": values}
    return _plain(field, made)


def _list(field: Field, made: Mapping[str, Any]) -> dict[str, Any]:
    inner = made["items"]
    items = _plain(field, inner) if field.model is None else _object(field.model, inner)
    kind = "set" if field.key == "candidates" else "atomic"
    kept = {key: made[key] for key in ("minItems", "maxItems") if key in made}
    return {"type": "array", **kept, "items": items, "x-kubernetes-list-type": kind}


def _plain(field: Field, made: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the schema of a text, a number or a flag."""
    found = {key: made[key] for key in _KEPT if key in made}
    for name, limit in (("minimum", field.minimum), ("maximum", field.maximum)):
        if limit is not None:
            number, excluded = limit
            found[name] = int(number) if number.is_integer() else number
            found |= {f"exclusive{name.capitalize()}": True} if excluded else {}
    if found["type"] == "string" and "enum" not in found and "maxLength" not in found:
        longest = _LONGEST.get(field.key)
        found |= {"maxLength": longest} if longest is not None else {}
    if found["type"] == "integer":
        found["format"] = "int32"
    if found["type"] == "number" and found.get("maximum") == 100:
        found["x-kubernetes-validations"] = [_THOUSANDTHS]
    return found
