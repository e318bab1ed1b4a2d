"""An entry appears whole or not at all."""

import pytest

from tidegate.serving.build.assembly import assemble, make_default, sound_entry
from tidegate.serving.build.errors import BuildError
from tidegate.serving.repository import ImageClassifier, LanguageModel, Repository


def write_model(content):
    def write(folder):
        (folder / "config.json").write_text(content)
        return LanguageModel(kind="language-model", description=content)

    return write


def everything_under(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_a_built_entry_opens_and_every_file_has_a_checksum(tmp_path):
    entry = assemble(tmp_path, "talk", "1", write_model("{}"))
    assert entry == Repository(tmp_path).find("talk", "1")
    assert list(entry.metadata.files) == ["config.json"]
    assert (entry.metadata.name, entry.metadata.version) == ("talk", "1")
    assert entry.metadata.created is not None
    assert everything_under(tmp_path) == [
        "talk",
        "talk/1",
        "talk/1/config.json",
        "talk/1/model.json",
    ]


def test_a_build_that_dies_leaves_nothing_and_keeps_the_old_entry(tmp_path):
    def die(folder):
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    assemble(tmp_path, "talk", "1", write_model("old"))
    before = everything_under(tmp_path)
    for version in ("1", "2"):
        with pytest.raises(KeyboardInterrupt):
            assemble(tmp_path, "talk", version, die)
    assert everything_under(tmp_path) == before
    assert Repository(tmp_path).find("talk").metadata.description == "old"


def test_an_unsound_build_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(BuildError, match=r"net 1 is not sound: .*model\.onnx: is missing"):
        assemble(tmp_path, "net", "1", lambda folder: ImageClassifier(kind="image-classifier"))
    assert everything_under(tmp_path) == ["net"]


def test_a_new_build_replaces_the_old_one(tmp_path):
    assemble(tmp_path, "talk", "1", write_model("old"))
    assert assemble(tmp_path, "talk", "1", write_model("new")).metadata.description == "new"
    assert (tmp_path / "talk" / "1" / "config.json").read_text() == "new"


def test_an_entry_is_sound_until_a_byte_of_it_changes(tmp_path):
    entry = assemble(tmp_path, "talk", "1", write_model("{}"))
    assert sound_entry(entry.path) == entry
    (entry.path / "config.json").write_text("[]")
    assert sound_entry(entry.path) is None
    assert sound_entry(tmp_path / "talk" / "2") is None


def test_a_default_that_someone_chose_is_kept(tmp_path):
    for version in ("1", "2", "3"):
        assemble(tmp_path, "talk", version, write_model("{}"))
    make_default(tmp_path, "talk", "1")
    make_default(tmp_path, "talk", "2")
    assert Repository(tmp_path).find("talk").version == "1"
