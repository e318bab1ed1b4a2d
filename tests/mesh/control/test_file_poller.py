"""Files of objects that cannot be read, that are being written, or that go."""

import os
from pathlib import Path

import pytest

from tidegate.mesh.control.configuration.files import FilePoller


@pytest.mark.parametrize("kind", ["bytes", "pipe", "folder", "link", "loop"])
def test_a_file_that_cannot_be_read_stops_no_other(tmp_path, kind):
    files = FilePoller([tmp_path])
    bad, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    bad.write_text("before")
    good.write_text("1")
    files.poll()
    bad.unlink()
    match kind:
        case "bytes":
            bad.write_bytes(b"\xff\xfe")
        case "pipe":
            os.mkfifo(bad)
        case "folder":
            bad.mkdir()
        case "link":
            bad.symlink_to("nothing")
        case "loop":
            bad.symlink_to(bad)
    good.write_text("22")
    assert good in files.poll()
    assert files.texts[good] == "22"
    assert files.texts[bad] == "before"
    assert bad in files.problems


@pytest.mark.parametrize("text", ["", "kind: a\n", "kind: a\n---\nki"])
def test_a_file_that_holds_less_counts_once_it_has_settled(tmp_path, text):
    now = 0.0
    path = tmp_path / "x.yaml"
    whole = "kind: a\n---\nkind: b\n"
    files = FilePoller([path], 5.0, lambda: now)
    path.write_text(whole)
    files.poll()
    path.write_text(text)
    # The clock of the poller reads it.
    for now in (1.0, 1.9) if text else (1.0, 5.9):  # noqa: B007
        assert not files.poll()
        assert files.texts[path] == whole
        assert path in files.problems
    now = 2.0 if text else 6.0
    assert files.poll() == {path}
    assert files.texts[path] == text
    assert not files.problems


def test_a_file_that_is_away_for_one_poll_is_not_deleted(tmp_path):
    path = tmp_path / "x.yaml"
    files = FilePoller([path])
    path.write_text("1")
    files.poll()
    path.unlink()
    assert not files.poll()
    assert files.texts
    assert files.poll() == {path}
    assert not files.texts


def test_files_of_a_folder_that_cannot_be_read_are_not_deleted(tmp_path, monkeypatch):
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "x.yaml").write_text("1")
    (tmp_path / "y.yaml").write_text("1")
    files = FilePoller([tmp_path])
    files.poll()
    with monkeypatch.context() as patch:
        scandir = os.scandir

        def refuse(path):
            if Path(path) == folder:
                # Root may read everything.
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        patch.setattr(os, "scandir", refuse)
        (tmp_path / "y.yaml").write_text("22")
        for _ in range(3):
            files.poll()
            assert files.texts == {folder / "x.yaml": "1", tmp_path / "y.yaml": "22"}
            assert "Permission denied" in files.problems[folder]
    (folder / "x.yaml").unlink()
    files.poll()
    files.poll()
    assert files.texts.keys() == {tmp_path / "y.yaml"}
    assert not files.problems


def test_files_of_a_folder_that_cannot_be_found_are_not_deleted(tmp_path, monkeypatch):
    """Its parent may not be searched; `Path.is_dir` raises then."""
    folder, other = tmp_path / "one", tmp_path / "y.yaml"
    folder.mkdir()
    (folder / "x.yaml").write_text("1")
    other.write_text("1")
    files = FilePoller([folder, other])
    files.poll()
    is_dir = Path.is_dir

    def refuse(path):
        if path == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    other.write_text("22")
    for _ in range(3):
        files.poll()
        assert files.texts == {folder / "x.yaml": "1", other: "22"}
        assert "Permission denied" in files.problems[folder]
