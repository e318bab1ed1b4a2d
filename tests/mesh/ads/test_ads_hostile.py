"""Broken and hostile proxies get an error and cost the server little."""

import asyncio

import grpc
import pytest
from ads_double import CLUSTER, ENDPOINT, ROUTE, Proxy, cluster, endpoints
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from tidegate.mesh.ads import Distribution, ProxyLimits
from tidegate.mesh.resources import Change, ProxyKind

ENVOY = ProxyKind.ENVOY
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def distribution():
    limits = ProxyLimits(
        names=10,
        name_bytes=40,
        streams=3,
        unsolicited_requests_per_s=1000,
        unsolicited_requests_burst=50,
    )
    distribution = Distribution(limits)
    distribution.apply(ENVOY, Change(put=(cluster("a"), endpoints("a", 1))))
    return distribution


@pytest.mark.parametrize("delta", [True, False])
async def test_a_proxy_without_a_name_is_refused(connect, delta):
    proxy = connect(delta=delta, node="")
    await proxy.send(CLUSTER)
    code, details = await proxy.failure()
    assert code is INVALID
    assert "node.id" in details


async def test_a_proxy_that_changes_its_name_is_refused(delta):
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(CLUSTER, node=base_pb2.Node(id="somebody else"))
    code, details = await delta.failure()
    assert code is INVALID
    assert "node.id" in details


async def test_a_proxy_may_repeat_its_name(delta):
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(ENDPOINT, "a", node=base_pb2.Node(id="proxy"))
    assert (await delta.take()).names == ["a"]


async def test_a_proxy_of_an_unknown_kind_is_refused(connect):
    proxy = connect(delta=True, agent="curl")
    await proxy.send(CLUSTER)
    code, details = await proxy.failure()
    assert code is INVALID
    assert "curl" in details


@pytest.mark.parametrize("delta", [True, False])
@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([f"name-{number}" for number in range(11)], "11 names"),
        (["x" * 41], "longer than 40 bytes"),
        (["ä" * 21], "longer than 40 bytes"),
        ([""], "empty name"),
    ],
)
async def test_too_much_in_one_request_is_refused(connect, delta, names, problem):
    proxy = connect(delta=delta)
    await proxy.send(ENDPOINT, *names)
    code, details = await proxy.failure()
    assert code is INVALID
    assert problem in details


async def test_too_much_in_many_requests_is_refused(delta):
    for number in range(11):
        await delta.send(ENDPOINT, f"name-{number}")
    code, details = await delta.failure()
    assert code is INVALID
    assert "more than 10" in details


@pytest.mark.parametrize(
    "known", [{f"name-{n}": "1" for n in range(11)}, {"a": "x" * 41}, {"x" * 41: "1"}]
)
async def test_too_many_initial_versions_are_refused(delta, known):
    await delta.send(CLUSTER, known=known)
    assert (await delta.failure())[0] is INVALID


async def test_unsubscribed_names_make_room(delta):
    for number in range(30):
        await delta.send(ENDPOINT, f"name-{number}", unsubscribe=[f"name-{number - 1}"])
    await delta.send(CLUSTER)
    while (response := await delta.take()).type is not CLUSTER:
        assert not response.names
    assert response.names == ["a"]


async def test_a_flood_is_read_slowly_and_answered(delta):
    for number in range(500):
        await delta.send(ROUTE, "r", nonce=f"garbage {number}")
    await delta.send(CLUSTER)
    while (response := await delta.take()).type is not CLUSTER:
        assert response.removed == ["r"]
    assert response.names == ["a"]


async def test_acks_do_not_count_as_a_flood(distribution, delta):
    await delta.send(CLUSTER)
    for timeout_s in range(2, 200):
        await delta.take()
        distribution.apply(ENVOY, Change(put=(cluster("a", timeout_s),)))
    assert (await delta.take()).names == ["a"]


async def test_too_many_streams_are_refused_until_one_has_gone(port, connect):
    proxies = [connect(delta=True, node=f"proxy-{number}") for number in range(3)]
    for proxy in proxies:
        await proxy.send(CLUSTER)
        await proxy.take()
    late = connect(delta=True, node="late")
    await late.send(CLUSTER)
    assert (await late.failure())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    await proxies[0].call.done_writing()
    assert (await proxies[0].failure())[0] is grpc.StatusCode.OK
    again = connect(delta=True, node="late")
    await again.send(CLUSTER)
    assert (await again.take()).names == ["a"]


async def test_a_malformed_message_is_refused(port):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
        call = channel.stream_stream(method)()
        await call.write(b"\xff\xff garbage")
        assert await call.code() is INVALID


async def test_a_stream_without_requests_ends_without_error(port, connect):
    proxy = connect(delta=True)
    await proxy.call.done_writing()
    assert (await proxy.failure())[0] is grpc.StatusCode.OK


async def test_a_silent_stream_is_ended(control_plane):
    distribution = Distribution(ProxyLimits(first_request_s=0.01))
    async with (
        control_plane(distribution) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        code, _ = await Proxy(channel, delta=True).failure()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_hostile_proxies_do_not_disturb_others(distribution, connect):
    good = connect(delta=True, node="good")
    await good.send(CLUSTER)
    await good.take()
    bad = connect(delta=False, node="bad")
    for _ in range(20):
        await bad.send(CLUSTER, nonce="wrong", error="never sent")
    distribution.apply(ENVOY, Change(put=(cluster("a", 2),)))
    await good.take()
    distribution.apply(ENVOY, Change(put=(cluster("a", 3),)))
    assert (await good.take()).versions == {"a": cluster("a", 3).version}
    assert distribution.proxies()[0].rejections == ()


async def test_streams_end_when_the_control_plane_drains(distribution, control_plane):
    async with control_plane(distribution) as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        proxy, silent = Proxy(channel, delta=True), Proxy(channel, delta=False)
        await proxy.send(CLUSTER)
        await proxy.take()
        ends = asyncio.gather(proxy.failure(), silent.failure())
    for code, _ in await ends:
        assert code is grpc.StatusCode.UNAVAILABLE
    await channel.close()


def test_the_message_of_the_tests_is_garbage():
    with pytest.raises(Exception, match="Error parsing"):
        discovery_pb2.DeltaDiscoveryRequest.FromString(b"\xff\xff garbage")
