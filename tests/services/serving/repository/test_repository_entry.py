"""Opening an entry finds its errors before a server loads it."""

import json

import pytest

from tidegate.serving.repository import (
    CorruptFileError,
    Entry,
    MetadataError,
    ModelKind,
    WrongKindError,
)
from tidegate.serving.repository.digests import digest_of


def test_a_hand_written_entry_opens_without_checksums(hand):
    folder = hand.classifier("my-net", "3")
    entry = Entry.open(folder)
    assert (entry.name, entry.version, entry.kind) == ("my-net", "3", ModelKind.IMAGE_CLASSIFIER)
    assert entry.labels == ("cat", "dog")
    assert entry.model_path == folder / "model.onnx"
    assert entry.image_classifier() is entry.metadata


def test_a_relative_folder_is_named_by_where_it_is(hand, monkeypatch):
    monkeypatch.chdir(hand.classifier("my-net", "3"))
    entry = Entry.open(type(hand.root)())
    assert (entry.name, entry.version) == ("my-net", "3")


def test_recorded_checksums_are_verified(hand):
    assert Entry.open(hand.classifier(digests=True)).labels == ("cat", "dog")


def test_an_altered_file_of_the_same_length_is_found(hand):
    folder = hand.classifier(digests=True)
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes().replace(b"weights", b"weighty", 1))
    with pytest.raises(CorruptFileError, match=r"model\.onnx: has SHA-256"):
        Entry.open(folder)


def test_the_content_check_can_be_skipped_but_not_the_length_check(hand):
    folder = hand.classifier(digests=True)
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes().replace(b"weights", b"weighty", 1))
    assert Entry.open(folder, verify=False).name == "net"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(CorruptFileError, match=r"model\.onnx: has \d+ bytes where \d+"):
        Entry.open(folder, verify=False)


@pytest.mark.parametrize("kept", [0, 1, 3, 500, -1])
def test_a_cut_onnx_file_is_found_without_a_checksum(hand, kept):
    folder = hand.classifier()
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(CorruptFileError, match=r"model\.onnx: is (cut short|empty)"):
        Entry.open(folder)


def test_a_file_that_is_not_onnx_is_found(hand):
    folder = hand.classifier()
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CorruptFileError, match="is not ONNX"):
        Entry.open(folder)


def test_a_missing_model_is_found(hand):
    folder = hand.classifier()
    (folder / "model.onnx").unlink()
    with pytest.raises(CorruptFileError, match=r"model\.onnx: is missing"):
        Entry.open(folder)


def test_labels_that_do_not_match_the_classes_are_found(hand):
    folder = hand.classifier(labels=("cat", "dog"), output={"classes": 3})
    with pytest.raises(CorruptFileError, match=r"2 labels but output\.classes .* is 3"):
        Entry.open(folder)


@pytest.mark.parametrize("text", ["", "cat\n\ndog\n"])
def test_an_empty_label_is_found(hand, text):
    folder = hand.classifier()
    (folder / "labels.txt").write_text(text)
    with pytest.raises(CorruptFileError, match="one label per line"):
        Entry.open(folder)


def test_a_classifier_without_labels_opens(hand):
    assert Entry.open(hand.classifier(labels=None)).labels == ()


@pytest.mark.parametrize(("field", "value"), [("name", "other"), ("version", "2")])
def test_metadata_that_contradicts_its_folder_is_refused(hand, field, value):
    with pytest.raises(MetadataError, match=f"'{field}' is '{value}' but the folder is"):
        Entry.open(hand.classifier(**{field: value}))


def test_a_link_out_of_the_folder_is_refused(hand, tmp_path):
    folder = hand.classifier()
    outside = tmp_path / "secret.txt"
    outside.write_text("a\nb\n")
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").symlink_to(outside)
    with pytest.raises(CorruptFileError, match="leads out of the model's own folder"):
        Entry.open(folder)


def test_a_language_model_is_a_folder(tmp_path):
    folder = tmp_path / "talk" / "1"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"kind": "language-model"}))
    with pytest.raises(CorruptFileError, match=r"config\.json: is missing"):
        Entry.open(folder)
    (folder / "config.json").write_text("{}")
    entry = Entry.open(folder)
    assert entry.model_path == folder
    assert entry.language_model().chat_template is False
    with pytest.raises(WrongKindError, match="talk 1 is of kind language-model"):
        entry.image_classifier()


def test_a_digest_is_that_of_the_whole_file(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(b"abc")
    assert digest_of(path).model_dump() == {
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "size_bytes": 3,
    }
