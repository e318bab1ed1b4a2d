"""How the objects of a host are read for each way of writing, without an API server."""

import pytest
from cluster_objects import (
    HOST,
    destination_rule,
    host_objects,
    istio,
    rollout,
    to,
    virtual_service,
)

from tidegate.rollout.traffic import TrafficSplit
from tidegate.traffic.cluster.host_objects import ManifestParser, service_host
from tidegate.traffic.cluster.owned_objects import planned_subsets
from tidegate.traffic.cluster.reading import NotRoutedError, view_of
from tidegate.traffic.cluster.split_values import probe_split
from tidegate.traffic.router import TrafficError

OURS = {"labels": {"app.kubernetes.io/managed-by": "tidegate"}}
RULE = destination_rule("v1", "v2")


def view(write, *objects, ready=None, **more):
    spec = more.pop("spec", {})
    found = host_objects(*objects, ready=ready or {"v1": 2, "v2": 1}, **more)
    return view_of(rollout(write, **spec), found, ManifestParser())


def problem(write, *objects, **more):
    return view(write, *objects, **more).traffic.problem


@pytest.mark.parametrize(
    ("host", "full"),
    [("vision", HOST), (HOST, HOST)],
)
def test_a_short_host_is_a_service_of_the_rollouts_namespace(host, full):
    assert service_host(host, "models").name == full


@pytest.mark.parametrize("host", ["vision.shop.svc.cluster.local", "api.example.com", "vision.x"])
def test_a_host_elsewhere_is_refused(host):
    with pytest.raises(TrafficError, match="is not a Service of the namespace models") as error:
        service_host(host, "models")
    assert error.value.permanent


def test_patch_reads_the_only_virtual_service_that_routes_the_host():
    other = virtual_service(to("v1", 100, host="shop"), name="shop")
    found = view("patch", other, virtual_service(to("v2", 10), to("v1", 90, host=HOST)), RULE)
    assert found.name == "vision"
    assert found.traffic.split == TrafficSplit(weights={"v2": 10.0, "v1": 90.0})
    assert found.traffic.versions == ("v1", "v2")
    assert found.traffic.ready == ("v1", "v2")
    assert found.traffic.owner == found.traffic.problem == ""


def test_patch_asks_for_a_name_where_several_route_the_host():
    two = (virtual_service(to("v1")), virtual_service(to("v1"), name="edge"))
    assert "(edge, vision); name one as spec.traffic.virtualService" in problem("patch", *two, RULE)
    assert not problem("patch", *two, RULE, spec={"traffic": {"virtualService": "edge"}})


def test_patch_stays_with_the_virtual_service_that_it_owns():
    owned = virtual_service(to("v1"), annotations={"tidegate.dev/rollout": "models/vision-v2"})
    found = view("patch", virtual_service(to("v1"), name="edge"), owned, RULE)
    assert found.name == "vision"
    assert not found.obstacle


def test_patch_waits_for_a_virtual_service():
    with pytest.raises(NotRoutedError, match="no VirtualService of the namespace models") as error:
        view("patch", RULE)
    assert not error.value.permanent


def test_routes_to_every_endpoint_are_a_problem():
    assert "name a subset" in problem("patch", virtual_service(to(None)), RULE)


def test_a_foreign_sticky_annotation_divides_nothing_on_istio():
    sticky = virtual_service(to("v1"), annotations={"tidegate.dev/sticky": "header:x-user"})
    assert view("patch", sticky, RULE).traffic.split.sticky is None


def test_own_reads_what_it_will_make():
    found = view("own")
    assert found.live is None
    assert found.traffic.split == TrafficSplit(weights={"v1": 100.0})
    assert found.traffic.versions == ("v1", "v2")
    assert found.traffic.ready == ("v1", "v2")
    assert not found.traffic.problem


def test_own_uses_the_subsets_of_a_rule_that_others_made():
    rule = istio(
        "DestinationRule",
        "rules",
        {"host": HOST, "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2"}]},
    )
    found = view("own", rule, ready={"v1": 1, "v3": 1})
    assert found.rule is None
    # A subset without labels has every endpoint.
    assert (found.count("v1").ready, found.count("v2").ready) == (1, 2)


def test_own_takes_over_nothing():
    words = problem("own", virtual_service(to("v1")), RULE)
    assert "VirtualService models/vision is there and Tidegate did not make it" in words
    assert "use `write: patch`" in words
    assert not problem("own", virtual_service(to("v1"), **OURS), RULE)


def test_own_takes_over_no_rule():
    with pytest.raises(TrafficError, match="DestinationRule models/vision is there") as error:
        view("own", destination_rule("v1", host="shop"))
    assert error.value.permanent


@pytest.mark.parametrize(
    ("hosts", "gateways", "overlaps"),
    [
        (["vision"], None, True),
        ([HOST], ["mesh"], True),
        (["vision"], ["edge"], False),
        (["shop"], None, False),
    ],
)
def test_own_refuses_a_second_virtual_service_for_the_same_callers(hosts, gateways, overlaps):
    spec = {"hosts": hosts, "http": [{"route": [to("v1")]}]}
    if gateways:
        spec["gateways"] = gateways
    words = problem("own", istio("VirtualService", "other", spec), RULE)
    assert ("VirtualService models/other also routes" in words) == overlaps


def parent(delegate, namespace="models"):
    spec = {"hosts": ["vision.example.com"], "http": [{"delegate": delegate}]}
    return istio("VirtualService", "edge", spec, namespace)


def test_delegate_needs_a_virtual_service_that_delegates_to_it():
    words = problem("delegate", RULE)
    assert "no VirtualService delegates to models/vision-rollout" in words
    assert "`delegate: {name: vision-rollout, namespace: models}`" in words
    ours, full = {"name": "vision-rollout"}, {"name": "vision-rollout", "namespace": "models"}
    assert not problem("delegate", parent(ours), RULE)
    assert not problem("delegate", RULE, delegating=[parent(full, namespace="edge")])
    assert problem("delegate", parent(ours | {"namespace": "shop"}), RULE)
    assert problem("delegate", RULE, delegating=[parent(ours, namespace="edge")])


def test_own_names_the_port_of_a_service_with_several():
    with pytest.raises(TrafficError, match=r"has the ports 80, 8500; name one as spec\.traffic"):
        view("own", ports=(80, 8500))
    with pytest.raises(TrafficError, match="has no port 81"):
        view("own", ports=(80,), spec={"traffic": {"port": 81}})
    found = view("own", ports=(80, 8500), spec={"traffic": {"port": 80}})
    assert found.routes.port == 80


@pytest.mark.parametrize(
    ("routes", "ready", "kept"),
    [
        ([to("v0", 0), to("v1", 100)], {}, True),
        ([to("v1", 100)], {"v0": 1}, True),
        ([to("v1", 100)], {"v1": 1}, False),
    ],
    ids=["named", "has-pods", "idle"],
)
def test_a_subset_leaves_once_no_route_names_it_and_no_pod_is_left(routes, ready, kept):
    rule = destination_rule("v0", "v1", **OURS)
    objects = host_objects(virtual_service(*routes, **OURS), rule, ready=ready)
    (parsed,) = ManifestParser().destination_rules(objects.rules())
    assert ("v0" in planned_subsets(rollout("own"), objects, parsed)) == kept


@pytest.mark.parametrize(
    ("before", "after", "probe"),
    [
        ({"v1": 100}, {"v1": 50, "v2": 50}, {"v1": 99, "v2": 1}),
        ({"v1": 100}, {"v2": 100}, {"v1": 99, "v2": 1}),
        ({"v1": 70, "v3": 30}, {"v1": 40, "v2": 60}, {"v1": 69, "v3": 30, "v2": 1}),
        ({"v1": 100}, {"v1": 99.5, "v2": 0.5}, None),
        ({"v1": 100}, {"v1": 99, "v2": 1}, None),
        ({"v1": 90, "v2": 10}, {"v1": 50, "v2": 50}, None),
        ({"v1": 100, "v2": 0}, {"v1": 90, "v2": 10}, {"v1": 99, "v2": 1}),
    ],
)
def test_a_version_without_traffic_gets_the_smallest_share_first(before, after, probe):
    found = probe_split(TrafficSplit(weights=before), TrafficSplit(weights=after), 1.0)
    assert (found and found.weights) == probe
