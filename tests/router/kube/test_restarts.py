"""API servers that die, come back, and come back with another history."""

import asyncio
import contextlib

import pytest
import pytest_asyncio
from kube_objects import CONFIG_MAPS, config_map, eventually
from kubernetes_api import kubernetes_api

from tidegate.kube.backoff import Backoff
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import KubeError, UnreachableError
from tidegate.kube.reflector import ReflectorSettings, reflecting
from tidegate.kube.resources import NAMESPACES, Manifest, Resource

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

QUICK = ReflectorSettings(silence_s=4.0, backoff=Backoff(first_s=0.05, most_s=0.5))
CRDS = Resource(
    *("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"),
    Manifest,
    namespaced=False,
)
BOATS = Resource("tests.tidegate.dev", "v1", "boats", "Boat", Manifest)
BOAT_CRD = {
    "metadata": {"name": "boats.tests.tidegate.dev"},
    "spec": {
        "group": "tests.tidegate.dev",
        "scope": "Namespaced",
        "names": {"plural": "boats", "singular": "boat", "kind": "Boat"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object"}},
                    }
                },
            }
        ],
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory):
    """Servers of this module's own: the tests kill them."""
    async with kubernetes_api(tmp_path_factory.mktemp("killed")) as running:
        yield running


def same(cache, listed):
    return {each.key: each for each in cache.all()} == {each.key: each for each in listed.items}


async def test_cache_follows_a_server_that_is_killed_and_comes_back(api, client, namespace):
    for name in ("kept", "deleted", "changed"):
        await client.create(CONFIG_MAPS, config_map(name, x="1"))
    async with reflecting(client, CONFIG_MAPS, (namespace,), settings=QUICK) as cache:
        await cache.synced()
        api.kill()
        async with KubeClient.opened(kubeconfig=api.kubeconfig, deadline_s=0.5) as impatient:
            with pytest.raises(UnreachableError):
                await impatient.get(CONFIG_MAPS, "kept", namespace)
        assert len(cache.all()) == 3
        await api.start()
        await client.delete(CONFIG_MAPS, "deleted")
        await client.merge(CONFIG_MAPS, "changed", namespace, {"data": {"x": "2"}}, manager="tests")
        await client.create(CONFIG_MAPS, config_map("added"))
        listed = await client.list(CONFIG_MAPS, namespace)
        await eventually(lambda: same(cache, listed), 20)


async def made_again(client, resource, body):
    """Creates an object as soon as the server takes it."""
    while True:
        with contextlib.suppress(KubeError):
            return await client.create(resource, body)
        await asyncio.sleep(0.1)


async def test_cache_follows_a_resource_type_that_is_deleted_and_restored(client, namespace):
    await client.create(CRDS, BOAT_CRD)
    async with asyncio.timeout(40):
        first = await made_again(client, BOATS, {"metadata": {"name": "a"}})
        async with reflecting(client, BOATS, (namespace,), settings=QUICK) as cache:
            await cache.synced()
            assert cache.all() == (first,)
            await client.delete(CRDS, "boats.tests.tidegate.dev")
            await eventually(lambda: cache.all() == (), 20)
            await made_again(client, CRDS, BOAT_CRD)
            second = await made_again(client, BOATS, {"metadata": {"name": "b"}})
            await eventually(lambda: cache.all() == (second,), 20)


async def test_cache_follows_a_history_that_went_back(api, client, namespace):
    """etcd lost all that was stored, or was restored from a backup: versions are small again."""
    for number in range(30):
        await client.create(CONFIG_MAPS, config_map(f"n{number}"))
    async with reflecting(client, CONFIG_MAPS, (namespace,), settings=QUICK) as cache:
        await cache.synced()
        assert len(cache.all()) == 30
        api.kill()
        api.wipe()
        await api.start()
        await client.create(NAMESPACES, {"metadata": {"name": namespace}})
        made = await client.create(CONFIG_MAPS, config_map("new"))
        await eventually(lambda: cache.all() == (made,), 30)
        again = await client.create(CONFIG_MAPS, config_map("newer"))
        await eventually(lambda: cache.get(again.key) == again, 10)
