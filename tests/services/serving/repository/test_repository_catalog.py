"""Finding a model by name and version."""

import subprocess
import sys

import pytest

from tidegate.serving.repository import EntryNotFoundError, MetadataError, Repository


@pytest.fixture
def repository(hand):
    for version in ("1-fp32", "1-int8", "10-fp32", "9-fp32"):
        hand.classifier("net", version)
    hand.classifier("other", "1")
    return Repository(hand.root)


def test_versions_are_listed_oldest_first(repository):
    assert repository.names() == ("net", "other")
    assert repository.versions("net") == ("1-fp32", "1-int8", "9-fp32", "10-fp32")


def test_the_default_version_is_the_latest(repository):
    assert repository.find("net").version == "10-fp32"


def test_a_default_file_sets_the_default_version(repository):
    (repository.root / "net" / "default").write_text("1-int8\n")
    assert repository.find("net").version == "1-int8"
    assert repository.find("net", "9-fp32").version == "9-fp32"


def test_a_missing_default_version_is_an_error_that_names_the_file(repository):
    (repository.root / "net" / "default").write_text("2\n")
    with pytest.raises(EntryNotFoundError, match=r"net/default names version '2'.*10-fp32"):
        repository.find("net")


def test_the_error_of_an_unknown_version_lists_the_known_ones(repository):
    with pytest.raises(EntryNotFoundError, match=r"no version '2' of 'net'.*1-fp32, 1-int8"):
        repository.find("net", "2")


def test_the_error_of_an_unknown_model_lists_the_known_ones(repository):
    with pytest.raises(EntryNotFoundError, match=r"'nett'.*net, other"):
        repository.find("nett")


@pytest.mark.parametrize(
    ("name", "version"), [("..", "net"), ("net", ".."), ("net", "../net/1-fp32")]
)
def test_a_name_cannot_leave_the_repository(repository, name, version):
    with pytest.raises(EntryNotFoundError):
        repository.find(name, version)


def test_folders_that_are_not_models_are_ignored(repository):
    (repository.root / ".building-x" / "1").mkdir(parents=True)
    (repository.root / "net" / "notes").mkdir()
    (repository.root / "README").write_text("hello")
    assert repository.names() == ("net", "other")
    assert "notes" not in repository.versions("net")


def test_an_absent_repository_is_an_empty_one(tmp_path):
    assert Repository(tmp_path / "none").locations() == ()


def test_a_broken_entry_is_listed_and_fails_only_when_opened(repository):
    (repository.root / "other" / "1" / "model.json").write_text("{}")
    assert [location.name for location in repository.locations()].count("other") == 1
    with pytest.raises(MetadataError, match="'kind' is missing"):
        repository.find("other", "1")


def test_importing_the_format_loads_no_engine():
    heavy = "{'torch', 'onnx', 'openvino', 'numpy', 'transformers'}"
    program = (
        "import sys, tidegate.serving.repository, tidegate.cli.build;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
