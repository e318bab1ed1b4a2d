"""Shifts of routes and edits of subsets."""

import pytest

from tidegate.istio import EditError, Kind, ObjectName, parse
from tidegate.istio.annotations import Sticky
from tidegate.istio.destination_rule import Subset
from tidegate.istio.editing.shifts import (
    Shift,
    find_host,
    header_condition,
    shift,
    sticky_source,
)
from tidegate.istio.editing.subsets import add_subset, remove_subset

HOST = "vision.models.svc.cluster.local"
VISION = ObjectName(Kind.VIRTUAL_SERVICE, "models", "vision")
MESH = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vision, namespace: models}
spec:
  hosts: [vision.models.svc.cluster.local, llm.models.svc.cluster.local]
  resolution: STATIC
  ports: [{number: 8500, name: grpc, protocol: GRPC}]
  workloadSelector: {labels: {app: vision}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: vision
  subsets: [{name: v1}, {name: v2}, {name: v3}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vision, namespace: models}
spec:
  hosts: ["*"]
  gateways: [ingress]
  http:
    - match: [{uri: {prefix: /llm}}]
      route: [{destination: {host: llm}}]
    - name: classify
      match: [{uri: {prefix: /vision}}, {uri: {prefix: /infer}}]
      route: [ROUTE]
"""
ONE = "{destination: {host: vision, subset: v1, port: {number: 8500}}}"
TWO = (
    "{destination: {host: vision, subset: v2}, weight: 20}, "
    "{destination: {host: vision, subset: v1}, weight: 80}"
)


def objects(route=ONE):
    return parse(MESH.replace("ROUTE", route), "mesh")


def weights(after, rule=-1):
    return [
        (each.destination.subset, each.weight)
        for each in after.virtual_services[VISION].http[rule].route
    ]


@pytest.mark.parametrize(
    ("route", "asked", "then"),
    [
        (ONE, {"v1": 90, "v2": 10}, [("v2", 10), ("v1", 90)]),
        (ONE, {"v2": 10}, [("v2", 10), ("v1", 90)]),
        (ONE, {"v2": 0}, [("v2", 0), ("v1", 100)]),
        (ONE, {"v2": 100}, [("v2", 100), ("v1", 0)]),
        (TWO, {"v2": 50}, [("v2", 50), ("v1", 50)]),
        (TWO, {"v3": 10}, [("v3", 10), ("v2", 18), ("v1", 72)]),
        (TWO, {"v3": 1}, [("v3", 1), ("v2", 20), ("v1", 79)]),
        (TWO.replace("80", "0"), {"v2": 30}, [("v2", 30), ("v1", 70)]),
        (
            f"{{destination: {{host: vision, subset: v3}}}}, {TWO}",
            {"v1": 90, "v2": 10},
            [("v3", 0), ("v2", 10), ("v1", 90)],
        ),
        (TWO, {"v1": 99.5, "v2": 0.5}, [("v2", 1), ("v1", 199)]),
        (TWO, {"v1": 10, "v2": 90}, [("v2", 90), ("v1", 10)]),
    ],
)
def test_weights_go_to_subsets_and_new_ones_come_first(route, asked, then):
    after = shift(objects(route), Shift(host="vision", weights=asked))
    assert weights(after) == then
    assert weights(after, 0) == [(None, 0)]


def test_new_destination_has_the_port_of_the_others():
    after = shift(objects(), Shift(host="vision", weights={"v2": 10}))
    new = after.virtual_services[VISION].http[1].route[0].destination
    assert (new.host, new.port) == (HOST, 8500)


def test_match_adds_a_route_before_the_one_it_narrows_and_a_second_shift_finds_it():
    name, condition = header_condition("header:X-User-Tier=beta")
    change = Shift(host="vision", weights={"v2": 100}, match={name: condition})
    once = shift(objects(), change)
    rules = once.virtual_services[VISION].http
    assert [rule.name for rule in rules] == [None, "classify-x-user-tier-beta", "classify"]
    assert [list(each.headers) for each in rules[1].match] == [["x-user-tier"]] * 2
    assert [each.uri.value for each in rules[1].match] == ["/vision", "/infer"]
    assert weights(once, 1) == [("v2", 100), ("v1", 0)]
    assert weights(once, 2) == [("v1", 0)]
    again = shift(once, Shift(host="vision", weights={"v2": 50}, match={name: condition}))
    assert weights(again, 1) == [("v2", 50), ("v1", 50)]
    assert len(again.virtual_services[VISION].http) == 3
    plain = shift(again, Shift(host="vision", weights={"v2": 5}))
    assert weights(plain, 1) == [("v2", 50), ("v1", 50)]
    assert weights(plain, 2) == [("v2", 5), ("v1", 95)]


def test_sticky_and_mirrors_are_set_and_a_mirror_of_zero_ends():
    change = Shift(
        host=HOST, sticky=sticky_source("header:x-user-id"), mirrors={"v3": 5, "v2": 1.5}
    )
    after = shift(objects(), change)
    service = after.virtual_services[VISION]
    assert service.annotations.sticky == Sticky("x-user-id")
    mirrors = [(each.destination.subset, each.percentage) for each in service.http[1].mirrors]
    assert mirrors == [("v3", 5), ("v2", 1.5)]
    ended = shift(after, Shift(host="vision", mirrors={"v3": 0}))
    (left,) = ended.virtual_services[VISION].http[1].mirrors
    assert left.destination.subset == "v2"


def test_single_mirror_becomes_one_of_several():
    before = parse(
        MESH.replace(
            "route: [ROUTE]",
            f"route: [{ONE}]\n      mirror: {{host: vision, subset: v3}}\n"
            "      mirrorPercentage: {value: 7}",
        ),
        "mesh",
    )
    after = shift(before, Shift(host="vision", mirrors={"v2": 1}))
    rule = after.virtual_services[VISION].http[1]
    assert rule.mirror is None
    assert rule.mirror_percentage is None
    mirrors = [(each.destination.subset, each.percentage) for each in rule.mirrors]
    assert mirrors == [("v3", 7), ("v2", 1)]


def test_shift_that_changes_nothing_leaves_the_identical_objects():
    before = objects(TWO)
    after = shift(before, Shift(host="vision", weights={"v1": 80, "v2": 20}))
    assert after.changed_from(before) == frozenset()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Shift(host="visoin"), "there is no host visoin; did you mean vision?"),
        (Shift(host="zzz"), f"there is no host zzz; known are {HOST}, llm"),
        (
            Shift(host="vision", weights={"v4": 1}),
            "has no subset v4: DestinationRule models/vision has v1, v2, v3",
        ),
        (Shift(host="llm", weights={"v1": 1}), "no subset v1: no DestinationRule defines any"),
        (Shift(host="vision", weights={"v1": -1}), "the share of v1 cannot be -1"),
        (Shift(host="vision", mirrors={"v1": 101}), "the mirror of v1 cannot be 101 %"),
        (
            Shift(host="vision", weights={"v1": 0}),
            "v1=0 adds up to 0 %, and .* has no other subset for the rest",
        ),
    ],
)
def test_impossible_shift_is_refused_with_a_fix(change, words):
    with pytest.raises(EditError, match=words):
        shift(objects(), change)


def test_host_without_a_route_is_refused():
    bare = objects().without(VISION)
    with pytest.raises(
        EditError, match=r"no route sends requests to vision.*: add a VirtualService"
    ):
        shift(bare, Shift(host="vision", weights={"v1": 1}))


def test_host_is_found_by_an_unambiguous_first_label():
    two = parse(MESH.replace("llm.models", "vision.other").replace("ROUTE", ONE), "mesh")
    assert find_host(objects(), "vision") == HOST
    assert find_host(objects(), "vision.models") == HOST
    with pytest.raises(EditError, match=r"several hosts are called vision: vision\.models"):
        find_host(two, "vision")


def test_subset_is_added_and_replaced():
    after = add_subset(objects(), HOST, Subset(name="v4", labels={"a": "b"}))
    after = add_subset(after, HOST, Subset(name="v1", labels={"c": "d"}))
    (rule,) = after.destination_rules.values()
    assert [(each.name, each.labels) for each in rule.subsets] == [
        ("v1", {"c": "d"}),
        ("v2", {}),
        ("v3", {}),
        ("v4", {"a": "b"}),
    ]


def test_subset_is_removed_only_when_no_request_goes_there():
    with pytest.raises(EditError, match="sends requests to the subset v2"):
        remove_subset(objects(TWO), HOST, "v2")
    mirrored = shift(objects(), Shift(host="vision", mirrors={"v2": 1}))
    with pytest.raises(EditError, match="mirrors requests to the subset v2"):
        remove_subset(mirrored, HOST, "v2")
    idle = shift(objects(TWO), Shift(host="vision", weights={"v2": 0}))
    after = remove_subset(idle, HOST, "v2")
    assert weights(after) == [("v1", 100)]
    (rule,) = after.destination_rules.values()
    assert [each.name for each in rule.subsets] == ["v1", "v3"]
    with pytest.raises(EditError, match=r"has no subset v2: .* has v1, v3"):
        remove_subset(after, HOST, "v2")


@pytest.mark.parametrize("text", ["x-user-tier=beta", "header:=b", "header:a b=c", "header:a="])
def test_invalid_condition_is_refused(text):
    with pytest.raises(EditError, match="write it like header:x-user-tier=beta"):
        header_condition(text)


def test_invalid_sticky_source_is_refused():
    with pytest.raises(EditError, match="write it like header:x-user-id"):
        sticky_source("ip:a")


def test_sticky_source_is_a_header_or_a_cookie():
    assert sticky_source("header:X-User-Id") == Sticky(header="x-user-id")
    assert sticky_source("cookie:User") == Sticky(cookie="User")
    assert str(sticky_source("cookie:User")) == "cookie:User"
