"""The state-of-the-world variant, over real channels."""

import pytest
from ads_double import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SCOPED_ROUTE,
    api_listener,
    cluster,
    endpoints,
    key,
    listener,
    route,
    scope,
    vhds_route,
    virtual_host,
)
from envoy.config.route.v3 import route_pb2

from tidegate.mesh.resources import Change, ProxyKind

ENVOY, GRPC = ProxyKind.ENVOY, ProxyKind.GRPC


def served(distribution, *resources, proxy_kind=ENVOY):
    distribution.apply(proxy_kind, Change(put=resources))


def removed(distribution, *resources):
    distribution.apply(ENVOY, Change(delete=tuple(map(key, resources))))


async def is_quiet(proxy, distribution):
    """Whether the next response answers a request that is sent now."""
    name = f"probe-{len(proxy.names[LISTENER])}"
    served(distribution, listener(name, "r"))
    await proxy.send(LISTENER, *proxy.names[LISTENER], name, nonce=proxy.nonces[LISTENER])
    response = await proxy.take()
    return response.type is LISTENER and name in response.names


async def test_responses_hold_all_clusters(distribution, sotw):
    served(distribution, cluster("a"), cluster("b"))
    await sotw.send(CLUSTER)
    assert (await sotw.take()).names == ["a", "b"]
    served(distribution, cluster("b", 2))
    assert (await sotw.take()).names == ["a", "b"]
    removed(distribution, cluster("a"))
    assert (await sotw.take()).names == ["b"]


async def test_responses_hold_all_scopes(distribution, sotw):
    served(distribution, scope("a", c=1), scope("b", c=1))
    await sotw.send(SCOPED_ROUTE)
    assert (await sotw.take()).names == ["a", "b"]
    removed(distribution, scope("a"))
    assert (await sotw.take()).names == ["b"]


async def test_an_empty_snapshot_gets_a_response(distribution, sotw):
    served(distribution)
    await sotw.send(CLUSTER)
    assert (await sotw.take()).names == []


async def test_the_version_is_of_the_content(distribution, sotw):
    served(distribution, cluster("a"))
    await sotw.send(CLUSTER)
    first = await sotw.take()
    served(distribution, cluster("a", 2))
    second = await sotw.take()
    served(distribution, cluster("a"))
    third = await sotw.take()
    assert first.message.version_info == third.message.version_info
    assert first.message.version_info != second.message.version_info
    assert first.nonce != third.nonce


async def test_responses_hold_only_changed_endpoints(distribution, sotw):
    served(distribution, endpoints("a", 1), endpoints("b", 1))
    await sotw.send(ENDPOINT, "a", "b", "none")
    assert (await sotw.take()).names == ["a", "b"]
    served(distribution, endpoints("b", 2))
    assert (await sotw.take()).names == ["b"]
    served(distribution, endpoints("none", 2))
    assert (await sotw.take()).names == ["none"]


async def test_removed_endpoints_are_not_reported(distribution, sotw):
    served(distribution, endpoints("a", 1), endpoints("b", 1))
    await sotw.send(ENDPOINT, "a", "b")
    await sotw.take()
    removed(distribution, endpoints("a"))
    served(distribution, endpoints("b", 2))
    assert (await sotw.take()).names == ["b"]


async def test_newly_subscribed_names_are_sent_even_if_sent_before(distribution, sotw):
    served(distribution, endpoints("a", 1), endpoints("b", 1))
    await sotw.send(ENDPOINT, "a")
    response = await sotw.take()
    await sotw.send(ENDPOINT, "b", nonce=response.nonce)
    response = await sotw.take()
    assert response.names == ["b"]
    await sotw.send(ENDPOINT, "a", "b", nonce=response.nonce)
    assert (await sotw.take()).names == ["a"]


async def test_a_stale_request_is_ignored(distribution, sotw):
    served(distribution, endpoints("a", 1), endpoints("b", 1))
    await sotw.send(ENDPOINT, "a")
    response = await sotw.take()
    served(distribution, endpoints("a", 2))
    await sotw.take()
    await sotw.send(ENDPOINT, "a", "b", nonce=response.nonce)
    await sotw.send(ENDPOINT, "a", "b", nonce="garbage")
    await sotw.send(ENDPOINT, "a", "b")
    assert await is_quiet(sotw, distribution)
    served(distribution, endpoints("a", 3), endpoints("b", 3))
    assert (await sotw.take()).names == ["a"]


async def test_a_first_request_may_have_the_nonce_of_an_earlier_stream(distribution, sotw):
    served(distribution, cluster("a"))
    await sotw.send(CLUSTER, nonce="17", version_info="before")
    assert (await sotw.take()).names == ["a"]


async def test_after_names_an_empty_request_is_no_wildcard(distribution, sotw):
    served(distribution, cluster("a"), cluster("b"))
    await sotw.send(CLUSTER, "a")
    response = await sotw.take()
    assert response.names == ["a"]
    await sotw.send(CLUSTER, nonce=response.nonce)
    assert await is_quiet(sotw, distribution)
    served(distribution, cluster("a", 2))
    assert await is_quiet(sotw, distribution)


async def test_a_wildcard_beside_a_name_may_end(distribution, sotw):
    served(distribution, cluster("a"), cluster("b"))
    await sotw.send(CLUSTER)
    response = await sotw.take()
    await sotw.send(CLUSTER, "*", "a", nonce=response.nonce)
    response = await sotw.take()
    assert response.names == ["a", "b"]
    await sotw.send(CLUSTER, "a", nonce=response.nonce)
    assert await is_quiet(sotw, distribution)
    served(distribution, cluster("b", 2))
    served(distribution, cluster("a", 2))
    assert (await sotw.take()).names == ["a"]


async def test_endpoints_have_no_wildcard(distribution, sotw):
    served(distribution, endpoints("a", 1))
    await sotw.send(ENDPOINT)
    await sotw.send(ENDPOINT, "*")
    assert await is_quiet(sotw, distribution)


async def test_a_rejected_full_state_is_sent_again_only_when_it_has_changed(distribution, sotw):
    served(distribution, cluster("a"), cluster("b"))
    await sotw.send(CLUSTER)
    await sotw.take()
    served(distribution, cluster("b", 2))
    await sotw.nack(await sotw.read())
    assert await is_quiet(sotw, distribution)
    (rejection,) = distribution.proxies()[0].rejections
    assert rejection.versions == {key(cluster("b")): cluster("b", 2).version}
    served(distribution, cluster("b", 3))
    response = await sotw.take()
    assert response.bodies["b"] == cluster("b", 3).body


async def test_a_rejected_removal_is_not_repeated(distribution, sotw):
    served(distribution, cluster("a"))
    await sotw.send(CLUSTER)
    await sotw.take()
    removed(distribution, cluster("a"))
    await sotw.nack(await sotw.read())
    assert await is_quiet(sotw, distribution)


async def test_full_state_keeps_a_cluster_until_no_route_names_it(distribution, sotw):
    served(distribution, cluster("old"), route("r", old=1))
    await sotw.send(CLUSTER)
    await sotw.take()
    await sotw.send(ROUTE, "r")
    await sotw.take()
    change = Change(put=(cluster("new"), route("r", new=1)), delete=(key(cluster("old")),))
    distribution.apply(ENVOY, change)
    responses = [await sotw.take() for _ in range(3)]
    assert [each.names for each in responses] == [["new", "old"], ["r"], ["new"]]


async def test_endpoints_are_sent_again_after_their_cluster(distribution, sotw):
    served(distribution, cluster("a"), endpoints("a", 1), cluster("b"), endpoints("b", 1))
    await sotw.send(CLUSTER)
    await sotw.take()
    await sotw.send(ENDPOINT, "a", "b")
    await sotw.take()
    served(distribution, cluster("a", 2))
    clusters, warming = await sotw.read(), await sotw.read()
    assert (clusters.names, warming.names) == (["a", "b"], ["a"])


async def test_an_envoy_gets_virtual_hosts_inside_their_route_configuration(distribution, sotw):
    served(distribution, vhds_route("r"), virtual_host("r/a", c=1), virtual_host("r/b", c=1))
    await sotw.send(ROUTE, "r")
    await sotw.take()
    served(distribution, virtual_host("r/b", c=2))
    removed(distribution, virtual_host("r/a"))
    await sotw.take()
    served(distribution, virtual_host("r/c", c=3), virtual_host("other/a", c=3))
    response = await sotw.take()
    message = route_pb2.RouteConfiguration.FromString(response.bodies["r"].value)
    assert not message.HasField("vhds")
    assert [each.name for each in message.virtual_hosts] == ["r/b", "r/c"]


async def test_a_grpc_client_gets_the_resources_of_its_kind(distribution, connect):
    served(distribution, listener("l", "r"))
    served(distribution, api_listener("host:80", "r"), proxy_kind=GRPC)
    client = connect(delta=False, agent="gRPC C-core linux")
    await client.send(LISTENER, "host:80", "l")
    assert (await client.take()).names == ["host:80"]


@pytest.mark.parametrize("names", [("a",), ("a", "gone")])
async def test_a_grpc_client_is_sent_the_clusters_it_names(distribution, connect, names):
    served(distribution, cluster("a"), cluster("b"), proxy_kind=GRPC)
    client = connect(delta=False, agent="gRPC C-core linux")
    await client.send(CLUSTER, *names)
    response = await client.take()
    assert response.names == ["a"]
    await client.send(CLUSTER, "a", "b", nonce=response.nonce)
    assert (await client.take()).names == ["a", "b"]
