"""The stages of a change: no proxy ever has a route to a missing cluster, whatever the change."""

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from google.protobuf.wrappers_pb2 import UInt32Value
from hypothesis import given
from hypothesis import strategies as st

from tidegate.mesh.control.endpoints.assignments import (
    addresses,
    has_healthy,
    health_of,
    with_draining,
)
from tidegate.mesh.control.transitions.plan import (
    ROUTING,
    Gate,
    StageKind,
    clusters_with_traffic,
    keys_of,
    plan,
    step,
)
from tidegate.mesh.resources import (
    Change,
    ProxyKind,
    Resource,
    ResourceKey,
    ResourceType,
    difference,
)

CLUSTERS = [f"outbound|80|v{number}|vision" for number in range(4)]
HEALTHY, DRAINING = health_check_pb2.HEALTHY, health_check_pb2.DRAINING


def cluster(name, settings=0):
    message = cluster_pb2.Cluster(name=name, alt_stat_name=str(settings))
    return Resource.of(ResourceType.CLUSTER, name, message)


def assignment(name, endpoints):
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    group = message.endpoints.add()
    for address, health in endpoints.items():
        endpoint = group.lb_endpoints.add(health_status=health)
        host, _, port = address.rpartition(":")
        endpoint.endpoint.address.socket_address.address = host
        endpoint.endpoint.address.socket_address.port_value = int(port)
    return Resource.of(ResourceType.ENDPOINT, name, message)


def virtual_host(name, weights, mirrors=()):
    message = route_components_pb2.VirtualHost(name=name, domains=[name])
    action = message.routes.add().route
    for destination, weight in weights.items():
        action.weighted_clusters.clusters.add(name=destination, weight=UInt32Value(value=weight))
    for destination in mirrors:
        action.request_mirror_policies.add(cluster=destination)
    return message


def host_resource(name, weights, mirrors=()):
    message = virtual_host(name, weights, mirrors)
    return Resource.of(ResourceType.VIRTUAL_HOST, name, message)


def route_resource(name, weights, mirrors=()):
    message = route_pb2.RouteConfiguration(name=name)
    message.virtual_hosts.append(virtual_host("all", weights, mirrors))
    return Resource.of(ResourceType.ROUTE, name, message)


def scope_resource(name, weights, mirrors=()):
    message = scoped_route_pb2.ScopedRouteConfiguration(name=name)
    message.route_configuration.virtual_hosts.append(virtual_host("all", weights, mirrors))
    return Resource.of(ResourceType.SCOPED_ROUTE, name, message)


def listener_resource(name, weights, mirrors=()):
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix=name)
    manager.route_config.virtual_hosts.append(virtual_host("all", weights, mirrors))
    message = listener_pb2.Listener(name=name)
    message.api_listener.api_listener.Pack(manager)
    return Resource.of(ResourceType.LISTENER, name, message)


def resources(*each):
    return {resource.key: resource for resource in each}


@st.composite
def meshes(draw):
    """Resources of one proxy kind: all kinds of routes over the clusters that exist."""
    there = draw(st.lists(st.sampled_from(CLUSTERS), unique=True))
    made = [cluster(name, draw(st.integers(0, 1))) for name in there]
    made += [assignment(name, {"10.0.0.1:80": draw(st.sampled_from([1, 2]))}) for name in there]
    if there:
        weights = st.dictionaries(st.sampled_from(there), st.integers(0, 2))
        mirrors = st.lists(st.sampled_from(there), max_size=1)
        for make in (host_resource, route_resource, scope_resource, listener_resource):
            names = draw(st.lists(st.sampled_from("ab"), unique=True))
            made += [make(name, draw(weights), draw(mirrors)) for name in names]
    return resources(*made)


@st.composite
def changes(draw):
    before = {proxy_kind: draw(meshes()) for proxy_kind in ProxyKind}
    after = {proxy_kind: draw(meshes()) for proxy_kind in ProxyKind}
    steps = {
        proxy_kind: difference(
            before[proxy_kind], after[proxy_kind], {**before[proxy_kind], **after[proxy_kind]}
        )
        for proxy_kind in ProxyKind
    }
    return before, {proxy_kind: step for proxy_kind, step in steps.items() if step}, after


def applied(served, step):
    result = dict(served)
    for proxy_kind, change in step.items():
        there = dict(result[proxy_kind])
        there.update((each.key, each) for each in change.put)
        for key in change.delete:
            del there[key]
        result[proxy_kind] = there
    return result


def clusters_named(resource):
    """Every cluster whose name stands in a resource, mirrored ones and those of weight 0 too."""
    return {name for name in CLUSTERS if name.encode() in resource.body.value}


def dangling(served):
    """Clusters that routes name and that do not exist."""
    return {
        name
        for there in served.values()
        for key, resource in there.items()
        if key.type in ROUTING
        for name in clusters_named(resource)
        if ResourceKey(ResourceType.CLUSTER, name) not in there
    }


@given(changes())
def test_no_route_names_a_missing_cluster_at_any_time(change):
    before, change, after = change
    served = before
    history = []
    for stage in plan(before, change):
        history.append((stage.kind, served))
        served = applied(served, stage.changes)
        assert not dangling(served)
        if stage.kind is StageKind.DRAIN:
            assert stage.gate.drained == {
                key.name
                for each in change.values()
                for key in each.delete
                if key.type is ResourceType.CLUSTER
            }
            # No request can begin on a drained cluster: no route of its proxy kind names it.
            without = {
                proxy_kind: Change(delete=each.only(ResourceType.CLUSTER).delete)
                for proxy_kind, each in change.items()
            }
            assert not dangling(applied(served, without))
    assert served == after
    for kind, earlier in reversed(history):
        back = {
            proxy_kind: step(
                kind.before,
                served[proxy_kind],
                before[proxy_kind],
                after[proxy_kind],
                keys_of(each),
            )
            for proxy_kind, each in change.items()
        }
        served = applied(served, back)
        assert not dangling(served)
        assert served == earlier
    assert served == before


@given(changes())
def test_every_change_of_a_stage_is_waited_for(change):
    before, change, _ = change
    for stage in plan(before, change):
        changed = {
            proxy_kind: {each.key for each in change.put} | set(change.delete)
            for proxy_kind, change in stage.changes.items()
        }
        assert stage.gate.acknowledged == changed
        assert changed or stage.gate.healthy or stage.gate.drained


def test_nothing_changes_in_no_stages():
    assert plan({ProxyKind.ENVOY: {}}, {}) == ()


def test_cluster_that_gets_its_first_traffic_must_be_healthy_though_it_was_there():
    before = resources(
        *(cluster(name) for name in CLUSTERS[:3]),
        host_resource("vision", {CLUSTERS[0]: 100, CLUSTERS[1]: 0}),
    )
    shifted = host_resource("vision", {CLUSTERS[0]: 90, CLUSTERS[1]: 10}, mirrors=[CLUSTERS[2]])
    after = {**before, shifted.key: shifted}
    change = {ProxyKind.ENVOY: difference(before, after, after)}
    stages = plan({ProxyKind.ENVOY: before}, change)
    assert [each.kind for each in stages] == [StageKind.CLUSTERS, StageKind.ROUTES]
    assert stages[0].changes == {}
    assert stages[0].gate == Gate(healthy=frozenset(CLUSTERS[1:3]))
    assert stages[1].changes == change


def test_a_weight_alone_is_one_stage():
    before = resources(
        *(cluster(name) for name in CLUSTERS[:2]),
        host_resource("vision", {CLUSTERS[0]: 90, CLUSTERS[1]: 10}),
    )
    shifted = host_resource("vision", {CLUSTERS[0]: 50, CLUSTERS[1]: 50})
    change = {ProxyKind.ENVOY: difference(before, {shifted.key: shifted}, [shifted.key])}
    assert [each.kind for each in plan({ProxyKind.ENVOY: before}, change)] == [StageKind.ROUTES]


def test_traffic_is_a_weight_above_zero_or_a_mirror():
    for make in (host_resource, route_resource, listener_resource):
        resource = make("vision", {CLUSTERS[0]: 1, CLUSTERS[1]: 0}, mirrors=[CLUSTERS[2]])
        assert clusters_named(resource) == set(CLUSTERS[:3])
        assert set(clusters_with_traffic(resource)) == {CLUSTERS[0], CLUSTERS[2]}


def test_endpoint_that_goes_stays_as_draining():
    before = assignment("c", {"10.0.0.1:80": HEALTHY, "10.0.0.2:80": HEALTHY})
    after = assignment("c", {"10.0.0.1:80": HEALTHY, "10.0.0.3:80": HEALTHY})
    gone = addresses(before) - addresses(after)
    assert gone == {"10.0.0.2:80"}
    merged = with_draining(before, after, gone)
    assert health_of(merged) == {
        "10.0.0.1:80": HEALTHY,
        "10.0.0.2:80": DRAINING,
        "10.0.0.3:80": HEALTHY,
    }
    assert addresses(with_draining(merged, after, frozenset())) == addresses(after)
    assert with_draining(merged, after, frozenset()) == after


def test_endpoint_that_drains_takes_no_requests():
    assert not has_healthy(assignment("c", {"10.0.0.2:80": DRAINING}))
    assert not has_healthy(assignment("c", {}))
    assert has_healthy(assignment("c", {"10.0.0.1:80": HEALTHY, "10.0.0.2:80": DRAINING}))
