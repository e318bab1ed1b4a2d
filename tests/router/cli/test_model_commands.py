"""``tidegate model`` as a user calls it."""

import sys

import pytest
from typer.testing import CliRunner

from tidegate.cli.build import app
from tidegate.serving.build import smollm2
from tidegate.serving.build.assembly import assemble
from tidegate.serving.build.errors import MissingPackageError
from tidegate.serving.build.libraries import quietly, required
from tidegate.serving.repository import LanguageModel, Source


@pytest.fixture
def model(tmp_path):
    """Runs ``tidegate model`` in a folder of its own; returns the exit status and all output."""

    def run(*arguments):
        result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
        return result.exit_code, result.output

    return run


def writes(source=None):
    def write(folder):
        (folder / "config.json").write_text("{}")
        return LanguageModel(kind="language-model", source=source)

    return write


def build_by_hand(root, name="talk", version="1", source=None):
    return assemble(root, name, version, writes(source))


def test_a_model_of_an_older_recipe_is_rebuilt(model, tmp_path, monkeypatch):
    now = Source(package="weights", recipe=smollm2.RECIPE)
    monkeypatch.setattr(smollm2, "write_language_model", writes(now))
    build = ("build", "smollm2", "--repository", str(tmp_path))
    entry = build_by_hand(tmp_path, "smollm2", source=Source(package="weights"))
    assert entry.metadata.source.recipe < smollm2.RECIPE
    status, output = model(*build)
    assert status == 0
    assert "smollm2 1 was built by an older recipe, and is built again" in output
    assert f'"recipe": {smollm2.RECIPE}' in (entry.path / "model.json").read_text()
    assert "already built" in model(*build)[1]


def test_a_model_without_a_source_is_not_rebuilt(model, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "write_language_model", None)
    build_by_hand(tmp_path, "smollm2")
    status, output = model("build", "smollm2", "--repository", str(tmp_path))
    assert status == 0
    assert "already built" in output


def test_list_shows_every_version_and_marks_the_default(model, tmp_path):
    build_by_hand(tmp_path, version="1")
    build_by_hand(tmp_path, version="2")
    status, output = model("list", "--repository", str(tmp_path))
    assert status == 0
    assert [line.split()[:3] for line in output.splitlines()[1:]] == [
        ["talk", "1", "language-model"],
        ["talk", "2*", "language-model"],
    ]


def test_the_error_of_an_empty_list_says_how_to_build_a_model(model, tmp_path):
    status, output = model("list", "--repository", str(tmp_path))
    assert status == 1
    assert "tidegate model build" in output


def test_verify_finds_the_altered_model_and_still_checks_the_others(model, tmp_path):
    build_by_hand(tmp_path, "good")
    altered = build_by_hand(tmp_path, "altered")
    assert model("verify", "--repository", str(tmp_path))[0] == 0
    (altered.path / "config.json").write_text("[]")
    status, output = model("verify", "--repository", str(tmp_path))
    assert status == 1
    assert "sound   good 1" in output
    assert "unsound" in output
    assert "config.json: has SHA-256" in output
    assert model("verify", "good", "--repository", str(tmp_path))[0] == 0


def test_verify_of_an_unknown_model_is_an_error(model, tmp_path):
    status, output = model("verify", "nobody", "--repository", str(tmp_path))
    assert status == 1
    assert "no model 'nobody'" in output


def test_the_error_of_a_missing_package_names_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, output = model("build", "efficientnet-lite0", "--repository", str(tmp_path))
    assert status == 1
    assert "needs the package 'onnx': pip install 'tidegate[models]'" in output
    assert "1-fp32" not in [path.name for path in tmp_path.rglob("*")]


def test_the_error_names_the_dependency_that_is_missing(monkeypatch, tmp_path):
    (tmp_path / "needs_another.py").write_text("import one_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match="'one_that_is_not_there'"):
        required("needs_another")


def test_a_language_model_has_no_choice_of_precision(model, tmp_path):
    status, output = model("build", "smollm2", "--precision", "int8", "--repository", str(tmp_path))
    assert status == 1
    assert "leave out --precision" in output


def test_a_version_that_could_leave_the_repository_is_rejected(model, tmp_path):
    status, output = model(
        "build", "smollm2", "--version", "../../x", "--repository", str(tmp_path)
    )
    assert status == 1
    assert "cannot be a version" in output


def test_samples_are_written_where_asked(model, tmp_path):
    status, output = model("samples", str(tmp_path / "samples"))
    assert status == 0
    assert "cat.jpg: Chelsea" in output
    assert (tmp_path / "samples" / "cat.jpg").is_file()


def test_the_output_of_a_library_is_shown_if_it_fails(capsys):
    with quietly():
        print("chatter")  # noqa: T201

    def fail():
        with quietly():
            print("the reason")  # noqa: T201
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed") as caught:
        fail()
    assert "the reason" in caught.value.__notes__[0]
    assert capsys.readouterr() == ("", "")
