"""A cache follows a real API server, whatever happens between them."""

import asyncio
import contextlib
import json
import random

import pytest
import pytest_asyncio
from faulty_api import Fault, FaultyApi, WatchEnd
from kube_objects import CONFIG_MAPS, config_map, eventually

from tidegate.kube.backoff import Backoff
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError, UnauthorizedError
from tidegate.kube.reflector import ReflectorSettings, reflecting

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

# Failures in tests come many times a second.
QUICK = ReflectorSettings(
    watch_s=(2.0, 4.0), silence_s=3.0, list_s=5.0, backoff=Backoff(first_s=0.02, most_s=0.2)
)
ENDS = pytest.mark.parametrize("how", list(WatchEnd), ids=lambda how: how.name)


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(api, tmp_path):
    async with FaultyApi.running(api, tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def watched(faulty, namespace, *, settings=QUICK, **options):
    """A cache behind the proxy."""
    async with (
        KubeClient.opened(kubeconfig=faulty.kubeconfig, deadline_s=2.0) as unlucky,
        reflecting(unlucky, CONFIG_MAPS, (namespace,), settings=settings, **options) as cache,
    ):
        yield cache


async def truth(client, namespace):
    listed = await client.list(CONFIG_MAPS, namespace)
    return {each.key: each for each in listed.items}


async def agree(cache, client, namespace, timeout_s=10.0):
    """Waits until the cache is like the server, and says what is not."""
    there = await truth(client, namespace)
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: {each.key: each for each in cache.all()} == there, timeout_s)
    assert {each.key: each for each in cache.all()} == there


async def test_cache_shows_what_was_there_and_what_changes(client, namespace):
    await client.create(CONFIG_MAPS, config_map("a", x="1"))
    async with reflecting(client, CONFIG_MAPS, (namespace,)) as cache:
        await cache.synced()
        assert cache.get(f"{namespace}/a").data == {"x": "1"}
        changed = await client.merge(
            CONFIG_MAPS, "a", namespace, {"data": {"x": "2"}}, manager="tests"
        )
        assert await cache.reaches(changed.metadata.resource_version, 5.0, namespace)
        assert cache.get(f"{namespace}/a") == changed
        await client.delete(CONFIG_MAPS, "a")
        await eventually(lambda: cache.get(f"{namespace}/a") is None)


async def test_write_that_never_comes_is_waited_for_only_so_long(client, namespace):
    async with reflecting(client, CONFIG_MAPS, (namespace,)) as cache:
        await cache.synced()
        assert not await cache.reaches(str(cache.resource_version + 1000), 0.05)


async def test_each_namespace_fills_its_own_part(client, namespace):
    await client.create(CONFIG_MAPS, config_map("a"))
    async with reflecting(client, CONFIG_MAPS, (namespace, "kube-public")) as cache:
        await cache.synced()
        assert cache.get(f"{namespace}/a") is not None
        assert {each.metadata.namespace for each in cache.all()} <= {namespace, "kube-public"}


async def test_server_without_streaming_lists_gives_paged_ones(faulty, client, namespace):
    await client.create(CONFIG_MAPS, config_map("a"))
    faulty.fault = lambda call: Fault.INVALID if "sendInitialEvents" in call.query else None
    async with watched(faulty, namespace) as cache:
        await asyncio.wait_for(cache.synced(), 5)
        await agree(cache, client, namespace)
        await client.create(CONFIG_MAPS, config_map("b"))
        await agree(cache, client, namespace)


async def test_streaming_list_that_never_ends_gives_way_to_paged_lists(faulty, client, namespace):
    await client.create(CONFIG_MAPS, config_map("a"))
    faulty.fault = lambda call: Fault.HANG if "sendInitialEvents" in call.query else None
    quick = ReflectorSettings(list_s=0.3, backoff=QUICK.backoff)
    async with watched(faulty, namespace, settings=quick) as cache:
        await asyncio.wait_for(cache.synced(), 5)
        await agree(cache, client, namespace)


async def test_streaming_list_that_breaks_in_the_middle_loses_nothing(faulty, client, namespace):
    """Its events come by name, not by version: the version of one says nothing about the rest."""
    for name in ("c", "b", "a"):
        await client.create(CONFIG_MAPS, config_map(name))
    faulty.first_events = 1
    async with watched(faulty, namespace) as cache:
        await asyncio.wait_for(cache.synced(), 5)
        await agree(cache, client, namespace)


@ENDS
async def test_watch_that_ends_loses_nothing(faulty, client, namespace, how):
    for name in ("kept", "changed", "deleted"):
        await client.create(CONFIG_MAPS, config_map(name, x="1"))
    async with watched(faulty, namespace) as cache:
        await cache.synced()
        watches = faulty.watches
        faulty.end_watches(how)
        await client.delete(CONFIG_MAPS, "deleted")
        await client.merge(CONFIG_MAPS, "changed", namespace, {"data": {"x": "2"}}, manager="tests")
        await client.create(CONFIG_MAPS, config_map("added"))
        await agree(cache, client, namespace)
        assert watches == 1


async def test_refused_connections_are_survived(faulty, client, namespace):
    async with watched(faulty, namespace) as cache:
        await cache.synced()
        await faulty.refuse()
        await client.create(CONFIG_MAPS, config_map("a"))
        await faulty.accept()
        await agree(cache, client, namespace)


async def test_watch_goes_on_once_an_expired_token_is_replaced(api, client, namespace, tmp_path):
    config = json.loads(api.kubeconfig.read_text())
    token = config["users"][0]["user"].pop("token")
    config["users"][0]["user"]["tokenFile"] = "token"
    (tmp_path / "token").write_text("expired")
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    await client.create(CONFIG_MAPS, config_map("a"))
    async with (
        KubeClient.opened(kubeconfig=tmp_path / "kubeconfig") as late,
        reflecting(late, CONFIG_MAPS, (namespace,), settings=QUICK) as cache,
    ):
        with pytest.raises(UnauthorizedError):
            await late.list(CONFIG_MAPS, namespace)
        assert not cache.is_synced
        (tmp_path / "token").write_text(token)
        await asyncio.wait_for(cache.synced(), 5)
        await agree(cache, client, namespace)


async def test_list_older_than_the_cache_is_not_believed(faulty, client, namespace):
    """A server that lags shows a deleted object; the cache must not bring it back."""
    await client.create(CONFIG_MAPS, config_map("deleted"))
    told = []
    paged = {Fault.INVALID: 0}

    def fault(call):
        if "sendInitialEvents" in call.query:
            return Fault.INVALID
        if call.is_list and paged[Fault.INVALID] > 0 and paged[Fault.INVALID] < 3:
            paged[Fault.INVALID] += 1
            return Fault.STALE
        return None

    faulty.fault = fault
    async with watched(faulty, namespace) as cache:
        await cache.synced()
        await client.delete(CONFIG_MAPS, "deleted")
        await agree(cache, client, namespace)
        cache.on_change(lambda key, old, new: told.append((key, old, new)))
        paged[Fault.INVALID] = 1
        lists = sum(call.is_list for call in faulty.calls)
        faulty.end_watches(WatchEnd.GONE)
        await eventually(lambda: sum(call.is_list for call in faulty.calls) >= lists + 3)
        await agree(cache, client, namespace)
    assert told == []


async def test_object_made_again_is_told_as_deleted_and_added(faulty, client, namespace):
    await client.create(CONFIG_MAPS, config_map("a", x="1"))
    told = []
    async with watched(faulty, namespace) as cache:
        await cache.synced()
        cache.on_change(lambda key, old, new: told.append((old is not None, new is not None)))
        await faulty.refuse()
        await client.delete(CONFIG_MAPS, "a")
        await client.create(CONFIG_MAPS, config_map("a", x="2"))
        await faulty.accept()
        await agree(cache, client, namespace)
    assert told == [(True, False), (False, True)]


async def test_failing_callback_ends_the_watch_loudly(client, namespace):
    def fail(key, old, new):
        raise ValueError(key)

    async def watch():
        async with reflecting(client, CONFIG_MAPS, (namespace,)) as cache:
            await cache.synced()
            cache.on_change(fail)
            await client.create(CONFIG_MAPS, config_map("a"))
            await asyncio.sleep(10)

    with pytest.raises(ValueError, match=f"{namespace}/a"):
        await watch()


async def changed_at_random(draw, client, namespace, names, changes):
    """Creates, changes and deletes objects at random."""
    for number in range(changes):
        name = draw.choice(names)
        with contextlib.suppress(KubeError):
            match draw.randrange(4):
                case 0:
                    await client.create(CONFIG_MAPS, config_map(name, x=str(number)))
                case 1 | 2:
                    patch = {"data": {"x": str(number)}}
                    await client.merge(CONFIG_MAPS, name, namespace, patch, manager="tests")
                case 3:
                    await client.delete(CONFIG_MAPS, name)
        await asyncio.sleep(draw.random() * 0.01)


def unlucky(draw, share):
    """Faults for a share of all calls."""
    faults = [Fault.THROTTLE, Fault.FAIL, Fault.DROP, Fault.LOSE_ANSWER, Fault.STALE, Fault.GONE]

    def fault(call):
        if call.is_list and draw.random() < share:
            return draw.choice(faults)
        if call.is_watch and draw.random() < share:
            return draw.choice([Fault.FAIL, Fault.DROP, Fault.GONE, Fault.CONFLICT])
        return None

    return fault


class Follower:
    """Follows a cache by its callbacks alone, and notes what cannot have happened."""

    def __init__(self, cache):
        self.objects = {}
        self.wrong = []
        cache.on_change(self._take)

    def _take(self, key, old, new):
        if self.objects.get(key) != old:
            self.wrong.append(f"{key}: told of {old}, known was {self.objects.get(key)}")
        if old and new and new.version <= old.version:
            self.wrong.append(f"{key}: version {new.version} came after {old.version}")
        if new is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = new


async def random_faults(faulty, client, namespace, seed, rounds):
    draw = random.Random(seed)
    names = [f"n{number}" for number in range(12)]
    faulty.delay_s = lambda: draw.random() * 0.02
    ends = [WatchEnd.CLOSE, WatchEnd.CUT, WatchEnd.CUT_CLEANLY, WatchEnd.GONE]
    async with watched(faulty, namespace) as cache:
        follower = Follower(cache)
        for _ in range(rounds):
            faulty.fault = unlucky(draw, 0.3)
            changing = asyncio.ensure_future(
                changed_at_random(draw, client, namespace, names, draw.randrange(5, 40))
            )
            while not changing.done():
                await asyncio.sleep(draw.random() * 0.2)
                if draw.random() < 0.1:
                    await faulty.refuse()
                    await asyncio.sleep(draw.random() * 0.2)
                    await faulty.accept()
                else:
                    faulty.end_watches(draw.choice(ends))
            await changing
            faulty.fault = lambda call: None
            await agree(cache, client, namespace)
        assert follower.wrong == []
        assert follower.objects == {each.key: each for each in cache.all()}


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_lost_or_brought_back_under_random_faults(faulty, client, namespace, seed):
    await random_faults(faulty, client, namespace, seed, rounds=3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 112))
async def test_nothing_is_lost_or_brought_back_in_a_long_run(faulty, client, namespace, seed):
    await random_faults(faulty, client, namespace, seed, rounds=20)
