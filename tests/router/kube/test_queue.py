"""Workers reconcile the keys of a queue."""

import asyncio
import contextlib

import pytest
from kube_objects import eventually
from prometheus_client import REGISTRY

from tidegate.errors import TidegateError
from tidegate.kube.backoff import Backoff
from tidegate.kube.queue import QueueSettings, WorkQueue

SETTINGS = QueueSettings(backoff=Backoff(first_s=0.01, most_s=0.05))


@contextlib.asynccontextmanager
async def serving(queue, reconcile, workers=2):
    task = asyncio.create_task(queue.serve(reconcile, workers))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_as_many_keys_as_workers_are_reconciled_at_once():
    queue, running, most, done = WorkQueue("test"), set(), 0, []

    async def reconcile(key):
        nonlocal most
        assert key not in running
        running.add(key)
        most = max(most, len(running))
        await asyncio.sleep(0.005)
        running.discard(key)
        done.append(key)

    async with serving(queue, reconcile, workers=3):
        for key in "abcdef":
            queue.add(key)
        await eventually(lambda: len(done) == 6)
    assert most == 3


async def test_key_that_fails_comes_again_until_it_succeeds():
    queue, tries = WorkQueue("test", SETTINGS), 0

    async def reconcile(key):
        nonlocal tries
        tries += 1
        if tries < 4:
            raise TidegateError("not yet")

    async with serving(queue, reconcile):
        queue.add("a")
        await eventually(lambda: tries == 4)
        await asyncio.sleep(0.1)
    assert tries == 4


async def test_reconciler_may_ask_for_its_key_again():
    queue, times = WorkQueue("test"), []

    async def reconcile(key):
        times.append(asyncio.get_running_loop().time())
        return 0.05 if len(times) < 3 else None

    async with serving(queue, reconcile):
        queue.add("a")
        await eventually(lambda: len(times) == 3)
    assert times[1] - times[0] >= 0.05


async def test_fault_in_the_reconciler_ends_the_workers():
    queue = WorkQueue("test")

    async def reconcile(key):
        raise ValueError(key)

    queue.add("a")
    with pytest.raises(ExceptionGroup) as caught:
        await queue.serve(reconcile, 2)
    assert isinstance(caught.value.exceptions[0], ValueError)


async def test_edit_wakes_a_worker_that_waits_for_a_delayed_key():
    queue = WorkQueue("test")
    queue.add("late", after_s=60.0)
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add("now")
    assert await asyncio.wait_for(waiting, 1.0) == "now"


async def test_metrics_of_a_queue_have_the_names_of_client_go():
    queue, held = WorkQueue("measured", SETTINGS), asyncio.Event()

    def value(name):
        return REGISTRY.get_sample_value(f"workqueue_{name}", {"name": "measured"})

    tries = 0

    async def reconcile(key):
        nonlocal tries
        tries += 1
        if tries == 1:
            raise TidegateError("not yet")
        await held.wait()

    queue.add("a")
    queue.add("b")
    assert (value("adds_total"), value("depth")) == (2, 2)
    async with serving(queue, reconcile, workers=1):
        await eventually(lambda: tries == 2)
        assert value("retries_total") == 1
        assert value("longest_running_processor_seconds") > 0
        assert value("work_duration_seconds_count") == 1
        held.set()
        await eventually(lambda: value("work_duration_seconds_count") == 3)
        assert value("queue_duration_seconds_count") == 3
        assert value("unfinished_work_seconds") == value("depth") == 0
