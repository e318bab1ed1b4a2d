"""Guarded patches: what they change, what they stand on, and what they leave alone."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.istio import IstioObjects, edit_manifest, parse_manifest
from tidegate.istio.annotations import RolloutName
from tidegate.istio.editing.splits import HostSplit, with_split
from tidegate.istio.editing.tester_routes import SplitTester
from tidegate.traffic.cluster.guarded_patch import changes, guarded_patch, shape_of

RULE = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "DestinationRule",
    "metadata": {"name": "vision", "namespace": "models"},
    "spec": {"host": "vision", "subsets": [{"name": "v1"}, {"name": "v2"}]},
}
OWNER = RolloutName("models", "vision-v2")


class TestFailedError(Exception):
    __test__ = False


def patched(value, operations):
    """Applies a JSON patch as RFC 6902 says."""
    value = copy.deepcopy(value)
    for each in operations:
        *above, last = [
            part.replace("~1", "/").replace("~0", "~") for part in each["path"].split("/")[1:]
        ]
        place = value
        for part in above:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key = int(last) if isinstance(place, list) else last
        match each["op"]:
            case "test":
                if place[key] != each["value"]:
                    raise TestFailedError(each["path"])
            case "add" if isinstance(place, list):
                place.insert(key, each["value"])
            case "remove":
                del place[key]
            case "replace":
                place[key] = each["value"]
            case _:
                place[key] = each["value"]
    return value


def service(*http, annotations=None):
    metadata = {"name": "vision", "namespace": "models", "resourceVersion": "42"}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": metadata | ({"annotations": annotations} if annotations else {}),
        "spec": {"hosts": ["vision"], "http": list(http)},
    }


def to(subset, weight, **more):
    return {"destination": {"host": "vision", "subset": subset}, "weight": weight, **more}


def split(manifest, weights, owner=OWNER, **more):
    objects = IstioObjects.of([parse_manifest(manifest), parse_manifest(RULE)])
    edited = with_split(objects, "vision", HostSplit(weights=weights, **more), owner)
    return edit_manifest(manifest, next(iter(edited.virtual_services.values())))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text("ab~/", max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab~/", max_size=3), inner),
    max_leaves=12,
)


@given(JSON, JSON)
def test_a_patch_makes_one_value_of_the_other(before, after):
    whole = patched({"x": before}, changes({"x": before}, {"x": after}))
    assert json.dumps(whole, sort_keys=True) == json.dumps({"x": after}, sort_keys=True)


FOREIGN = st.dictionaries(
    st.sampled_from(["fromTheFuture", "another", "timeouts"]),
    st.one_of(st.booleans(), st.integers(0, 9), st.just({"deep": [1, {"a": None}]})),
    max_size=2,
)


@given(
    st.lists(st.tuples(FOREIGN, FOREIGN, st.integers(1, 99)), min_size=1, max_size=3),
    st.integers(0, 100),
    st.dictionaries(st.sampled_from(["team", "example.com/a~b"]), st.text("xy", max_size=3)),
)
def test_what_others_wrote_survives_and_comes_back_exactly(routes, share, annotations):
    http = [
        {
            "match": [{"uri": {"prefix": f"/{index}"}, "sourceLabels": {"app": "shop"}}],
            "route": [to("v2", weight, **inner), to("v1", 100 - weight)],
            **outer,
        }
        for index, (outer, inner, weight) in enumerate(routes)
    ]
    # All routes divide alike at first, as a rollout asks for.
    for each in http:
        each["route"][0]["weight"], each["route"][1]["weight"] = 0, 100
    before = service(*http, annotations=annotations)
    during = split(before, {"v1": 100 - share, "v2": share})
    sent = patched(before, guarded_patch(before, during))
    assert sent == during
    for route, foreign in zip(sent["spec"]["http"], routes, strict=True):
        assert foreign[0].items() <= route.items()
        assert foreign[1].items() <= route["route"][0].items()
    back = split(sent, {"v1": 100}, owner=None)
    given_back = patched(sent, guarded_patch(sent, back))
    given_back["metadata"].setdefault("annotations", {})
    before["metadata"].setdefault("annotations", {})
    assert given_back == before


def test_a_change_of_weights_writes_the_weights_and_the_owner_alone():
    before = service({"route": [to("v2", 0), to("v1", 100)]})
    operations = guarded_patch(before, split(before, {"v1": 90, "v2": 10}))
    written = {each["path"] for each in operations if each["op"] != "test"}
    assert written == {
        "/metadata/resourceVersion",
        "/metadata/annotations",
        "/spec/http/0/route/0/weight",
        "/spec/http/0/route/1/weight",
    }


def test_routes_of_testers_are_added_and_removed_beside_the_others():
    before = service({"name": "other", "match": [{"headers": {"a": {}}}], "route": [to("v1", 100)]})
    before["spec"]["http"].append({"route": [to("v1", 100)]})
    tester = SplitTester(header="x-beta", value="1", subset="v2")
    during = split(before, {"v1": 100}, testers=(tester,))
    added = guarded_patch(before, during)
    assert [each["op"] for each in added if each["path"] == "/spec/http/0"] == ["add"]
    assert patched(before, added) == during
    back = split(during, {"v1": 100}, owner=None)
    assert patched(during, guarded_patch(during, back))["spec"] == before["spec"]


@pytest.mark.parametrize(
    "reshape",
    [
        lambda spec: spec["hosts"].append("shop"),
        lambda spec: spec["http"].reverse(),
        lambda spec: spec["http"][1]["route"].pop(),
        lambda spec: spec["http"][1]["route"].reverse(),
        lambda spec: spec["http"][0]["match"][0].update(port=80),
        lambda spec: spec["http"][1]["route"][0]["destination"].update(subset="v3"),
        lambda spec: spec["http"].pop(0),
    ],
    ids=["host", "order", "fewer", "swapped", "match", "subset", "gone"],
)
def test_a_patch_fails_on_routes_that_somebody_has_reshaped(reshape):
    before = service(
        {"match": [{"headers": {"a": {"exact": "b"}}}], "route": [to("v1", 100)]},
        {"route": [to("v2", 0), to("v1", 100)]},
    )
    operations = guarded_patch(before, split(before, {"v1": 90, "v2": 10}))
    now = copy.deepcopy(before)
    reshape(now["spec"])
    assert shape_of(now) != shape_of(before)
    with pytest.raises((TestFailedError, IndexError, KeyError)):
        patched(now, operations)


def test_nothing_is_sent_where_nothing_changes():
    before = service({"route": [to("v1", 100)]})
    assert guarded_patch(before, copy.deepcopy(before)) == []


def test_true_and_one_are_two_values():
    assert list(changes({"a": True}, {"a": 1})) == [{"op": "replace", "path": "/a", "value": 1}]
