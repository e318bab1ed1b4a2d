"""When a rollout can keep users on one version on Istio, and when the objects say that it does."""

import pytest
from cluster_objects import HOST, destination_rule, host_objects, istio, rollout, virtual_service

from tidegate.istio.annotations import RolloutName
from tidegate.rollout.traffic import MatchKind, Sticky, TrafficSplit
from tidegate.traffic.cluster.host_objects import ManifestParser
from tidegate.traffic.cluster.owned_objects import owned_service
from tidegate.traffic.cluster.reading import view_of
from tidegate.traffic.cluster.split_values import host_split, ordered_split, probe_split
from tidegate.traffic.cluster.sticky import filter_body, sticky_annotation

BY_USER = Sticky(kind=MatchKind.HEADER, name="x-user")
BY_COOKIE = Sticky(kind=MatchKind.COOKIE, name="session")
OWNER = RolloutName("models", "vision-v2")
RULE = destination_rule("v1", "v2")
NOWHERE = {"models": None, "edge": None}
SPECS = {BY_USER: {"header": "x-user"}, BY_COOKIE: {"cookie": "session"}}


def parent(name="", matches=()):
    route = {"delegate": {"name": "vision-rollout"}}
    if name:
        route["name"] = name
    if matches:
        route["match"] = [
            {"uri": {"prefix": "/"}} | ({"name": each} if each else {}) for each in matches
        ]
    return istio("VirtualService", "edge", {"hosts": ["vision.example.com"], "http": [route]})


def view(write, *objects, sticky=BY_USER, filters=None, rule=RULE, **spec):
    others = (parent(),) if write == "delegate" and not objects else ()
    found = host_objects(
        *objects,
        *others,
        rule,
        ready={"v1": 2, "v2": 2},
        filters=NOWHERE if filters is None else filters,
    )
    if sticky is not None:
        spec["sticky"] = SPECS[sticky]
    return view_of(rollout(write, **spec), found, ManifestParser())


def written(found, sticky=BY_USER, weights=None, revision="s1"):
    """The VirtualService that a sticky split makes."""
    split = TrafficSplit(weights=weights or {"v2": 10.0, "v1": 90.0}, sticky=sticky)
    (rule,) = found.istio.destination_rules.values()
    annotation = None if sticky is None else sticky_annotation(sticky)
    body = owned_service(
        *(found.routes, host_split(split, annotation), rule, "v1", OWNER, revision)
    )
    if sticky is not None:
        body["metadata"]["annotations"]["tidegate.dev/sticky"] = str(annotation)
    return body


def in_place(found, sticky=BY_USER, **changes):
    """The EnvoyFilters of a host."""
    made = filter_body("n", "ns", str(OWNER), found.filter_spec(sticky) | changes)
    return {namespace: made | {"kind": "EnvoyFilter"} for namespace in NOWHERE}


def test_patch_keeps_nobody_and_says_what_does():
    words = view("patch", virtual_service(*written(view("own"))["spec"]["http"][0]["route"]))
    assert "use `write: delegate` or `write: own`" in words.traffic.problem
    assert "`testers`" in words.traffic.problem


@pytest.mark.parametrize("write", ["own", "delegate"])
def test_a_router_without_the_setting_refuses_and_names_setting_and_component(write):
    words = view(write, filters={}).traffic.problem
    assert "--sticky-namespaces" in words
    assert "mesh/istio/components/sticky" in words
    assert not view(write, filters={}, sticky=None).traffic.problem
    assert not view(write).traffic.problem


@pytest.mark.parametrize(
    ("policy", "sticky", "refused"),
    [
        ({"httpHeaderName": "x-user"}, BY_USER, False),
        ({"httpHeaderName": "x-session"}, BY_USER, True),
        ({"useSourceIp": True}, BY_USER, True),
        ({"httpCookie": {"name": "session"}}, BY_COOKIE, False),
        # Envoy would make a cookie of its own for who has none.
        ({"httpCookie": {"name": "session", "ttl": "60s"}}, BY_COOKIE, True),
        ({"httpHeaderName": "x-user"}, BY_COOKIE, True),
    ],
)
@pytest.mark.parametrize("place", ["rule", "port", "subset"])
def test_a_rule_that_hashes_something_else_is_refused(policy, sticky, refused, place):
    rule = destination_rule("v1", "v2")
    balancer = {"loadBalancer": {"consistentHash": policy}}
    if place == "rule":
        rule["spec"]["trafficPolicy"] = balancer
    elif place == "port":
        rule["spec"]["trafficPolicy"] = {
            "portLevelSettings": [{"port": {"number": 8500}, **balancer}]
        }
    else:
        rule["spec"]["subsets"][1]["trafficPolicy"] = balancer
    words = view("own", rule=rule, sticky=sticky).traffic.problem
    assert ("hashes something else than" in words) == refused
    if refused:
        assert "write `consistentHash: {" in words


def test_an_envoy_filter_of_somebody_else_is_not_taken_over():
    filters = in_place(view("own"))
    for each in filters.values():
        each["metadata"] = {"name": "n", "namespace": "models"}
    words = view("own", filters=filters).traffic.problem
    assert "EnvoyFilter models/n is there and Tidegate did not make it" in words


@pytest.mark.parametrize("sticky", [BY_USER, BY_COOKIE])
@pytest.mark.parametrize("write", ["own", "delegate"])
def test_a_split_is_sticky_if_annotation_and_filters_say_so(write, sticky):
    others = (parent("edge"),) if write == "delegate" else ()
    bare = view(write, *others, sticky=sticky)
    service, filters = written(bare, sticky), in_place(bare, sticky)
    found = view(write, service, *others, sticky=sticky, filters=filters).traffic
    assert found.problem == ""
    assert found.split == TrafficSplit(weights={"v2": 10.0, "v1": 90.0}, sticky=sticky)


def test_a_filter_that_is_missing_or_changed_keeps_nobody():
    bare = view("own")
    service, filters = written(bare), in_place(bare)
    unlabelled = filters["edge"] | {"metadata": {"name": "n", "namespace": "edge"}}
    for wrong in (
        filters | {"edge": None},
        in_place(bare, BY_COOKIE),
        in_place(bare, configPatches=[]),
        filters | {"edge": unlabelled},
    ):
        assert view("own", service, filters=wrong).traffic.split.sticky is None


def test_filters_alone_keep_nobody():
    bare = view("own")
    service = written(bare, None)
    assert view("own", service, filters=in_place(bare)).traffic.split.sticky is None


def test_the_annotation_of_somebody_else_keeps_nobody():
    bare = view("own")
    service = written(bare)
    service["metadata"]["labels"] = {}
    assert view("own", service, filters=in_place(bare)).traffic.split.sticky is None


def patches(found, sticky=BY_USER):
    """The names of routes that the EnvoyFilters have, by context."""
    named = {"GATEWAY": [], "SIDECAR_OUTBOUND": []}
    for each in found.filter_spec(sticky)["configPatches"]:
        match = each["match"]
        named[match["context"]].append(match["routeConfiguration"]["vhost"]["route"]["name"])
    assert named["GATEWAY"] == named["SIDECAR_OUTBOUND"]
    return named["GATEWAY"]


def test_filters_name_the_routes_of_gateways_and_sidecars():
    assert patches(view("own")) == [f"tidegate-sticky.models.vision@s{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("parents", "around"),
    [
        ([parent()], [("", "")]),
        ([parent("edge")], [("edge-", "")]),
        ([parent("edge", ["", "unary"])], [("edge-", ""), ("edge-", ".unary")]),
        ([parent("edge", ["a", "b"])], [("edge-", ".a"), ("edge-", ".b")]),
    ],
)
def test_filters_name_a_delegates_routes_as_istiod_does(parents, around):
    name = "tidegate-sticky.models.vision-rollout"
    wanted = [f"{before}{name}@s{n}{after}" for before, after in around for n in range(8)]
    assert patches(view("delegate", *parents)) == wanted


def test_filters_hash_the_user_and_let_a_route_be_without_versions():
    for sticky, policy in (
        (BY_USER, {"header": {"header_name": "x-user"}}),
        (BY_COOKIE, {"cookie": {"name": "session"}}),
    ):
        (value,) = {
            str(each["patch"]["value"]): each["patch"]["value"]
            for each in view("own").filter_spec(sticky)["configPatches"]
        }.values()
        assert value["route"]["hash_policy"] == [policy]
        assert value["route"]["weighted_clusters"] == {
            "clusters": [{"name": f"outbound|8500|v1|{HOST}", "weight": 1}],
            "use_hash_policy": True,
        }


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({"v2": 10.0, "v1": 90.0}, [("v2", 10_000), ("v1", 90_000)]),
        ({"v2": 0.5, "v1": 99.5}, [("v2", 500), ("v1", 99_500)]),
        ({"v2": 33.333, "v1": 66.667}, [("v2", 33_333), ("v1", 66_667)]),
        ({"v2": 0.001, "v1": 99.999}, [("v2", 1), ("v1", 99_999)]),
    ],
)
def test_weights_of_a_route_that_keeps_users_have_one_sum(weights, shares):
    (route,) = written(view("own"), weights=weights)["spec"]["http"]
    assert route["name"] == "tidegate-sticky.models.vision@s1"
    found = [(each["destination"]["subset"], each["weight"]) for each in route["route"]]
    assert found == shares


@pytest.mark.parametrize("weights", [{"v1": 100.0}, {"v2": 100.0, "v1": 0.0}])
def test_a_route_to_one_version_never_has_the_name(weights):
    (route,) = written(view("own"), weights=weights, revision="7f")["spec"]["http"]
    assert route["name"] == "vision@7f"
    assert sum(each["weight"] for each in route["route"]) == 100


def test_one_version_left_by_hand_in_a_route_that_keeps_users_is_a_problem():
    bare = view("own")
    service = written(bare)
    for each, weight in zip(service["spec"]["http"][0]["route"], (100, 0), strict=True):
        each["weight"] = weight
    words = view("own", service, filters=in_place(bare)).traffic.problem
    assert "only one version has weight in it" in words
    assert "remove the name" in words


def test_versions_keep_their_places_and_a_probe_keeps_users():
    before = TrafficSplit(weights={"v3": 30.0, "v1": 70.0}, sticky=BY_USER)
    after = TrafficSplit(weights={"v1": 50.0, "v2": 20.0, "v3": 30.0}, sticky=BY_USER)
    probe = probe_split(before, after, 1.0)
    assert probe.sticky == BY_USER
    for each in (probe, after):
        assert list(ordered_split(each, ("v2", "v3")).weights) == ["v2", "v3", "v1"]
