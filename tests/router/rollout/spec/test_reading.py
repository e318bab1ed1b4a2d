"""Rollout files: what is accepted, and the words of every refusal."""

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rollout_examples import CANARY, rollouts

from tidegate.rollout.spec.model import Otherwise, Rollout
from tidegate.rollout.spec.quantities import Bound, Tolerance
from tidegate.rollout.spec.reading import (
    MOST_BYTES,
    RolloutFileError,
    SpecError,
    dump,
    read_files,
    read_rollouts,
    rollout_of_values,
)

_PARTS = {
    "OBJECTIVES": CANARY[CANARY.index("  objectives:") : CANARY.index("  decide:")],
    "STRATEGY": CANARY[CANARY.index("    canary:") : CANARY.index("  objectives:")],
}


def _refusal(text: str) -> str:
    with pytest.raises(SpecError) as refused:
        read_rollouts(text, "f.yaml")
    return str(refused.value)


def test_a_rollout_is_read_as_written():
    (rollout,) = read_rollouts(CANARY, "f.yaml")
    assert rollout.key == "models/vision-int8"
    assert rollout.spec.host == "vision"
    steps = rollout.spec.strategy.canary.steps
    assert [step.weight for step in steps] == [1, None, 10, None, 50, None]
    assert steps[1].pause.for_time == 120
    assert rollout.spec.objectives[1].above == Bound(0.2, is_duration=True)
    assert rollout.spec.objectives[1].tolerate == Tolerance(ratio=1.5)
    assert rollout.spec.decide.otherwise is Otherwise.PAUSE
    assert rollout.spec.decide.false_abort == 0.01


def _refusals() -> list[tuple[str, str, str, str]]:
    table = yaml.safe_load((Path(__file__).parent / "refusals.yaml").read_text())
    return [
        (_PARTS.get(each["written"], each["written"]), *list(each.values())[1:]) for each in table
    ]


@pytest.mark.parametrize(("written", "accepted", "refused", "words"), _refusals())
def test_faults_are_named_with_line_path_value_and_fix(written, accepted, refused, words):
    assert CANARY.count(written) >= 1
    read_rollouts(CANARY.replace(written, accepted, 1), "f.yaml")
    assert _refusal(CANARY.replace(written, refused, 1)) == f"f.yaml:{words}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "f.yaml: is empty; write apiVersion, kind, metadata and spec"),
        ("# a\n---\n---\n", "f.yaml: is empty; write apiVersion, kind, metadata and spec"),
        ("- a\n", "f.yaml:1: is a list; write apiVersion, kind, metadata and spec"),
        ("hello", "f.yaml:1: is text; write apiVersion, kind, metadata and spec"),
        ("a: [1,2", "f.yaml:2: is not YAML: while parsing a flow sequence did not find expected"),
        ("a: *b", "f.yaml:1: *b refers to an anchor that this document does not define before it"),
        ("a: &a [*a]", "f.yaml:1: contains itself by an alias; write the value out"),
        ("[" * 5000, "f.yaml:1: is nested more than 40 levels deep; flatten it"),
        ("{a: " * 5000, "f.yaml:1: is nested more than 40 levels deep; flatten it"),
        ("\0", "f.yaml:1: is not YAML:"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
            "f.yaml:1: has more than 20000 values; is an alias repeated in an alias?",
        ),
        (
            "#" * (MOST_BYTES + 1),
            "f.yaml: is larger than 1024 KiB; split it, or remove what is no rollout",
        ),
    ],
)
def test_texts_that_are_no_rollout_are_refused(text, words):
    assert _refusal(text).startswith(words)


def test_an_alias_is_read_where_it_is_small():
    text = CANARY.replace("{for: 2m}", "&wait {for: 2m}").replace("{untilEvidence: true}", "*wait")
    (rollout,) = read_rollouts(text, "f.yaml")
    assert rollout.spec.strategy.canary.steps[3].pause.for_time == 120


def test_every_fault_is_named_at_once():
    text = CANARY.replace("falseAbort: 1%", "falseAbort: 2").replace("weight: 10", "weight: ten")
    text = text.replace("host: vision", "hast: vision").replace("name: vision", "nam: vision")
    assert [line.partition(":")[2].partition(": ")[0] for line in _refusal(text).splitlines()] == [
        "3",
        "3",
        "4",
        "5",
        "13",
        "21",
    ]


def test_documents_and_lists_hold_several_rollouts():
    other = CANARY.replace("vision-int8", "other")
    assert [each.metadata.name for each in read_rollouts(f"{CANARY}---\n{other}", "f")] == [
        "vision-int8",
        "other",
    ]
    items = [yaml.safe_load(CANARY), yaml.safe_load(other)]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    assert len(read_rollouts(listed, "f.json")) == 2


def test_a_name_is_given_once():
    assert _refusal(f"{CANARY}---\n{CANARY}") == (
        "f.yaml:25: metadata.name: models/vision-int8 is already defined at f.yaml:3; give one"
        " another name"
    )


def test_files_and_folders_are_read_with_all_their_faults(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.yaml").write_text(CANARY)
    (tmp_path / "b.json").write_text(json.dumps(yaml.safe_load(CANARY.replace("int8", "b"))))
    (tmp_path / "notes.txt").write_text("no rollout")
    # Folders hold JSON of other things, so a rollout in JSON is named itself.
    found = read_files([tmp_path, tmp_path / "b.json"])
    assert [each.rollout.metadata.name for each in found] == ["vision-int8", "vision-b"]
    assert [each.rollout.metadata.name for each in read_files([tmp_path])] == ["vision-int8"]
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "c.yml").write_text(CANARY.replace("kind: Rollout", "kind: Deployment"))
    with pytest.raises(SpecError) as refused:
        read_files([tmp_path, tmp_path / "b.json"])
    assert {each.source.rpartition("/")[2] for each in refused.value.faults} == {"b.json", "c.yml"}


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(RolloutFileError, match="nowhere: there is no such file or folder"):
        read_files([tmp_path / "nowhere"])
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(RolloutFileError, match=r"a\.yaml: is not text in UTF-8"):
        read_files([tmp_path])
    (tmp_path / "a.yaml").write_text("a" * (MOST_BYTES + 1))
    with pytest.raises(SpecError, match=r"a\.yaml: is larger than 1024 KiB"):
        read_files([tmp_path])


def test_a_place_in_a_file_has_its_line(tmp_path):
    (tmp_path / "a.yaml").write_text(CANARY)
    (placed,) = read_files([tmp_path])
    assert placed.line(("spec", "strategy", "canary", "steps", 4)) == 15
    assert placed.line(("spec", "sticky", "header")) == 4


@given(rollouts())
def test_a_written_rollout_reads_as_the_same(rollout: Rollout):
    text = dump(rollout)
    assert read_rollouts(text, "f.yaml") == (rollout,)
    assert dump(read_rollouts(text, "f.yaml")[0]) == text


@given(rollouts())
def test_json_is_read_as_yaml_is(rollout: Rollout):
    value = rollout.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert read_rollouts(json.dumps(value, ensure_ascii=False), "f.json") == (rollout,)
    assert rollout_of_values(value) == rollout


def test_texts_that_yaml_reads_as_something_else_are_written_in_quotes():
    for text in ("yes", "off", "1e3", "012", "~", "null", "=", "2026-01-01", "12:30", "", "- a"):
        value = yaml.safe_load(CANARY)
        value["metadata"]["annotations"] = {"a": text}
        rollout = rollout_of_values(value)
        assert read_rollouts(dump(rollout), "f.yaml") == (rollout,), text


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(["2m", "1%", "1.2x", "-1s", "99999999d", "abort", "v1", "[", "200%", "1e400s"]),
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def _places(value, place=()):
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items if isinstance(value, dict | list) else ():
        yield from (
            _places(inner, (*place, key)) if isinstance(inner, dict | list) else [(*place, key)]
        )


@given(rollouts(), st.data())
def test_whatever_is_written_is_read_or_refused_in_plain_words(rollout: Rollout, data):
    value = rollout.model_dump(mode="json", by_alias=True, exclude_none=True)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([each for each in _places(value) if each]))
        parent = value
        for step in place[:-1]:
            parent = parent[step]
        if isinstance(parent, dict) and data.draw(st.booleans()):
            parent[data.draw(st.text(max_size=12))] = data.draw(_VALUES)
        else:
            parent[place[-1]] = data.draw(_VALUES)
    text = yaml.safe_dump(value, allow_unicode=True)
    try:
        read_rollouts(text, "f.yaml")
    except SpecError as error:
        for fault in error.faults:
            assert fault.text
            for word in ("Input should", "Value error", "valid", "pydantic", "None", "NoneType"):
                assert word not in fault.text.replace("invalid", ""), fault


@given(st.text(), st.integers(0, len(CANARY)), st.integers(0, 60))
def test_broken_text_is_read_or_refused(inserted, at, removed):
    text = CANARY[:at] + inserted + CANARY[at + removed :]
    # Any other error fails the test.
    with contextlib.suppress(SpecError):
        read_rollouts(text, "f.yaml")
