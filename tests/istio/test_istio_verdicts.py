"""Tidegate and a real cluster accept and refuse the same values.

`verdicts.yaml` has the answers of the API server and of Istio's validation, and says how they were
recorded.
"""

import textwrap
from pathlib import Path

import pytest
import yaml

from tidegate.istio.reading.documents import parse_part
from tidegate.mesh.compiler import unsupported

VERDICTS = yaml.safe_load(Path(__file__).with_name("verdicts.yaml").read_text())
PLACE = "§"
NAMED = "{name: a, namespace: models}"


def problems_of(field, value):
    """Returns the problems of a value; none where Tidegate accepts it."""
    spec = field["spec"].rstrip().replace(PLACE, value)
    metadata = field.get("metadata", NAMED).replace(PLACE, value)
    text = (
        f"apiVersion: networking.istio.io/v1\nkind: {field['kind']}\nmetadata: {metadata}\n"
        f"spec:\n{textwrap.indent(spec, '  ')}\n"
    )
    parsed = parse_part(text, "x.yaml", check=unsupported)
    assert bool(parsed.objects) != bool(parsed.problems), text
    return parsed.problems


def taken(field, verdicts):
    return [value for value in field.get(verdicts, ()) if not problems_of(field, value)]


@pytest.mark.parametrize("name", VERDICTS)
def test_values_that_a_cluster_accepts_are_accepted(name):
    field = VERDICTS[name]
    told = {
        value: found for value in field.get("taken", ()) if (found := problems_of(field, value))
    }
    assert told == {}
    assert taken(field, "taken_here") == field.get("taken_here", [])


@pytest.mark.parametrize("name", VERDICTS)
def test_values_that_a_cluster_refuses_are_refused(name):
    assert taken(VERDICTS[name], "refused") == []


@pytest.mark.parametrize("name", [name for name in VERDICTS if "refused_here" in VERDICTS[name]])
def test_values_that_only_tidegate_refuses_have_a_problem_at_their_field_with_a_fix(name):
    field = VERDICTS[name]
    found = {value: problems_of(field, value) for value in field["refused_here"]}
    assert {value: each[0].problem for value, each in found.items()} == field["refused_here"]
    assert [each for told in found.values() for each in told if not each.path or not each.fix] == []


def test_the_table_is_large_enough_to_mean_something():
    counts = {
        kind: sum(len(field.get(kind, ())) for field in VERDICTS.values())
        for kind in ("taken", "refused", "refused_here", "taken_here")
    }
    assert counts["taken"] > 900
    assert counts["refused"] > 1000
    assert counts["taken_here"] == 1
