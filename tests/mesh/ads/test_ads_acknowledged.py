"""Waiting for acknowledgements: which count, and when."""

import asyncio

from ads_double import (
    CLUSTER,
    ENDPOINT,
    ROUTE,
    VIRTUAL_HOST,
    cluster,
    endpoints,
    key,
    route,
    vhds_route,
    virtual_host,
)

from tidegate.mesh.ads import AckOutcome, XdsVariant
from tidegate.mesh.resources import Change, ProxyKind

ENVOY, GRPC = ProxyKind.ENVOY, ProxyKind.GRPC
TIMEOUT_S = 10


def served(distribution, *resources):
    distribution.apply(ENVOY, Change(put=resources))


async def ask(distribution, *resources, deadline_s=0, proxy_kind=ENVOY):
    return await distribution.acknowledged({proxy_kind: list(map(key, resources))}, deadline_s)


async def test_without_proxies_all_have_acknowledged(distribution):
    served(distribution, cluster("a"))
    report = await ask(distribution, cluster("a"))
    assert report.done
    assert report.proxies == ()


async def test_a_resource_is_acknowledged_when_accepted_and_not_when_sent(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    response = await delta.read()
    report = await ask(distribution, cluster("a"))
    (proxy,) = report.of(AckOutcome.WAITING)
    assert proxy.waiting == (key(cluster("a")),)
    assert proxy.proxy.node == "proxy"
    await delta.ack(response)
    assert (await ask(distribution, cluster("a"), deadline_s=TIMEOUT_S)).done


async def test_a_wait_ends_with_the_last_acknowledgement(distribution, connect):
    served(distribution, cluster("a"))
    proxies = [connect(delta=number % 2 == 0, node=f"proxy-{number}") for number in range(4)]
    for proxy in proxies:
        await proxy.send(CLUSTER)
        await proxy.take()
    served(distribution, cluster("a", 2))
    waiting = asyncio.create_task(ask(distribution, cluster("a"), deadline_s=TIMEOUT_S))
    for proxy in proxies:
        assert not waiting.done()
        await proxy.take()
    report = await waiting
    assert report.done
    assert [each.proxy.node for each in report.proxies] == [f"proxy-{n}" for n in range(4)]


async def test_a_change_during_the_wait_has_to_be_acknowledged_too(distribution, connect):
    first, second = connect(delta=True, node="first"), connect(delta=True, node="second")
    served(distribution, cluster("a"))
    for proxy in (first, second):
        await proxy.send(CLUSTER)
    earlier, response = await first.read(), await second.read()
    waiting = asyncio.create_task(ask(distribution, cluster("a"), deadline_s=TIMEOUT_S))
    await first.ack(earlier)
    served(distribution, cluster("a", 2))
    newer = await first.read()
    await second.ack(response)
    await second.take()
    assert not waiting.done()
    await first.ack(newer)
    assert (await waiting).done


async def test_a_reverted_change_in_flight_must_be_undone_first(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    await delta.take()
    served(distribution, cluster("a", 2))
    response = await delta.read()
    served(distribution, cluster("a"))
    assert not (await ask(distribution, cluster("a"))).done
    await delta.ack(response)
    await delta.take()
    assert (await ask(distribution, cluster("a"), deadline_s=TIMEOUT_S)).done


async def test_a_rejection_ends_the_wait_with_the_proxys_message(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    response = await delta.read()
    waiting = asyncio.create_task(ask(distribution, cluster("a"), deadline_s=TIMEOUT_S))
    await delta.nack(response, "no such extension")
    (proxy,) = (await waiting).of(AckOutcome.REJECTED)
    (rejection,) = proxy.rejections
    assert rejection.message == "no such extension"
    assert key(cluster("a")) in rejection.versions


async def test_a_proxy_that_does_not_subscribe_does_not_count(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER, "b")
    await delta.take()
    served(distribution, cluster("a", 2))
    assert (await ask(distribution, cluster("a"))).done


async def test_a_disconnected_proxy_does_not_count(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    await delta.read()
    waiting = asyncio.create_task(ask(distribution, cluster("a"), deadline_s=TIMEOUT_S))
    assert not (await ask(distribution, cluster("a"))).done
    delta.call.cancel()
    report = await waiting
    assert report.proxies == ()
    assert distribution.proxies() == ()


async def test_a_cluster_is_acknowledged_when_it_is_warm(distribution, delta):
    served(distribution, cluster("a"), endpoints("a", 1))
    await delta.send(CLUSTER)
    await delta.take()
    assert await delta.is_quiet()
    (proxy,) = (await ask(distribution, cluster("a"))).of(AckOutcome.WAITING)
    assert proxy.waiting == (key(endpoints("a")),)
    await delta.send(ENDPOINT, "a")
    await delta.take()
    assert (await ask(distribution, cluster("a"), deadline_s=TIMEOUT_S)).done
    served(distribution, cluster("a", 2))
    clusters, warming = await delta.read(), await delta.read()
    await delta.ack(clusters)
    assert await delta.is_quiet()
    assert not (await ask(distribution, cluster("a"))).done
    await delta.ack(warming)
    assert (await ask(distribution, cluster("a"), deadline_s=TIMEOUT_S)).done


async def test_a_removal_is_acknowledged_when_the_proxy_accepts_it(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    await delta.take()
    distribution.apply(ENVOY, Change(delete=(key(cluster("a")),)))
    response = await delta.read()
    assert not (await ask(distribution, cluster("a"))).done
    await delta.ack(response)
    assert (await ask(distribution, cluster("a"), deadline_s=TIMEOUT_S)).done


async def test_a_virtual_host_is_acknowledged_inside_its_route_configuration(distribution, sotw):
    served(distribution, vhds_route("r"), virtual_host("r/h", c=1))
    await sotw.send(ROUTE, "r")
    await sotw.take()
    served(distribution, virtual_host("r/h", c=2))
    response = await sotw.read()
    (proxy,) = (await ask(distribution, virtual_host("r/h"))).of(AckOutcome.WAITING)
    assert proxy.waiting == (key(route("r")),)
    await sotw.ack(response)
    assert (await ask(distribution, virtual_host("r/h"), deadline_s=TIMEOUT_S)).done


async def test_a_virtual_host_waits_for_its_route_configuration(distribution, delta):
    served(distribution, vhds_route("r"), virtual_host("r/h", c=1))
    await delta.send(ROUTE, "r")
    routes = await delta.read()
    await delta.send(VIRTUAL_HOST)
    assert await delta.is_quiet()
    assert not (await ask(distribution, virtual_host("r/h"))).done
    await delta.ack(routes)
    await delta.take()
    assert (await ask(distribution, virtual_host("r/h"), deadline_s=TIMEOUT_S)).done


async def test_proxy_kinds_are_counted_apart(distribution, connect):
    client = connect(delta=False, agent="gRPC C-core linux", node="client")
    distribution.apply(GRPC, Change(put=(cluster("a"),)))
    served(distribution, cluster("a"))
    await client.send(CLUSTER, "a")
    response = await client.read()
    assert (await ask(distribution, cluster("a"))).proxies == ()
    assert not (await ask(distribution, cluster("a"), proxy_kind=GRPC)).done
    await client.ack(response)
    assert (await ask(distribution, cluster("a"), proxy_kind=GRPC, deadline_s=TIMEOUT_S)).done


async def test_proxies_are_described(distribution, connect):
    served(distribution, cluster("a"), cluster("b"), endpoints("a", 1))
    envoy = connect(delta=True, node="ingress")
    await envoy.send(CLUSTER)
    response = await envoy.take()
    await envoy.send(ENDPOINT, "a", "none")
    await envoy.read()
    assert response.names == ["a", "b"]
    (proxy,) = distribution.proxies()
    assert proxy.proxy.node == "ingress"
    assert (proxy.proxy_kind, proxy.variant) == (ENVOY, XdsVariant.DELTA)
    assert proxy.user_agent == "envoy 1.40.0"
    clusters, ends = proxy.types[CLUSTER], proxy.types[ENDPOINT]
    assert clusters.wildcard
    assert (clusters.subscribed, clusters.acknowledged, clusters.pending) == (2, 2, 0)
    assert not ends.wildcard
    assert (ends.subscribed, ends.acknowledged, ends.pending) == (2, 0, 2)
