"""Make before break, in any order of subscriptions and answers."""

import pytest
from ads_double import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    ROUTE,
    SCOPED_ROUTE,
    VIRTUAL_HOST,
    cluster,
    endpoints,
    key,
    listener,
    route,
    scope,
    scoped_listener,
    vhds_route,
    virtual_host,
)

from tidegate.mesh.resources import Change, ProxyKind

ENVOY = ProxyKind.ENVOY
MESH = (
    cluster("c"),
    endpoints("c", 1),
    listener("l", "r"),
    vhds_route("r"),
    virtual_host("r/h", c=1),
)


def served(distribution, *resources):
    distribution.apply(ENVOY, Change(put=resources))


def removed(distribution, *resources):
    distribution.apply(ENVOY, Change(delete=tuple(map(key, resources))))


async def warm(distribution, proxy):
    """Makes a proxy take a cluster and its endpoints."""
    served(distribution, cluster("c"), endpoints("c", 1))
    await proxy.send(CLUSTER)
    await proxy.take()
    await proxy.send(ENDPOINT, "c")
    await proxy.take()


async def follow(proxy):
    """Takes the whole test mesh as an Envoy does, which subscribes to the names it has seen."""
    await proxy.send(CLUSTER)
    await proxy.take()
    await proxy.send(ENDPOINT, "c")
    await proxy.take()
    await proxy.send(LISTENER)
    await proxy.take()
    await proxy.send(ROUTE, "r")
    await proxy.take()
    await proxy.send(VIRTUAL_HOST)
    assert (await proxy.take()).names == ["r/h"]


async def test_additions_come_in_order_and_removals_last_in_reverse(distribution, delta):
    served(distribution, *MESH)
    await follow(delta)
    await delta.send(ENDPOINT, "new")
    await delta.take()
    await delta.send(ROUTE, "new")
    await delta.take()
    put = (
        virtual_host("r/new", new=1),
        vhds_route("new"),
        listener("new", "new"),
        endpoints("new", 1),
        cluster("new"),
    )
    distribution.apply(ENVOY, Change(put=put, delete=tuple(map(key, MESH))))
    responses = [await delta.take() for _ in range(10)]
    assert [(each.type, each.names, each.removed) for each in responses] == [
        (CLUSTER, ["new"], []),
        (ENDPOINT, ["new"], []),
        (LISTENER, ["new"], []),
        (ROUTE, ["new"], []),
        (VIRTUAL_HOST, ["r/new"], []),
        (VIRTUAL_HOST, [], ["r/h"]),
        (ROUTE, [], ["r"]),
        (LISTENER, [], ["l"]),
        (ENDPOINT, [], ["c"]),
        (CLUSTER, [], ["c"]),
    ]


async def test_scopes_come_before_a_listener_and_go_after_it(distribution, delta):
    served(distribution, cluster("c"), scoped_listener("first"))
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(LISTENER)
    await delta.take()
    await delta.send(SCOPED_ROUTE)
    assert (await delta.take()).names == []
    served(distribution, scoped_listener("later"), scope("s", new=1), cluster("new"))
    assert [repr(await delta.take()) for _ in range(3)] == [
        "CLUSTER ['new'] removed []",
        "SCOPED_ROUTE ['s'] removed []",
        "LISTENER ['later'] removed []",
    ]
    removed(distribution, scoped_listener("later"), scope("s"), cluster("new"))
    assert [repr(await delta.take()) for _ in range(3)] == [
        "LISTENER [] removed ['later']",
        "SCOPED_ROUTE [] removed ['s']",
        "CLUSTER [] removed ['new']",
    ]


@pytest.mark.parametrize("make", [route, scope])
async def test_routes_wait_for_a_rejected_cluster(distribution, delta, make):
    served(distribution, cluster("broken"), make("r", broken=1))
    await delta.send(CLUSTER)
    await delta.nack(await delta.read())
    if make is scope:
        await delta.send(SCOPED_ROUTE)
        # Nothing else is served, and a wildcard subscription waits for a response.
        assert (await delta.take()).names == []
    else:
        await delta.send(ROUTE, "r")
    assert await delta.is_quiet()
    served(distribution, cluster("broken", 2))
    assert (await delta.take()).names == ["broken"]
    assert (await delta.take()).names == ["r"]


@pytest.mark.parametrize("delta", [True, False])
async def test_a_route_waits_for_its_cluster_to_be_acknowledged(distribution, connect, delta):
    proxy = connect(delta=delta)
    served(distribution, route("r"))
    await proxy.send(CLUSTER)
    await proxy.take()
    await proxy.send(ROUTE, "r")
    await proxy.take()
    served(distribution, route("r", new=1), cluster("new"))
    clusters = await proxy.read()
    assert clusters.type is CLUSTER
    # Other subscriptions get responses meanwhile, the route does not.
    await proxy.send(ENDPOINT, "new")
    served(distribution, endpoints("new", 1))
    warming = await proxy.read()
    assert warming.type is ENDPOINT
    await proxy.ack(warming)
    await proxy.ack(clusters)
    while (response := await proxy.take()).type is not ROUTE:
        assert response.type is ENDPOINT
    assert response.names == ["r"]


async def test_endpoints_do_not_wait_for_a_cluster_that_waits_for_them(distribution, delta):
    await warm(distribution, delta)
    served(distribution, endpoints("c", 2))
    earlier = await delta.read()
    served(distribution, cluster("c", 2))
    second = await delta.read()
    served(distribution, cluster("c", 3))
    # An Envoy acknowledges the second cluster when it has its endpoints; a third one follows.
    await delta.ack(earlier)
    warming = await delta.read()
    assert (warming.type, warming.names) == (ENDPOINT, ["c"])
    # The endpoints warm the cluster that has arrived, and are sent again after the next one.
    await delta.ack(second)
    assert (await delta.take()).type is CLUSTER
    await delta.ack(warming)
    again = await delta.take()
    assert (again.type, again.names) == (ENDPOINT, ["c"])


async def test_rejected_endpoints_follow_each_response_of_their_cluster_once(distribution, delta):
    served(distribution, cluster("c"), endpoints("c", 1))
    await delta.send(ENDPOINT, "c")
    await delta.take()
    # It rejects the endpoints of the changed cluster, which it requests at the same moment.
    served(distribution, cluster("c", 2))
    rejected = await delta.read()
    await delta.send(CLUSTER, "c")
    await delta.nack(rejected)
    changed = await delta.read()
    assert (changed.type, changed.names) == (CLUSTER, ["c"])
    again = await delta.read()
    assert (again.type, again.bodies) == (ENDPOINT, rejected.bodies)
    await delta.nack(again)
    await delta.ack(changed)
    # This answer follows those for clusters, and leaves no cluster in flight.
    assert await delta.is_quiet(LISTENER)
    # With the next response for the cluster they are sent once again.
    served(distribution, cluster("c", 3))
    changed = await delta.read()
    again = await delta.read()
    assert (changed.names, again.bodies) == (["c"], rejected.bodies)
    await delta.nack(again)
    await delta.ack(changed)
    assert await delta.is_quiet(LISTENER)


async def test_rejected_hosts_follow_their_route_configuration_once(distribution, delta):
    served(distribution, vhds_route("r"), virtual_host("r/h", c=1))
    await delta.send(VIRTUAL_HOST, "r/h")
    rejected = await delta.read()
    await delta.send(ROUTE, "r")
    await delta.nack(rejected)
    await delta.take()
    again = await delta.read()
    assert (again.type, again.bodies) == (VIRTUAL_HOST, rejected.bodies)
    await delta.nack(again)
    assert await delta.is_quiet()


async def test_endpoints_removed_while_due_to_be_resent_are_removed(distribution, delta):
    await warm(distribution, delta)
    served(distribution, endpoints("c", 2))
    earlier = await delta.read()
    served(distribution, cluster("c", 2))
    clusters = await delta.read()
    removed(distribution, endpoints("c"))
    await delta.ack(earlier)
    assert await delta.is_quiet(ENDPOINT)
    await delta.ack(clusters)
    response = await delta.take()
    assert (response.type, response.removed) == (ENDPOINT, ["c"])


async def test_a_name_resubscribed_while_in_flight_is_removed_in_the_usual_order(
    distribution, delta
):
    served(distribution, cluster("c"), endpoints("c", 1))
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(ENDPOINT, "c")
    flying = await delta.read()
    await delta.send(ENDPOINT, unsubscribe=["c"])
    await delta.send(ENDPOINT, "c")
    # The proxy has subscribed again by the time it reads the response, and keeps the resource.
    served(distribution, cluster("new"))
    clusters = await delta.read()
    removed(distribution, endpoints("c"))
    await delta.ack(flying)
    assert await delta.is_quiet(ENDPOINT)
    await delta.ack(clusters)
    response = await delta.take()
    assert (response.type, response.removed) == (ENDPOINT, ["c"])


async def test_a_name_resubscribed_after_it_arrived_is_reported_absent_at_once(distribution, delta):
    await warm(distribution, delta)
    served(distribution, cluster("c", 2))
    clusters, warming = await delta.read(), await delta.read()
    await delta.ack(warming)
    removed(distribution, endpoints("c"))
    await delta.send(ENDPOINT, unsubscribe=["c"])
    await delta.send(ENDPOINT, "c")
    # The proxy has dropped the endpoints, and may acknowledge the cluster only after this.
    assert (await delta.take()).removed == ["c"]
    await delta.ack(clusters)
    assert await delta.is_quiet()


async def test_a_route_that_names_a_rejected_cluster_is_held_back(distribution, delta):
    served(distribution, route("r", old=1), cluster("old"))
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(ROUTE, "r", "other")
    await delta.take()
    put = (cluster("broken"), route("r", broken=1), route("other", old=1))
    distribution.apply(ENVOY, Change(put=put))
    await delta.nack(await delta.read())
    assert (await delta.take()).names == ["other"]
    assert await delta.is_quiet()
    served(distribution, cluster("broken", 2))
    assert (await delta.take()).names == ["broken"]
    assert (await delta.take()).names == ["r"]


async def test_full_state_keeps_the_old_scope_while_its_new_cluster_is_rejected(distribution, sotw):
    served(distribution, cluster("old"), scope("s", old=1))
    await sotw.send(CLUSTER)
    await sotw.take()
    await sotw.send(SCOPED_ROUTE)
    await sotw.take()
    new = scope("s", broken=1)
    served(distribution, cluster("broken"), new, scope("never", broken=1), scope("t", old=1))
    await sotw.nack(await sotw.read())
    scopes = {"s": scope("s", old=1).body, "t": scope("t", old=1).body}
    assert (await sotw.take()).bodies == scopes
    served(distribution, cluster("broken", 2))
    assert (await sotw.take()).type is CLUSTER
    assert (await sotw.take()).bodies == scopes | {
        "s": new.body,
        "never": scope("never", broken=1).body,
    }


async def test_a_host_is_not_sent_to_a_proxy_without_its_route(distribution, delta):
    served(distribution, *MESH)
    await follow(delta)
    served(distribution, cluster("c", 2))
    clusters = await delta.read()
    # The host is due now, but only after the cluster is acknowledged.
    served(distribution, virtual_host("r/h", c=2))
    await delta.send(ROUTE, unsubscribe=["r"])
    await delta.ack(clusters)
    assert (await delta.take()).type is ENDPOINT
    assert await delta.is_quiet()
    await delta.send(ROUTE, "r")
    assert (await delta.take()).names == ["r"]
    assert (await delta.take()).names == ["r/h"]


async def test_a_host_does_not_follow_a_route_being_removed(distribution, delta):
    served(distribution, *MESH)
    await follow(delta)
    removed(distribution, vhds_route("r"))
    going = await delta.read()
    assert (going.type, going.removed) == (ROUTE, ["r"])
    served(distribution, virtual_host("r/h", c=2))
    await delta.ack(going)
    assert await delta.is_quiet()
    served(distribution, vhds_route("r"))
    assert (await delta.take()).names == ["r"]
    assert (await delta.take()).names == ["r/h"]


async def test_a_route_that_was_held_back_is_sent_when_the_cluster_is_withdrawn(
    distribution, delta
):
    served(distribution, cluster("old"))
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(ROUTE, "r")
    await delta.take()
    served(distribution, cluster("broken"), route("r", broken=1))
    await delta.nack(await delta.read())
    change = Change(put=(route("r", old=1),), delete=(key(cluster("broken")),))
    distribution.apply(ENVOY, change)
    assert (await delta.take()).names == ["r"]


async def test_a_slow_reader_costs_no_queue(distribution, connect):
    slow, quick = connect(delta=True, node="slow"), connect(delta=True, node="quick")
    served(distribution, *MESH)
    await follow(slow)
    await follow(quick)
    for weight in range(1, 200):
        served(distribution, virtual_host("r/h", c=weight, d=1000))
        await quick.take()
    last = virtual_host("r/h", c=199, d=1000)
    first = await slow.take()
    assert first.versions == {"r/h": virtual_host("r/h", c=1, d=1000).version}
    served(distribution, last)
    assert (await slow.take()).versions in (
        {"r/h": virtual_host("r/h", c=199, d=1000).version},
        {"r/h": last.version},
    )
