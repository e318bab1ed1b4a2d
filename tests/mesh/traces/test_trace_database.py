"""The trace database: storing, finding and evicting traces, and damaged files."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_spans import MS, START_NS, request, span, trace_id

from tidegate.mesh.traces.database import Database
from tidegate.mesh.traces.errors import StoreError
from tidegate.mesh.traces.intake import TraceLimits, read_batch
from tidegate.mesh.traces.query import Dependency, Operation, ServiceSpans, TraceQuery

LATER_NS = START_NS + 3600 * 1000 * MS
LIMITS = TraceLimits()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "traces.sqlite"


@pytest.fixture
def opened(path):
    """Opens the database, and closes it at the end."""
    databases = []

    def open_(limits=LIMITS):
        databases.append(Database(path, limits))
        return databases[-1]

    yield open_
    for database in databases:
        database.close()


def add(database, *spans, now_ns=LATER_NS, **resource):
    return database.add(read_batch(request(*spans, **resource), LIMITS).spans, now_ns)


def found(database, **query):
    ids = database.find(TraceQuery(**query), lambda *_: True)
    return [int.from_bytes(each, "big") for each in ids]


def test_spans_of_several_processes_join_in_any_order(opened):
    database = opened()
    add(database, span(1, 3, parent=2, start_ms=2), service="vision")
    add(database, span(1, 1, duration_ms=9, name="call"), service="client")
    add(database, span(2, 1))
    add(database, span(1, 2, parent=1, start_ms=1, failed=True), service="ingress")
    trace = database.trace(trace_id(1))
    assert len(trace.spans) == 3
    assert len(trace.processes) == 3
    summary = database.summary(trace_id(1))
    assert (summary.root_service, summary.root_operation) == ("client", "call")
    assert (summary.start_ns, summary.end_ns) == (START_NS, START_NS + 9 * MS)
    assert (summary.spans, summary.errors, summary.orphans) == (3, 1, 0)
    assert summary.services == (
        ServiceSpans("client", 1, 0),
        ServiceSpans("ingress", 1, 1),
        ServiceSpans("vision", 1, 0),
    )


def test_summary_without_its_root_begins_with_the_first_span(opened):
    database = opened()
    add(database, span(1, 3, parent=2, start_ms=2, name="late"), span(1, 2, parent=1, name="early"))
    summary = database.summary(trace_id(1))
    assert (summary.root_operation, summary.orphans) == ("early", 1)


def test_span_that_is_sent_again_is_kept_once(opened):
    database = opened()
    assert add(database, span(1, 1), span(1, 2)).taken == 2
    again = add(database, span(1, 2), span(1, 3))
    assert (again.taken, again.duplicates) == (1, 1)
    assert (database.stored.traces, database.stored.spans) == (1, 3)


def test_span_id_that_client_and_server_share_is_two_spans(opened):
    database = opened()
    add(database, span(1, 1), service="client")
    assert add(database, span(1, 1), service="server").taken == 1
    assert len(database.trace(trace_id(1)).spans) == 2


def test_the_oldest_trace_is_evicted_first_and_whole(opened):
    database = opened(TraceLimits(max_traces=2))
    add(database, span(1, 1, start_ms=50), span(2, 1, start_ms=10), span(2, 2, start_ms=99))
    assert add(database, span(3, 1, start_ms=30)).evicted == 1
    assert database.trace(trace_id(2)) is None
    assert found(database) == [1, 3]
    assert (database.stored.traces, database.stored.spans) == (2, 2)


def test_late_span_of_an_evicted_trace_does_not_push_out_a_newer_one(opened):
    database = opened(TraceLimits(max_traces=2))
    add(database, span(1, 1), span(2, 1, start_ms=10), span(3, 1, start_ms=20))
    assert add(database, span(1, 2, start_ms=1)).evicted == 1
    assert found(database) == [3, 2]


def test_clock_that_runs_ahead_does_not_keep_a_trace_for_ever(opened):
    database = opened(TraceLimits(max_traces=2))
    add(database, span(1, 1, start_ms=10**9), now_ns=START_NS)
    for number in (2, 3):
        add(database, span(number, 1, start_ms=number), now_ns=START_NS + 5 * MS)
    assert found(database) == [3, 2]


def test_bytes_are_bounded_as_well(opened):
    database = opened(TraceLimits(max_bytes=5_000))
    for number in range(1, 20):
        add(database, span(number, 1, start_ms=number, text="x" * 1_000))
    assert found(database) == [19, 18, 17, 16]
    assert database.stored.bytes <= 5_000


def test_a_full_trace_takes_no_more_spans(opened):
    database = opened(TraceLimits(max_spans_per_trace=2))
    added = add(database, *(span(1, number) for number in range(1, 5)))
    assert (added.taken, added.trace_full) == (2, 2)
    assert add(database, span(1, 9)).trace_full == 1
    assert database.stored.spans == 2


def test_one_span_must_meet_all_conditions_of_a_query(opened):
    database = opened()
    add(database, span(1, 1, name="slow", duration_ms=100), span(1, 2, name="quick"))
    add(database, span(2, 1, name="quick", start_ms=10, duration_ms=100), service="other")
    assert found(database) == [2, 1]
    assert found(database, limit=1) == [2]
    assert found(database, service="vision") == [1]
    assert found(database, operation="quick") == [2, 1]
    assert found(database, operation="quick", duration_min_ns=50 * MS) == [2]
    assert found(database, service="vision", operation="slow", duration_max_ns=50 * MS) == []
    assert found(database, start_min_ns=START_NS + 5 * MS) == [2]
    assert found(database, start_max_ns=START_NS + 5 * MS) == [1]


def test_tags_are_checked_from_the_newest_trace_until_the_limit(opened):
    database = opened()
    for number in range(1, 6):
        add(database, span(number, 1, start_ms=number), span(number, 2, start_ms=number))
    asked = []

    def has_tags(body, process):
        asked.append(body)
        return True

    ids = database.find(TraceQuery(tags={"a": "b"}, limit=2), has_tags)
    assert ids == (trace_id(5), trace_id(4))
    assert len(asked) == 2


def test_services_operations_and_dependencies(opened):
    database = opened()
    add(database, span(1, 1, name="call", kind=Span.SPAN_KIND_CLIENT), service="client")
    add(database, span(1, 2, parent=1), span(1, 3, parent=2, name="infer"), service="vision")
    add(database, span(2, 1, name="call", kind=Span.SPAN_KIND_CLIENT), service="client")
    add(database, span(2, 2, parent=1, start_ms=50), service="vision")
    assert database.services() == ("client", "vision")
    assert database.operations("client") == (Operation("call", Span.SPAN_KIND_CLIENT),)
    assert [each.name for each in database.operations("vision")] == ["infer", "work"]
    assert database.operations("none") == ()
    all_time = database.dependencies(0, LATER_NS)
    assert all_time == (Dependency("client", "vision", 2),)
    assert database.dependencies(START_NS + MS, LATER_NS) == (Dependency("client", "vision", 1),)


def test_a_reopened_file_has_all_traces(opened):
    database = opened()
    add(database, span(1, 1), span(2, 1))
    stored = database.stored
    database.close()
    again = opened()
    assert again.stored == stored
    assert sorted(found(again)) == [1, 2]


def test_committed_spans_survive_a_kill(path, opened):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[2])\n"
        "from otlp_spans import request, span\n"
        "from tidegate.mesh.traces.database import Database\n"
        "from tidegate.mesh.traces.intake import read_batch\n"
        "from tidegate.mesh.traces.intake import TraceLimits\n"
        "limits = TraceLimits()\ndatabase = Database(Path(sys.argv[1]), limits)\n"
        "for number in range(1, 51):\n"
        "    database.add(read_batch(request(span(number, 1)), limits).spans, 2**62)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    doubles = os.fspath(next(each for each in sys.path if each.endswith("doubles")))
    killed = subprocess.run([sys.executable, "-c", code, path, doubles], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(found(opened())) == 50


def aside(path):
    return [each for each in path.parent.iterdir() if ".aside-" in each.name]


def test_file_that_is_no_database_is_set_aside(path, opened):
    path.parent.mkdir()
    path.write_bytes(b"not a database at all" * 500)
    database = opened()
    assert add(database, span(1, 1)).taken == 1
    (kept_aside,) = aside(path)
    assert kept_aside.read_bytes().startswith(b"not a database")


def test_damaged_pages_are_found_when_the_file_is_opened(path, opened):
    database = opened()
    add(database, *(span(number, 1, text="x" * 500) for number in range(1, 200)))
    database.close()
    content = bytearray(path.read_bytes())
    content[8192:-4096] = bytes(len(content) - 8192 - 4096)
    path.write_bytes(content)
    again = opened()
    assert found(again) == []
    assert len(aside(path)) == 1


def test_damage_found_later_costs_one_request(path, opened):
    database = opened()
    # More than SQLite caches in memory.
    for number in range(1, 100):
        add(database, span(number, 1, text="x" * 60_000))
    database.close()
    database = opened()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(bytes(size - 4096))

    def read_everything():
        with database.guarded():
            for number in range(1, 100):
                database.trace(trace_id(number))

    with pytest.raises(StoreError, match=r"was damaged .* try again"):
        read_everything()
    read_everything()
    assert add(database, span(500, 1)).taken == 1
    assert database.stored.traces == 1
    assert len(aside(path)) == 1


def test_file_of_another_version_is_set_aside(path, opened):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE traces (other)")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    database = opened()
    assert found(database) == []
    assert len(aside(path)) == 1


def test_a_second_process_cannot_open_the_file(path, opened):
    opened()
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tidegate.mesh.traces.database import Database\n"
        "from tidegate.mesh.traces.intake import TraceLimits\n"
        "Database(Path(sys.argv[1]), TraceLimits())\n"
    )
    second = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
    assert b"StoreError: another process has" in second.stderr
    assert aside(path) == []


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot use .*traces\.sqlite: "):
        Database(tmp_path / "file" / "traces.sqlite", LIMITS)


def test_a_failed_batch_stores_nothing(opened):
    database = opened()
    (good,) = read_batch(request(span(1, 1)), LIMITS).spans
    (bad,) = read_batch(request(span(2, 1)), LIMITS).spans
    object.__setattr__(bad, "operation", object())
    with pytest.raises(StoreError), database.guarded():
        database.add([good, bad], LATER_NS)
    assert found(database) == []
    assert database.stored.traces == 0
    assert add(database, span(1, 1)).taken == 1
