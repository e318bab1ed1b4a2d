"""The JSON Schema: it accepts what is written, and refuses what one field makes wrong."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from rollout_examples import CANARY, rollouts

from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.schema import rollout_schema

ROOT = Path(__file__).parents[4]
SCHEMA = rollout_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_file_in_the_docs_is_the_schema():
    assert json.loads((ROOT / "docs/rollout.schema.json").read_text()) == SCHEMA


@given(rollouts())
def test_every_rollout_that_is_written_is_valid(rollout: Rollout):
    VALIDATOR.validate(rollout.model_dump(mode="json", by_alias=True, exclude_none=True))


def _parts(schema):
    yield schema
    for value in schema.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                yield from _parts(each)


def test_the_schema_is_structural():
    for part in _parts(SCHEMA):
        assert "$ref" not in part
        assert part.get("type") != "null"
    fields = [each for part in _parts(SCHEMA) for each in part.get("properties", {}).values()]
    assert len(fields) > 60
    assert all(isinstance(each, dict) and each.get("description") for each in fields)


@pytest.mark.parametrize(
    ("written", "refused"),
    [
        ("falseAbort: 1%", "falseAbort: much"),
        ("falseAbort: 1%", "false_abort: 1%"),
        ("within: 2h", "within: 7200"),
        ("otherwise: pause", "otherwise: stop"),
        ("weight: 10", "weight: 101"),
        ("weight: 10", "weight: '10'"),
        ("weight: 10", "weight: 10\n          pause: {for: 1m}"),
        ("signal: latency", "signal: latencies"),
        ("tolerate: 1.2x", "tolerate: 1.2 times"),
        ("host: vision", "host: Vision"),
        ("candidate: v2", "candidate: v2\n  candidates: [v3]"),
        ("  candidate: v2\n", ""),
        ("kind: Rollout", "kind: Rolout"),
        ("metadata: {name: vision-int8,", "metadata: {"),
    ],
)
def test_what_one_field_makes_wrong_is_invalid(written, refused):
    assert CANARY.count(written) >= 1
    VALIDATOR.validate(yaml.safe_load(CANARY))
    assert not VALIDATOR.is_valid(yaml.safe_load(CANARY.replace(written, refused, 1)))


def test_defaults_are_written_as_in_files():
    decide = SCHEMA["properties"]["spec"]["properties"]["decide"]["properties"]
    assert decide["within"]["default"] == "2h"
    assert decide["falseAbort"]["default"] == "1%"
    assert decide["otherwise"]["default"] == "pause"
