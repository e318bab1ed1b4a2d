"""When the Ready endpoints of a version carry a share."""

import pytest
from cluster_objects import destination_rule, host_objects, rollout, to, virtual_service

from tidegate.rollout.traffic import MatchKind, TesterMatch, TrafficSplit
from tidegate.traffic.cluster.capacity import count_endpoints, endpoints_needed
from tidegate.traffic.cluster.gates import shortfall
from tidegate.traffic.cluster.host_objects import ManifestParser
from tidegate.traffic.cluster.reading import view_of


def missing(weights, ready, *, waiting=None, before=(100, 0), testers=(), factor=1.0, **metadata):
    live = virtual_service(to("v2", before[1]), to("v1", before[0]), **metadata)
    objects = host_objects(live, destination_rule("v1", "v2"), ready=ready, waiting=waiting)
    view = view_of(rollout(), objects, ManifestParser())
    return shortfall(view, TrafficSplit(weights=weights, testers=testers), "v1", factor)


@pytest.mark.parametrize(
    ("share", "baseline", "factor", "needed"),
    [
        (0, 3, 1, 0),
        (0.1, 3, 1, 1),
        (1, 3, 1, 1),
        (33.3, 3, 1, 1),
        (33.4, 3, 1, 2),
        (50, 3, 1, 2),
        (100, 3, 1, 3),
        (100, 0, 1, 1),
        (100, 4, 0.5, 2),
        (100, 4, 0, 1),
        (70, 10, 1, 7),
    ],
)
def test_a_share_needs_its_part_of_the_baselines_endpoints(share, baseline, factor, needed):
    assert endpoints_needed(share, baseline, factor) == needed


def test_a_raise_waits_for_the_endpoints_of_its_share():
    words = missing({"v1": 50, "v2": 50}, {"v1": 3, "v2": 1}, waiting={"v2": 2})
    assert words == "v2 has 1 of 3 ready endpoints; 50 % needs 2"
    assert not missing({"v1": 50, "v2": 50}, {"v1": 3, "v2": 2})


def test_a_share_that_falls_needs_nothing():
    assert not missing({"v1": 60, "v2": 40}, {"v1": 3}, before=(50, 50))


def test_the_baseline_needs_one_endpoint_to_take_traffic_back():
    assert not missing({"v1": 100}, {"v1": 1, "v2": 3}, before=(50, 50))
    assert missing({"v1": 100}, {"v2": 3}, before=(50, 50)) == "v1 has no ready endpoint"


def test_a_candidate_waits_while_the_baseline_is_scaled_down():
    owned = {"annotations": {"tidegate.dev/rollout-capacity": "v1=3"}}
    words = missing({"v1": 50, "v2": 50}, {"v1": 2, "v2": 3}, **owned)
    assert words.startswith("v1 has 2 ready endpoints and had 3 when the rollout took the traffic")
    assert not missing({"v1": 50, "v2": 50}, {"v1": 3, "v2": 3}, **owned)


def test_a_testers_version_needs_an_endpoint():
    tester = TesterMatch(kind=MatchKind.HEADER, name="x-beta", value="1", version="v2")
    assert missing({"v1": 100}, {"v1": 1}, testers=(tester,)) == "v2 has no ready endpoint"
    assert not missing({"v1": 100}, {"v1": 1, "v2": 1}, testers=(tester,))


def test_a_subset_that_no_rule_defines_is_named():
    words = missing({"v1": 90, "v3": 10}, {"v1": 1})
    assert "no DestinationRule of vision.models.svc.cluster.local has the subset v3" in words
    assert "it has v1, v2" in words


def test_a_pod_in_two_slices_counts_once():
    objects = host_objects(ready={"v1": 2})
    twice = host_objects(ready={"v1": 2})
    object.__setattr__(objects, "slices", (*objects.slices, *twice.slices))
    assert count_endpoints(objects, {"version": "v1"}).ready == 2
