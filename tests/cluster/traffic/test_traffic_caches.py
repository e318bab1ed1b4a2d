"""Traffic read from the caches of a controller, on a real API server."""

import asyncio
import dataclasses

import pytest
import pytest_asyncio
from cluster_host import SETTINGS, WAIT_S, caches, split
from cluster_objects import destination_rule, istio, rollout, to, virtual_service

from tidegate.kube.resources import NAMESPACES, VIRTUAL_SERVICES
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.host_objects import service_host
from tidegate.traffic.cluster.objects import DirectObjects
from tidegate.traffic.router import TrafficError

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.cluster]


@pytest_asyncio.fixture(loop_scope="session")
async def host(bare_host):
    await bare_host.apply(destination_rule("v1", "v2"))
    await bare_host.apply(virtual_service(to("v1", 100)))
    return bare_host


async def test_caches_and_direct_calls_tell_the_same(host):
    async with caches(host.client, host.namespace) as cached:
        where = service_host("vision", host.namespace)
        one = await cached.of_host(where)
        other = await DirectObjects(host.client).of_host(where)
    assert one.service == other.service
    assert one.virtual_services == other.virtual_services
    assert one.destination_rules == other.destination_rules
    assert one.slices == other.slices
    assert dict(one.pods) == dict(other.pods)


async def test_a_read_sees_the_write_before_it(host):
    mine = rollout(namespace=host.namespace)
    async with caches(host.client, host.namespace) as cached:
        traffic = ClusterTraffic(host.client, cached, host.observer, SETTINGS).of(mine)
        for weight in (1, 2, 3, 4, 5):
            await traffic.apply("vision", split(v1=100 - weight, v2=weight), mine.key)
            read = await traffic.read("vision")
            assert read.split.same_as(split(v1=100 - weight, v2=weight))
            assert read.owner == mine.key


async def test_a_cache_that_lags_is_an_error_and_no_old_answer(host):
    async with caches(host.client, host.namespace) as cached:
        impatient = dataclasses.replace(cached, timeout_s=0.05)
        where = service_host("vision", host.namespace)
        future = str(int((await host.service()).metadata.resource_version) + 1_000_000)
        with pytest.raises(TrafficError, match="has not shown the last write"):
            await impatient.of_host(where, at_least=future)
        assert (await impatient.of_host(where)).routing()


async def test_a_write_that_the_server_has_lost_is_not_waited_for(host):
    mine = rollout(namespace=host.namespace)
    async with caches(host.client, host.namespace) as cached:
        impatient = dataclasses.replace(cached, timeout_s=0.05)
        traffic = ClusterTraffic(host.client, impatient, host.observer, SETTINGS).of(mine)
        await traffic.read("vision")
        # As after a restore of the server's store from a backup.
        traffic._memory.version = str((await host.service()).version + 1_000_000)
        with pytest.raises(TrafficError, match="has not shown the last write"):
            await traffic.read("vision")
        assert (await traffic.read("vision")).split.same_as(split(v1=100))


async def test_a_delegate_may_have_its_parent_in_another_namespace(client, bare_host):
    edge = f"{bare_host.namespace}-edge"
    await client.create(NAMESPACES, {"metadata": {"name": edge}})
    delegate = {"name": "vision-rollout", "namespace": bare_host.namespace}
    mine = rollout("delegate", namespace=bare_host.namespace)
    async with caches(client, bare_host.namespace, edge) as cached:
        traffic = ClusterTraffic(client, cached, bare_host.observer, SETTINGS).of(mine)
        with pytest.raises(TrafficError, match="no VirtualService delegates to"):
            await traffic.apply("vision", split(v1=90, v2=10), mine.key)
        made = istio(
            "VirtualService",
            "edge",
            {"hosts": ["vision.example.com"], "http": [{"delegate": delegate}]},
            namespace=edge,
        )
        await client.apply(VIRTUAL_SERVICES, made, manager="git")
        async with asyncio.timeout(WAIT_S):
            while (await traffic.read("vision")).problem:
                await asyncio.sleep(0.02)
        await traffic.apply("vision", split(v1=90, v2=10), mine.key)
    assert await bare_host.weights("vision-rollout") == {"v2": 10, "v1": 90}
