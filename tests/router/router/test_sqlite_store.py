"""The store: what is committed is there, whole, and a file that is not usable says why."""

import asyncio
import math
import sqlite3

import pytest
from router_harness import canary, manual

from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.samples import MOST_SAMPLES, sample_of
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.errors import StoreError
from tidegate.router.sqlite_store import SqliteStore
from tidegate.router.store import Delete, Put, PutStatus, from_json, to_json

KEY = "models/vision"


def event(number, **values):
    return Event(number=number, time_s=1.0, kind=EventKind.WAITING, message="waits", **values)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "rollouts.sqlite"


async def test_what_is_committed_is_there_at_the_next_start(path):
    rollout, status = canary(), RolloutStatus(events=1, harm_spent=math.inf)
    async with SqliteStore.opened(path) as store:
        await store.commit(
            Put(rollout=rollout, successor=manual(), file="a.yaml", file_rollout="text"),
            PutStatus(key=KEY, status=status, events=(event(1, numbers={"harm_e": math.inf}),)),
        )
    async with SqliteStore.opened(path) as store:
        (found,) = await store.load()
        assert (found.rollout, found.status, found.successor) == (rollout, status, manual())
        assert (found.file, found.file_rollout) == ("a.yaml", "text")
        assert await store.history(KEY) == (event(1, numbers={"harm_e": math.inf}),)


async def test_history_can_be_read_from_a_number_on(path):
    async with SqliteStore.opened(path) as store:
        events = tuple(event(number) for number in range(1, 6))
        await store.commit(
            Put(rollout=canary()), PutStatus(key=KEY, status=RolloutStatus(), events=events)
        )
        assert [each.number for each in await store.history(KEY, 3)] == [4, 5]


async def test_a_deleted_rollout_leaves_nothing(path):
    async with SqliteStore.opened(path) as store:
        status = PutStatus(key=KEY, status=RolloutStatus(), events=(event(1),))
        await store.commit(Put(rollout=canary()), status)
        await store.commit(Delete(key=KEY))
        assert await store.load() == ()
        assert await store.history(KEY) == ()


def sampled(time_s, *events):
    status = RolloutStatus(events=len(events), requests_per_s=time_s)
    sample = sample_of(status, float(time_s))
    return PutStatus(key=KEY, status=status, events=events, sample=sample)


async def test_samples_are_a_bounded_series_that_begins_again_with_the_rollout(path):
    async with SqliteStore.opened(path) as store:
        await store.commit(Put(rollout=canary()))
        await store.commit(*(sampled(time_s) for time_s in range(1, 3000)))
        found = await store.samples(KEY)
        assert MOST_SAMPLES / 2 <= len(found) <= MOST_SAMPLES
        assert [each.time_s for each in found] == [each.requests_per_s for each in found]
        assert (found[0].time_s, found[-1].time_s > 2980) == (1, True)
    async with SqliteStore.opened(path) as store:
        assert await store.samples(KEY) == found
        started = Event(number=1, time_s=3001.0, kind=EventKind.STARTED, message="started")
        await store.commit(sampled(3001, started))
        assert [each.time_s for each in await store.samples(KEY)] == [3001]
        await store.commit(Delete(key=KEY))
        assert await store.samples(KEY) == ()


async def test_an_event_that_is_there_is_refused_and_other_commits_are_written(path):
    async with SqliteStore.opened(path) as store:
        await store.commit(
            Put(rollout=canary()),
            PutStatus(key=KEY, status=RolloutStatus(events=1), events=(event(1),)),
        )
        results = await asyncio.gather(
            store.commit(PutStatus(key=KEY, status=RolloutStatus(events=9), events=(event(1),))),
            store.commit(
                Put(rollout=canary("llm")), PutStatus(key="models/llm", status=RolloutStatus())
            ),
            return_exceptions=True,
        )
        assert isinstance(results[0], StoreError)
        assert results[1] is None
        llm, vision = await store.load()
        assert vision.status.events == 1
        assert llm.rollout.metadata.name == "llm"


async def test_commits_that_wait_together_share_a_transaction(path):
    passed = []
    async with SqliteStore.opened(path, passed.append) as store:
        writes = [
            store.commit(PutStatus(key=f"models/{number}", status=RolloutStatus()))
            for number in range(100)
        ]
        await asyncio.gather(*writes)
    transactions = [each for each in passed if each.name == "WRITE_BEGUN"]
    assert len(transactions) <= 2


async def test_a_second_router_is_refused(path):
    async with SqliteStore.opened(path):
        with pytest.raises(StoreError, match=r"another process has .*sqlite open; .*stop"):
            async with SqliteStore.opened(path):
                pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"no database at all, but long enough to be read" * 100, "is damaged: file is not a dat"),
        (b"SQLite format 3\0" + b"\1" * 4096, "is damaged"),
    ],
)
async def test_a_damaged_file_is_refused_and_left_as_it_is(path, text, message):
    path.parent.mkdir()
    path.write_bytes(text)
    with pytest.raises(StoreError, match=f"{message}.*restore a copy of it, or move it"):
        async with SqliteStore.opened(path):
            pass
    assert path.read_bytes() == text


async def test_a_damaged_page_is_found_at_the_start(path):
    async with SqliteStore.opened(path) as store:
        for number in range(200):
            await store.commit(Put(rollout=canary(f"r{number}")))
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        async with SqliteStore.opened(path):
            pass


async def test_a_status_that_cannot_be_read_is_damage(path):
    async with SqliteStore.opened(path) as store:
        await store.commit(Put(rollout=canary()), PutStatus(key=KEY, status=RolloutStatus()))
    with sqlite3.connect(path) as database:
        database.execute("UPDATE statuses SET status = x'c1'")
    database.close()
    async with SqliteStore.opened(path) as store:
        with pytest.raises(StoreError, match="is damaged"):
            await store.load()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("CREATE TABLE traces (id TEXT)", "is another program's file; name another"),
        ("PRAGMA application_id = 7", "is another program's file; name another"),
        ("PRAGMA user_version = 3", "is another program's file; name another"),
        (
            "PRAGMA application_id = 0x54524F4C; PRAGMA user_version = 99;",
            "is of another version of tidegate; start that version",
        ),
    ],
)
async def test_a_file_of_something_else_is_refused(path, statement, message):
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.executescript(statement)
    database.close()
    with pytest.raises(StoreError, match=message):
        async with SqliteStore.opened(path):
            pass


async def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot be used: .*make its folder writable"):
        async with SqliteStore.opened(tmp_path / "file" / "rollouts.sqlite"):
            pass


async def test_a_file_that_was_removed_while_in_use_is_an_error_and_not_lost_data(path):
    async with SqliteStore.opened(path) as store:
        await store.commit(Put(rollout=canary()))
        path.unlink()
        with pytest.raises(StoreError, match="was removed or replaced while in use; move it back"):
            await store.commit(Put(rollout=canary()))


async def test_a_full_disk_is_an_error_and_the_next_commit_succeeds(path):
    async with SqliteStore.opened(path) as store:
        await store._on_thread(lambda: store._database.execute("PRAGMA max_page_count = 1"))
        with pytest.raises(StoreError, match="cannot be used: database or disk is full; make room"):
            await store.commit(*(Put(rollout=canary(f"r{number}")) for number in range(100)))
        await store._on_thread(lambda: store._database.execute("PRAGMA max_page_count = 100000"))
        await store.commit(Put(rollout=canary()), PutStatus(key=KEY, status=RolloutStatus()))
        assert len(await store.load()) == 1


async def test_the_file_survives_a_crash_of_the_machine(path):
    async with SqliteStore.opened(path) as store:
        found = await store._on_thread(
            lambda: store._database.execute("PRAGMA synchronous").fetchone()
        )
        assert found == (2,)


def test_a_rollout_reads_as_it_was_written():
    rollout = canary()
    assert from_json(to_json(rollout)) == rollout
    again = to_json(from_json(to_json(rollout)))
    assert again == to_json(rollout)
