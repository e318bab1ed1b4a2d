"""One of several electors leads, on a real API server."""

import asyncio
import contextlib
import itertools
import random
import signal
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import pytest_asyncio
from faulty_api import Fault, FaultyApi
from kube_objects import CONFIG_MAPS, config_map, eventually

from tidegate.kube.client import KubeClient
from tidegate.kube.errors import FencedError
from tidegate.kube.lease import LeaseElector, LeaseLostError
from tidegate.kube.lease_record import LeaseSettings
from tidegate.kube.reflector import reflecting
from tidegate.kube.resources import LEASES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

QUICK = LeaseSettings(duration_s=3, renew_deadline_s=2.0, retry_s=0.2)
DOUBLES = Path(__file__).parents[2] / "doubles"


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(api, tmp_path):
    async with FaultyApi.running(api, tmp_path) as running:
        yield running


class Work:
    """Work that notes when it ran."""

    def __init__(self):
        self.spans = []
        self.runs = False

    async def __call__(self):
        self.runs, started_s = True, time.monotonic()
        try:
            await asyncio.Event().wait()
        finally:
            self.runs = False
            self.spans.append((started_s, time.monotonic()))


@contextlib.asynccontextmanager
async def running(elector, work):
    """Runs an elector; at the end it shuts down."""
    task = asyncio.create_task(elector.run(work))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_first_leads_and_second_waits(client):
    first, second = (LeaseElector(client, "tests", identity=name) for name in ("a", "b"))
    work, other = Work(), Work()
    async with running(first, work):
        await eventually(lambda: work.runs)
        async with running(second, other):
            await eventually(lambda: second.holder == "a")
            assert (first.is_leader, second.is_leader, other.runs) == (True, False, False)
    assert not first.is_leader


async def test_shutdown_stops_the_work_and_then_empties_the_lease(client):
    holder_at_stop = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            holder_at_stop.append((await client.get(LEASES, "tests")).spec.holder_identity)

    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    async with running(elector, work):
        await eventually(lambda: elector.is_leader)
    assert holder_at_stop == ["a"]
    assert (await client.get(LEASES, "tests")).spec.holder_identity == ""


async def test_a_leader_knows_whether_the_last_one_gave_the_lease_back(client):
    first, second, third = (
        LeaseElector(client, "tests", identity=name, settings=QUICK) for name in ("a", "b", "c")
    )
    async with running(first, Work()):
        await eventually(lambda: first.is_leader)
    async with running(second, Work()) as vanishing:
        await eventually(lambda: second.is_leader)
        assert second.predecessor == ""
        with patch.object(second, "_release", lambda: asyncio.sleep(0)):
            vanishing.cancel()
            await asyncio.wait({vanishing})
    async with running(third, Work()):
        await eventually(lambda: third.is_leader)
        assert third.predecessor == "b"


async def test_lease_is_renewed_while_the_work_stops(client):
    """Work that takes longer to stop than the lease lasts keeps the lease."""
    holders = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(8):
                await asyncio.sleep(0.5)
                holders.append(rival.is_leader)

    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    rival = LeaseElector(client, "tests", identity="b", settings=QUICK)
    async with contextlib.AsyncExitStack() as stack:
        led = await stack.enter_async_context(running(elector, work))
        await eventually(lambda: elector.is_leader)
        await stack.enter_async_context(running(rival, Work()))
        led.cancel()
        await eventually(lambda: rival.is_leader)
    assert holders == [False] * 8


async def test_work_that_fails_releases_the_lease(client):
    async def work():
        raise ValueError("broken")

    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    with pytest.raises(ValueError, match="broken"):
        await elector.run(work)
    assert (await client.get(LEASES, "tests")).spec.holder_identity == ""


async def test_leader_without_a_server_stops_before_another_may_lead(faulty, api, namespace):
    work = Work()
    async with KubeClient.opened(kubeconfig=faulty.kubeconfig, namespace=namespace) as client:
        elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
        async with running(elector, work) as task:
            await eventually(lambda: elector.is_leader)
            faulty.fault = lambda call: Fault.HANG
            cut_s = time.monotonic()
            with pytest.raises(LeaseLostError):
                await task
    assert work.spans[0][1] - cut_s < QUICK.renew_deadline_s + 0.3
    assert work.spans[0][1] - cut_s < QUICK.duration_s


async def test_lease_taken_by_another_is_lost_at_once(client, namespace):
    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    async with running(elector, Work()) as task:
        await eventually(lambda: elector.is_leader)
        patch = {"spec": {"holderIdentity": "b"}}
        await client.merge(LEASES, "tests", namespace, patch, manager="tests")
        with pytest.raises(LeaseLostError, match="to b"):
            await asyncio.wait_for(task, 1.0)


@pytest.mark.parametrize("year", [1970, 2400])
async def test_wall_clocks_of_others_decide_nothing(client, year):
    """A leader whose machine has a wrong date leads all the same, until it renews no more."""
    renewed = f"{year}-01-01T00:00:00.000000Z"
    spec = {"holderIdentity": "b", "leaseDurationSeconds": 1, "renewTime": renewed}
    await client.create(LEASES, {"metadata": {"name": "tests"}, "spec": spec})
    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    async with running(elector, Work()):
        started_s = time.monotonic()
        await eventually(lambda: elector.is_leader, 5.0)
        assert time.monotonic() - started_s >= 1.0
        assert (await client.get(LEASES, "tests")).spec.lease_transitions == 1


async def test_edit_of_the_lease_by_somebody_loses_nothing(client, namespace):
    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    async with running(elector, Work()) as task:
        await eventually(lambda: elector.is_leader)
        patch = {"metadata": {"labels": {"team": "vision"}}}
        edited = await client.merge(LEASES, "tests", namespace, patch, manager="tests")
        async with asyncio.timeout(20):
            while (lease := await client.get(LEASES, "tests")).version <= edited.version:
                await asyncio.sleep(0.05)
        assert elector.is_leader
        assert not task.done()
        assert lease.metadata.labels == {"team": "vision"}


async def test_deleted_lease_is_made_again(client, namespace):
    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    async with running(elector, Work()) as task:
        await eventually(lambda: elector.is_leader)
        deleted = await client.get(LEASES, "tests")
        await client.delete(LEASES, "tests")
        async with reflecting(client, LEASES, (namespace,)) as cache:
            await eventually(
                lambda: [each for each in cache.all() if each.metadata.uid != deleted.metadata.uid]
            )
        assert elector.is_leader
        assert not task.done()
    assert (await client.get(LEASES, "tests")).spec.holder_identity == ""


async def test_fenced_client_does_not_write_without_the_lease(client):
    elector = LeaseElector(client, "tests", identity="a", settings=QUICK)
    fenced = client.fenced(lambda: elector.is_leader)
    with pytest.raises(FencedError, match="does not lead"):
        await fenced.create(CONFIG_MAPS, config_map("a"))
    async with running(elector, Work()):
        await eventually(lambda: elector.is_leader)
        await fenced.create(CONFIG_MAPS, config_map("a"))
    with pytest.raises(FencedError):
        await fenced.delete(CONFIG_MAPS, "a")
    await fenced.get(CONFIG_MAPS, "a")


async def lead_under_faults(api, tmp_path, namespace, seed, seconds):
    """Three electors, each with a network of its own that fails at random."""
    draw, works = random.Random(seed), []
    async with contextlib.AsyncExitStack() as stack:
        for name in ("a", "b", "c"):
            folder = tmp_path / name
            folder.mkdir()
            proxy = await stack.enter_async_context(FaultyApi.running(api, folder))
            proxy.delay_s = lambda: draw.choice([0.0, 0.0, 0.05, 0.3])
            bad_s = [0.0, 0.0]

            def fault(call, bad_s=bad_s):
                now = time.monotonic()
                if now > bad_s[1]:
                    begins = now + draw.uniform(0.3, 2.0)
                    bad_s[:] = begins, begins + draw.uniform(0.2, 3.0)
                if now < bad_s[0]:
                    return None
                return draw.choice([Fault.HANG, Fault.DROP, Fault.LOSE_ANSWER, Fault.FAIL, None])

            proxy.fault = fault
            client = await stack.enter_async_context(
                KubeClient.opened(kubeconfig=proxy.kubeconfig, namespace=namespace, deadline_s=1.0)
            )
            elector = LeaseElector(client, "tests", identity=name, settings=QUICK)
            work = Work()
            works.append(work)

            async def compete(elector=elector, work=work):
                while True:
                    with contextlib.suppress(LeaseLostError):
                        await elector.run(work)

            task = asyncio.create_task(compete())
            stack.push_async_callback(asyncio.wait, {task})
            stack.callback(task.cancel)
        await asyncio.sleep(seconds)
        # On a busy machine a second lead takes longer; without one, the run shows nothing.
        async with asyncio.timeout(60):
            while sum(len(work.spans) for work in works) < 2:
                await asyncio.sleep(0.1)
    return sorted(span for work in works for span in work.spans)


def overlapping(spans):
    return [(one, other) for one, other in itertools.pairwise(spans) if other[0] < one[1]]


async def test_two_never_work_at_once_under_random_faults(api, tmp_path, namespace):
    spans = await lead_under_faults(api, tmp_path, namespace, seed=1, seconds=6)
    assert len(spans) > 1
    assert overlapping(spans) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 6))
async def test_two_never_work_at_once_in_a_long_run(api, tmp_path, namespace, seed):
    spans = await lead_under_faults(api, tmp_path, namespace, seed=seed, seconds=60)
    assert len(spans) > 5
    assert overlapping(spans) == []


@contextlib.asynccontextmanager
async def program(api, namespace, identity, log, settings):
    """The program `lease_program.py`."""
    times = settings.duration_s, settings.renew_deadline_s, settings.retry_s
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-Wignore", str(DOUBLES / "lease_program.py")),
        *(str(api.kubeconfig), namespace, identity, str(log), *map(str, times)),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def lines(log):
    """The lines of programs: who, what, when."""
    if not log.exists():
        return []
    parts = (line.split() for line in log.read_text().splitlines())
    return [(who, what, float(when)) for who, what, when in parts]


def happened(log, who, what):
    return [when for name, event, when in lines(log) if (name, event) == (who, what)]


async def writers(client, namespace, resource_version):
    """Who wrote the object of the programs, in the order in which the server took the writes."""
    seen = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            watch = client.watch(CONFIG_MAPS, namespace, resource_version=resource_version)
            async with contextlib.aclosing(watch):
                async for event in watch:
                    if event.object.metadata.name == "work" and event.object.data["by"] not in seen:
                        seen.append(event.object.data["by"])
                    elif event.object.metadata.name == "work":
                        assert event.object.data["by"] == seen[-1]
    return seen


async def test_paused_leader_writes_nothing_after_it_wakes(api, client, namespace, tmp_path):
    log = tmp_path / "log"
    began = (await client.list(CONFIG_MAPS, namespace)).resource_version
    async with program(api, namespace, "a", log, QUICK) as first:
        await eventually(lambda: happened(log, "a", "write"), 20)
        async with program(api, namespace, "b", log, QUICK):
            await eventually(lambda: happened(log, "b", "competes"), 20)
            first.send_signal(signal.SIGSTOP)
            paused_s = time.monotonic()
            await eventually(lambda: happened(log, "b", "write"), 20)
            first.send_signal(signal.SIGCONT)
            await eventually(lambda: happened(log, "a", "lost"), 20)
            assert await writers(client, namespace, began) == ["a", "b"]
    took_over_s = happened(log, "b", "start")[0]
    assert took_over_s - paused_s > QUICK.renew_deadline_s - 2 * QUICK.retry_s


async def test_next_leader_works_within_three_seconds_of_sigterm(api, namespace, tmp_path):
    """With the real times: 15, 10 and 2 s."""
    log = tmp_path / "log"
    async with program(api, namespace, "a", log, LeaseSettings()) as first:
        await eventually(lambda: happened(log, "a", "write"), 20)
        async with program(api, namespace, "b", log, LeaseSettings()):
            await eventually(lambda: happened(log, "b", "competes"), 20)
            terminated_s = time.monotonic()
            first.terminate()
            await eventually(lambda: happened(log, "b", "write"), 20)
            assert await first.wait() == 0
    started_s = happened(log, "b", "start")[0]
    assert happened(log, "a", "stop")[0] < started_s
    assert started_s - terminated_s < 3.0
