"""The JSON Schema of rollout files, generated from the model.

Editors complete and check files by it, and the CRD will be made of it. So it is structural, as
Kubernetes calls it: no references, every field with its type, description and default. How fields
fit together is judged by the reader alone.
"""

from typing import Any, Final

from tidegate.rollout.spec.fields import fields_of
from tidegate.rollout.spec.model import Rollout, RolloutSpec, StickyBy
from tidegate.rollout.spec.strategies import CanaryStrategy, Step, Strategy, Tester

__all__ = ["SCHEMA_ID", "rollout_schema"]

SCHEMA_ID: Final = "https://tidegate.dev/schemas/rollout.v1alpha1.json"

_ONE_OF: Final = {
    **{
        model.__name__: [field.key for field in fields_of(model)]
        for model in (CanaryStrategy, Step, Strategy, StickyBy)
    },
    Tester.__name__: ["header", "cookie"],
    RolloutSpec.__name__: ["candidate", "candidates"],
}
"""The fields of which exactly one is given, by model."""


def rollout_schema() -> dict[str, Any]:
    """Returns the schema of one rollout."""
    # Of what is written, so that defaults are as in files: `2h`.
    made = Rollout.model_json_schema(by_alias=True, mode="serialization")
    schema = _plain(made, made.pop("$defs"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Rollout",
        **schema,
    }


def _plain(schema: Any, definitions: dict[str, Any], name: str = "") -> Any:
    """Returns a schema with its references written out, and without titles and nulls."""
    if isinstance(schema, list):
        return [_plain(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        name = schema["$ref"].rpartition("/")[2]
        return _plain(definitions[name], definitions, name) | _plain(rest, definitions)
    if {"type": "null"} in schema.get("anyOf", ()):
        return _plain(_without_null(schema), definitions, name)
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {each: _plain(inner, definitions) for each, inner in value.items()}
        elif key == "description":
            found[key] = " ".join(value.split())
        elif key in _LITERAL:
            found[key] = value
        elif key in _LIMITS:
            found[_LIMITS[key]] = value
        elif key != "title":
            found[key] = _plain(value, definitions)
    if name in _ONE_OF:
        found["oneOf"] = [{"required": [key]} for key in _ONE_OF[name]]
    return found


_LITERAL: Final = ("const", "default", "enum", "examples", "required")
_LIMITS: Final = {"gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""pydantic leaves the second limit of a number in its own words."""


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a field that may be absent; a file does not write null."""
    choices = [each for each in schema["anyOf"] if each != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    if rest.get("default", "") is None:
        del rest["default"]
    return {**choices[0], **rest} if len(choices) == 1 else {**rest, "anyOf": choices}
