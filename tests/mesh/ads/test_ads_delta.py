"""The delta variant, over real channels."""

from ads_double import (
    CLUSTER,
    ENDPOINT,
    ROUTE,
    SCOPED_ROUTE,
    VIRTUAL_HOST,
    cluster,
    endpoints,
    key,
    listener,
    route,
    scope,
    vhds_route,
    virtual_host,
)

from tidegate.mesh.resources import Change, ProxyKind

ENVOY = ProxyKind.ENVOY


def served(distribution, *resources):
    distribution.apply(ENVOY, Change(put=resources))


def removed(distribution, *resources):
    distribution.apply(ENVOY, Change(delete=tuple(map(key, resources))))


async def test_a_first_request_without_names_is_a_wildcard(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER)
    assert (await delta.take()).names == ["a", "b"]


async def test_a_wildcard_may_be_named(distribution, delta):
    served(distribution, cluster("a"), listener("l", "r"))
    await delta.send(CLUSTER, "*")
    assert (await delta.take()).names == ["a"]


async def test_an_empty_snapshot_gets_a_response(distribution, delta):
    served(distribution)
    await delta.send(CLUSTER)
    response = await delta.take()
    assert (response.names, response.removed) == ([], [])


async def test_proxies_wait_until_the_first_apply(distribution, delta):
    await delta.send(CLUSTER)
    served(distribution, cluster("a"))
    assert (await delta.take()).names == ["a"]


async def test_only_what_changed_is_sent(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER)
    await delta.take()
    served(distribution, cluster("a"), cluster("b", timeout_s=2))
    assert (await delta.take()).names == ["b"]
    served(distribution, cluster("a"), cluster("b", timeout_s=2))
    assert await delta.is_quiet()


async def test_versions_are_those_of_the_content(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    assert (await delta.take()).versions == {"a": cluster("a").version}


async def test_removed_resources_are_named(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER)
    await delta.take()
    removed(distribution, cluster("a"))
    response = await delta.take()
    assert (response.names, response.removed) == ([], ["a"])


async def test_a_missing_name_is_reported_absent_and_sent_when_it_appears(distribution, delta):
    served(distribution)
    await delta.send(ENDPOINT, "a")
    assert (await delta.take()).removed == ["a"]
    served(distribution, endpoints("a", 1))
    assert (await delta.take()).names == ["a"]


async def test_a_name_subscribed_to_again_is_sent_again(distribution, delta):
    served(distribution, endpoints("a", 1))
    for _ in range(2):
        await delta.send(ENDPOINT, "a")
        assert (await delta.take()).names == ["a"]


async def test_an_unsubscribed_name_is_not_sent_any_more(distribution, delta):
    served(distribution, endpoints("a", 1), endpoints("b", 1))
    await delta.send(ENDPOINT, "a", "b")
    await delta.take()
    await delta.send(ENDPOINT, unsubscribe=["a", "never-asked-for"])
    assert await delta.is_quiet()
    served(distribution, endpoints("a", 2), endpoints("b", 2))
    assert (await delta.take()).names == ["b"]


async def test_after_names_an_empty_request_is_no_wildcard(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER, "a")
    await delta.take()
    await delta.send(CLUSTER, unsubscribe=["a"])
    await delta.send(CLUSTER)
    assert await delta.is_quiet()


async def test_a_name_unsubscribed_under_a_wildcard_gets_a_response(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER, "*", "a", "b")
    assert (await delta.take()).removed == ["b"]
    await delta.send(CLUSTER, unsubscribe=["a", "b"])
    response = await delta.take()
    assert (response.names, response.removed) == (["a"], ["b"])


async def test_ending_a_wildcard_keeps_the_names(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER, "*", "a")
    await delta.take()
    await delta.send(CLUSTER, unsubscribe=["*"])
    assert await delta.is_quiet()
    served(distribution, cluster("a", timeout_s=2), cluster("b", timeout_s=2))
    assert (await delta.take()).names == ["a"]


async def test_a_stale_nonce_still_changes_the_subscription(distribution, delta):
    served(distribution, endpoints("a", 1), endpoints("b", 1))
    await delta.send(ENDPOINT, "a")
    response = await delta.read()
    await delta.send(ENDPOINT, "b", nonce="long ago")
    await delta.ack(response)
    assert (await delta.take()).names == ["b"]


async def test_one_response_is_in_flight_and_the_next_has_the_newest(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    response = await delta.read()
    for timeout_s in range(2, 50):
        served(distribution, cluster("a", timeout_s))
    await delta.ack(response)
    assert (await delta.take()).versions == {"a": cluster("a", 49).version}
    assert await delta.is_quiet()


async def test_a_rejected_version_is_shown_and_not_sent_again(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    await delta.take()
    served(distribution, cluster("a", 2), listener("l", "r"))
    await delta.nack(await delta.read(), "bad timeout")
    assert await delta.is_quiet()
    (proxy,) = distribution.proxies()
    (rejection,) = proxy.rejections
    assert rejection.versions == {key(cluster("a")): cluster("a", 2).version}
    assert rejection.message == "bad timeout"


async def test_a_later_version_is_sent_after_a_rejection_and_clears_it(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send(CLUSTER)
    await delta.nack(await delta.read())
    served(distribution, cluster("a", 2))
    assert (await delta.take()).versions == {"a": cluster("a", 2).version}
    assert await delta.is_quiet()
    assert distribution.proxies()[0].rejections == ()


async def test_resources_rejected_together_are_sent_again_with_the_correction(distribution, delta):
    served(distribution, cluster("good"), cluster("bad"))
    await delta.send(CLUSTER)
    await delta.nack(await delta.read())
    served(distribution, cluster("bad", 2))
    assert (await delta.take()).names == ["bad", "good"]


async def test_resources_rejected_together_are_sent_again_after_a_withdrawal(distribution, delta):
    served(distribution, cluster("good"), cluster("bad"))
    await delta.send(CLUSTER)
    await delta.nack(await delta.read())
    removed(distribution, cluster("bad"))
    response = await delta.take()
    assert (response.names, response.removed) == (["good"], [])


async def test_endpoints_are_sent_again_after_their_cluster(distribution, delta):
    served(distribution, cluster("a"), endpoints("a", 1), cluster("b"), endpoints("b", 1))
    await delta.send(CLUSTER)
    await delta.take()
    await delta.send(ENDPOINT, "a", "b")
    await delta.take()
    served(distribution, cluster("a", 2))
    # As in Envoy, the cluster is not acknowledged before its endpoints have arrived.
    clusters, warming = await delta.read(), await delta.read()
    assert (clusters.names, warming.names) == (["a"], ["a"])
    assert warming.type is ENDPOINT


async def test_virtual_hosts_follow_their_route_configuration(distribution, delta):
    served(distribution, virtual_host("r/a", c=1), virtual_host("s/a", c=1))
    await delta.send(VIRTUAL_HOST)
    assert (await delta.take()).names == []
    await delta.send(ROUTE, "r")
    assert (await delta.take()).removed == ["r"]
    served(distribution, vhds_route("r"))
    routes = await delta.take()
    hosts = await delta.take()
    assert (routes.names, hosts.names) == (["r"], ["r/a"])


async def test_a_resource_removed_before_it_was_sent_is_not_reported_absent(distribution, delta):
    served(distribution, virtual_host("r/a", c=1))
    await delta.send(VIRTUAL_HOST)
    # It waits for its route configuration.
    assert (await delta.take()).names == []
    removed(distribution, virtual_host("r/a"))
    assert await delta.is_quiet()


async def test_virtual_hosts_are_sent_again_after_a_new_subscription_to_their_route(
    distribution, delta
):
    served(distribution, vhds_route("r"), virtual_host("r/a", c=1))
    await delta.send(ROUTE, "r")
    await delta.take()
    await delta.send(VIRTUAL_HOST)
    assert (await delta.take()).names == ["r/a"]
    await delta.send(ROUTE, unsubscribe=["r"])
    await delta.send(ROUTE, "r")
    assert (await delta.take()).names == ["r"]
    assert (await delta.take()).names == ["r/a"]


async def test_a_repeated_wildcard_gets_a_response_even_an_empty_one(distribution, delta):
    served(distribution, cluster("a"))
    for _ in range(2):
        await delta.send(SCOPED_ROUTE, "*")
        response = await delta.take()
        assert (response.type, response.names, response.removed) == (SCOPED_ROUTE, [], [])
        # As an Envoy does after it has removed its last scoped listener.
        await delta.send(SCOPED_ROUTE, unsubscribe=["*"])


async def test_one_weight_sends_one_scope(distribution, delta):
    served(distribution, *(scope(str(number), c=1) for number in range(50)))
    await delta.send(SCOPED_ROUTE)
    await delta.take()
    served(distribution, scope("7", c=2))
    response = await delta.take()
    assert (response.type, response.names) == (SCOPED_ROUTE, ["7"])
    assert response.bodies["7"] == scope("7", c=2).body


async def test_one_weight_sends_one_virtual_host(distribution, delta):
    hosts = [virtual_host(f"r/{number}", c=1) for number in range(50)]
    served(distribution, vhds_route("r"), *hosts)
    await delta.send(ROUTE, "r")
    await delta.take()
    await delta.send(VIRTUAL_HOST)
    await delta.take()
    served(distribution, virtual_host("r/7", c=2))
    response = await delta.take()
    assert (response.type, response.names) == (VIRTUAL_HOST, ["r/7"])
    assert response.bodies["r/7"] == virtual_host("r/7", c=2).body


async def test_a_reconnecting_proxy_is_sent_only_what_it_lacks(distribution, delta):
    served(distribution, cluster("same"), cluster("changed", 2), cluster("new"))
    known = {"same": cluster("same").version, "changed": cluster("changed").version}
    await delta.send(CLUSTER, known=known)
    assert (await delta.take()).names == ["changed", "new"]


async def test_a_reconnecting_proxy_that_is_up_to_date_is_sent_nothing(distribution, delta):
    resources = [cluster("a"), endpoints("a", 1)]
    served(distribution, *resources)
    await delta.send(CLUSTER, known={"a": resources[0].version})
    warm = f"{resources[0].version}.{resources[1].version}"
    await delta.send(ENDPOINT, "a", known={"a": warm})
    assert await delta.is_quiet()


async def test_a_proxy_that_reconnects_during_warming_is_sent_the_endpoints(distribution, delta):
    before, after = cluster("a"), cluster("a", 2)
    served(distribution, after, endpoints("a", 1))
    await delta.send(CLUSTER, known={"a": after.version})
    warm_before = f"{before.version}.{endpoints('a', 1).version}"
    await delta.send(ENDPOINT, "a", known={"a": warm_before})
    response = await delta.take()
    assert (response.type, response.names) == (ENDPOINT, ["a"])


async def test_a_reconnecting_proxy_with_endpoints_of_a_restored_cluster_warms_the_one_between(
    distribution, delta
):
    usual, between = cluster("a"), cluster("a", 2)
    served(distribution, between, endpoints("a", 1))
    await delta.send(CLUSTER, known={"a": usual.version})
    clusters = await delta.read()
    served(distribution, usual)
    # An Envoy acknowledges the cluster between only when it has endpoints for it.
    warm = f"{usual.version}.{endpoints('a', 1).version}"
    await delta.send(ENDPOINT, "a", known={"a": warm})
    response = await delta.take()
    assert (response.type, response.names) == (ENDPOINT, ["a"])
    await delta.ack(clusters)
    assert (await delta.take()).versions == {"a": usual.version}


async def test_a_reconnecting_proxy_that_names_virtual_hosts_first_is_sent_the_changes(
    distribution, delta
):
    before = virtual_host("r/changed", c=1)
    served(distribution, vhds_route("r"), virtual_host("r/changed", c=2), virtual_host("r/same"))
    known = {"r/changed": before.version, "r/same": virtual_host("r/same").version}
    await delta.send(VIRTUAL_HOST, known=known)
    assert await delta.is_quiet()
    await delta.send(ROUTE, "r", known={"r": vhds_route("r").version})
    assert (await delta.take()).names == ["r/changed"]


async def until_removed(proxy):
    """Takes responses until one removes something; returns the earlier names, and that response."""
    names = []
    while not (response := await proxy.take()).removed:
        names += response.names
    return names, response


async def test_a_reconnecting_proxy_gets_removals_only_after_additions(distribution, delta):
    served(distribution, cluster("new"), route("r", new=1))
    await delta.send(CLUSTER, known={"old": "1"})
    await delta.send(ROUTE, "r", known={"r": "names old"})
    names, last = await until_removed(delta)
    assert names == ["new", "r"]
    assert (last.type, last.names, last.removed) == (CLUSTER, [], ["old"])


async def test_removals_wait_until_a_reconnecting_proxy_has_subscribed_to_all(distribution, delta):
    served(distribution, route("r", new=1))
    await delta.send(CLUSTER, known={"old": "1"})
    # Nothing is due, but the proxy has not answered yet, so more subscriptions may follow.
    first = await delta.read()
    assert (first.type, first.names, first.removed) == (CLUSTER, [], [])
    await delta.send(ROUTE, "r", known={"r": "names old"})
    await delta.ack(first)
    names, last = await until_removed(delta)
    assert (names, last.removed) == (["r"], ["old"])


async def test_a_fleeting_change_is_not_sent(distribution, delta):
    served(distribution, cluster("a"), cluster("b"))
    await delta.send(CLUSTER)
    response = await delta.read()
    removed(distribution, cluster("a"))
    served(distribution, cluster("a"), cluster("b", 2))
    served(distribution, cluster("b"))
    await delta.ack(response)
    assert await delta.is_quiet()


async def test_an_unknown_type_gets_no_response(distribution, delta):
    served(distribution, cluster("a"))
    await delta.send("type.googleapis.com/envoy.service.runtime.v3.Runtime", "x")
    await delta.send(CLUSTER)
    assert (await delta.take()).names == ["a"]
