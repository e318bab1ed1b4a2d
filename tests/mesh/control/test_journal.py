"""Changes whose state file cannot be written at some step."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tidegate.mesh.control.configuration.journal import Journal, PendingTransition, TextChange
from tidegate.mesh.control.errors import StateError
from tidegate.mesh.control.transitions.plan import StageKind

FILES = (TextChange(Path("x.yaml"), "a", "b", "a"),)
PENDING = PendingTransition(id="1", description="x", files=FILES, deadline_s=1.0)


@pytest.mark.parametrize("table", ["pending", "pending_files", "applied", "shifted", "COMMIT"])
def test_a_failed_write_leaves_no_trace(tmp_path, table):
    with Journal(tmp_path / "state") as journal:

        def refuse(action, first, second, *_):
            writes = (sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_TRANSACTION)
            return sqlite3.SQLITE_DENY if action in writes and first == table else 0

        def attempt():
            journal.begin(PENDING)
            journal.end(FILES, made=True)

        journal._database.set_authorizer(refuse)
        with pytest.raises(StateError, match="state file"):
            attempt()
        assert not journal.applied()
        assert not journal.shifted()
        journal._database.set_authorizer(None)
        if journal.pending() is None:
            journal.begin(PENDING)
        journal.end(FILES, made=True)
        assert journal.shifted()
    with Journal(tmp_path / "state") as journal:
        assert journal.pending() is None
        assert journal.shifted()


def test_no_change_begins_once_the_state_file_is_removed(tmp_path):
    with Journal(tmp_path / "state") as journal:
        (tmp_path / "state").unlink()
        with pytest.raises(StateError, match="removed"):
            journal.begin(PENDING)


def test_a_pending_transition_is_read_as_it_was_written(tmp_path):
    pending = replace(PENDING, keep=True, proxies=frozenset({"a", "b"}))
    with Journal(tmp_path / "state") as journal:
        journal.begin(pending)
        journal.reach(StageKind.ROUTES)
    with Journal(tmp_path / "state") as journal:
        assert journal.pending() == replace(pending, reached=StageKind.ROUTES)
