"""Ours beside a real cluster: what is taken and refused, value by value.

`verdicts.yaml` says what the API server and Istio's validation said, and is told how it was made.
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


def said(field, value):
    """What is said of a value; nothing where it is taken."""
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
    return [value for value in field.get(verdicts, ()) if not said(field, value)]


@pytest.mark.parametrize("name", VERDICTS)
def test_what_a_cluster_takes_is_taken(name):
    field = VERDICTS[name]
    told = {value: found for value in field.get("taken", ()) if (found := said(field, value))}
    assert told == {}
    assert taken(field, "taken_here") == field.get("taken_here", [])


@pytest.mark.parametrize("name", VERDICTS)
def test_what_a_cluster_refuses_is_refused(name):
    assert taken(VERDICTS[name], "refused") == []


@pytest.mark.parametrize("name", [name for name in VERDICTS if "refused_here" in VERDICTS[name]])
def test_what_is_refused_here_alone_is_told_at_its_field_with_a_fix(name):
    field = VERDICTS[name]
    found = {value: said(field, value) for value in field["refused_here"]}
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
