"""SQLite files of one process: locked, checked, and written all or nothing."""

import sqlite3
import subprocess
import sys

import pytest

from tidegate.runtime.sqlite_file import (
    Durability,
    connect,
    file_identity,
    is_damage,
    is_locked,
    schema_version,
    transaction,
)

WRITES_AND_WAITS = """
import sys
from pathlib import Path
from tidegate.runtime.sqlite_file import Durability, connect
database = connect(Path(sys.argv[1]), Durability.PROCESS)
database.execute("CREATE TABLE t (x)")
database.execute("BEGIN IMMEDIATE")
database.execute("INSERT INTO t VALUES (1)")
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.sqlite"


@pytest.fixture
def database(path):
    database = connect(path, Durability.PROCESS)
    database.execute("CREATE TABLE t (x)")
    yield database
    database.close()


def rows(database):
    return [x for (x,) in database.execute("SELECT x FROM t")]


def write_half(database):
    with transaction(database):
        database.execute("INSERT INTO t VALUES (1)")
        database.execute("INSERT INTO missing VALUES (1)")


def test_a_transaction_is_written_as_a_whole(database):
    with transaction(database):
        database.execute("INSERT INTO t VALUES (1)")
        database.execute("INSERT INTO t VALUES (2)")
    assert rows(database) == [1, 2]


def test_a_transaction_that_fails_leaves_nothing(database):
    with pytest.raises(sqlite3.OperationalError):
        write_half(database)
    assert rows(database) == []
    with transaction(database):
        database.execute("INSERT INTO t VALUES (2)")
    assert rows(database) == [2]


def test_a_file_that_another_process_has_open_is_locked_until_that_is_killed(path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITES_AND_WAITS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(sqlite3.OperationalError) as caught:
            connect(path, Durability.PROCESS)
        assert is_locked(caught.value)
        assert not is_damage(caught.value)
        other.kill()
    database = connect(path, Durability.PROCESS)
    assert rows(database) == []
    database.close()


def test_a_damaged_file_is_found_when_it_is_opened(path):
    path.write_bytes(b"SQLite format 3\0" + b"\1" * 4096)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        connect(path, Durability.PROCESS)
    assert is_damage(caught.value)
    assert not is_locked(caught.value)


@pytest.mark.parametrize(
    ("durability", "synchronous"), [(Durability.PROCESS, 1), (Durability.MACHINE, 2)]
)
def test_durability_says_what_a_commit_survives(path, durability, synchronous):
    database = connect(path, durability)
    assert database.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_a_new_file_has_schema_version_0(database):
    assert schema_version(database) == 0
    database.execute("PRAGMA user_version = 7")
    assert schema_version(database) == 7


def test_the_identity_tells_a_file_from_one_that_replaces_it(path):
    assert file_identity(path) is None
    path.touch()
    first = file_identity(path)
    assert file_identity(path) == first
    other = path.with_suffix(".new")
    other.touch()
    other.replace(path)
    assert file_identity(path) not in (first, None)
