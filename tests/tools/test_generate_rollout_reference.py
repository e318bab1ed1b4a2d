"""The schema and the reference of rollouts are generated, and say what the model says."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools/generate_rollout_reference.py"


@pytest.fixture
def tool(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("generate_rollout_reference", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    for name in ("SCHEMA", "DEFINITION", "REFERENCE"):
        copy = tmp_path / getattr(found, name).name
        copy.write_text(getattr(found, name).read_text())
        monkeypatch.setattr(found, name, copy)
    monkeypatch.setattr(found, "ROOT", tmp_path)
    return found


def _run(tool, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["tool", *arguments])
    return tool.main()


def test_the_committed_files_are_up_to_date(tool, monkeypatch):
    assert _run(tool, monkeypatch, "--check") == 0


def test_stale_files_are_reported_and_then_written(tool, monkeypatch, capsys):
    fresh = tool.REFERENCE.read_text()
    tool.REFERENCE.write_text(fresh.replace("| `host` |", "| `hast` |"))
    tool.SCHEMA.write_text("{}")
    tool.DEFINITION.write_text("")
    assert _run(tool, monkeypatch, "--check") == 1
    assert capsys.readouterr().err == (
        "stale: rollout.schema.json, rollouts.yaml, rollout-spec.md; run `make protos`\n"
    )
    assert _run(tool, monkeypatch) == 0
    assert tool.REFERENCE.read_text() == fresh
    assert _run(tool, monkeypatch, "--check") == 0


def test_a_part_of_the_model_without_a_table_is_an_error(tool):
    text = re.sub(
        r"<!-- generated: Decide -->.*?<!-- end -->",
        "",
        tool.REFERENCE.read_text(),
        flags=re.DOTALL,
    )
    with pytest.raises(SystemExit, match="has no table for Decide"):
        tool.reference_text(text)


def test_every_field_has_a_meaning_in_the_reference(tool):
    for line in tool.REFERENCE.read_text().splitlines():
        if line.startswith("| `"):
            assert all(cell.strip() for cell in line.strip("|").split("|")), line
