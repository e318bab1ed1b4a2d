"""What a real istiod makes of the VirtualServices that rollouts write: it keeps every part."""

import asyncio
import copy

import msgspec
import pytest
import pytest_asyncio
from cluster_objects import HOST, host_objects, istio, rollout
from istiod_control_plane import INGRESS, IstiodControlPlane
from mesh_objects import entry, gateway
from xds_reading import ROUTE

from tidegate.istio.annotations import RolloutName
from tidegate.kube.resources import ENVOY_FILTERS
from tidegate.rollout.traffic import MatchKind, Sticky, TesterMatch, TrafficSplit
from tidegate.traffic.cluster.host_objects import ManifestParser
from tidegate.traffic.cluster.owned_objects import owned_service, rule_body
from tidegate.traffic.cluster.reading import view_of
from tidegate.traffic.cluster.split_values import host_split
from tidegate.traffic.cluster.sticky import filter_body, sticky_annotation

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

PORT = 8080
CALLERS = "vision.example.com"
OWNER = RolloutName("models", "vision-v2")
BY_USER = Sticky(kind=MatchKind.HEADER, name="x-user")
BY_COOKIE = Sticky(kind=MatchKind.COOKIE, name="session")
SPLIT = TrafficSplit(
    weights={"v1": 89.5, "v2": 10.5},
    testers=(
        TesterMatch(kind=MatchKind.HEADER, name="x-beta", value="1", version="v2"),
        TesterMatch(kind=MatchKind.COOKIE, name="user", value="jo", version="v2"),
    ),
    mirrors={"v2": 20.0},
)
PARENT = istio(
    "VirtualService",
    "edge",
    {
        "hosts": [CALLERS],
        "gateways": ["in"],
        "http": [
            {
                "name": "grpc",
                "match": [{"uri": {"prefix": "/tidegate"}}],
                "timeout": "7s",
                "delegate": {"name": "vision-rollout", "namespace": "models"},
            }
        ],
    },
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def istiod(tmp_path_factory):
    async with IstiodControlPlane.running(tmp_path_factory.mktemp("istiod")) as running:
        yield running


def written(write, **traffic):
    """The VirtualService and the DestinationRule that a rollout writes."""
    others = (PARENT,) if write == "delegate" else ()
    objects = host_objects(*others, ready={"v1": 1, "v2": 1})
    spec = rollout(write, traffic=traffic)
    view = view_of(spec, objects, ManifestParser())
    assert not view.traffic.problem
    body = owned_service(
        *(view.routes, host_split(SPLIT, None), view.rule.wanted, "v1", OWNER, "19ac0f3e5b1")
    )
    return body, rule_body(view.rule.wanted)


async def routes_of(istiod, *objects):
    """The routes of the callers' host at the gateway."""
    host = entry({"v1": 9001, "v2": 9002}, host=HOST)
    await istiod.apply(gateway(PORT), host, *objects)
    return routes_in(await istiod.router_resources())


def routes_in(resources):
    """The routes of the callers' host among the resources of the gateway."""
    (routes,) = [
        virtual_host["routes"]
        for table in resources.by_type[ROUTE].values()
        for virtual_host in table["virtual_hosts"]
        if CALLERS in virtual_host["domains"]
    ]
    return routes


def check(routes, name):
    """Testers first, then the weights; all with copies as the split says."""
    assert [each["name"] for each in routes] == [
        f"{name('tidegate-tester-1')}@19ac0f3e5b1",
        f"{name('tidegate-tester-2')}@19ac0f3e5b1",
        f"{name('vision')}@19ac0f3e5b1",
    ]
    tester, _, weighted = routes
    assert tester["route"]["cluster"] == f"outbound|8500|v2|{HOST}"
    assert "x-beta" in str(tester["match"]["headers"])
    clusters = weighted["route"]["weighted_clusters"]["clusters"]
    shares = {each["name"].split("|")[2]: each["weight"] for each in clusters}
    assert shares == {"v2": 21, "v1": 179}
    (mirror,) = weighted["route"]["request_mirror_policies"]
    assert mirror["cluster"] == f"outbound|8500|v2|{HOST}"


async def test_a_delegates_routes_reach_the_gateway_with_what_the_other_says(istiod):
    routes = await routes_of(istiod, PARENT, *written("delegate"))
    check(routes, lambda name: f"grpc-{name}")
    for each in routes:
        assert each["match"]["prefix"] == "/tidegate"
        assert each["route"]["timeout"] == "7s"


async def test_own_routes_reach_the_gateway(istiod):
    body, rule = written("own", hosts=[CALLERS], gateways=["models/in"])
    check(await routes_of(istiod, body, rule), str)


@pytest.mark.parametrize(
    ("write", "sticky", "policy"),
    [
        ("own", BY_USER, {"header": {"header_name": "x-user"}}),
        ("delegate", BY_COOKIE, {"cookie": {"name": "session"}}),
    ],
)
async def test_an_envoy_filter_keeps_users_in_the_route_of_several_versions_alone(
    istiod, write, sticky, policy
):
    parent = copy.deepcopy(PARENT)
    parent["spec"]["http"][0]["match"][0]["name"] = "all"
    parents = (parent,) if write == "delegate" else ()
    before, after = ("grpc-", ".all") if write == "delegate" else ("", "")
    traffic = {"hosts": [CALLERS], "gateways": ["models/in"]} if write == "own" else {}
    objects = host_objects(*parents, ready={"v1": 1, "v2": 1})
    view = view_of(rollout(write, traffic=traffic), objects, ManifestParser())
    rule = view.rule.wanted
    split = msgspec.structs.replace(SPLIT, mirrors={}, testers=SPLIT.testers[:1])
    body = owned_service(
        *(view.routes, host_split(split, sticky_annotation(sticky)), rule, "v1", OWNER, "s7")
    )
    envoy_filter = ENVOY_FILTERS.body(
        filter_body("sticky", INGRESS, str(OWNER), view.filter_spec(sticky))
    )
    assert await istiod.verdict(body) is None
    await istiod.apply(
        *(gateway(PORT), entry({"v1": 9001, "v2": 9002}, host=HOST), envoy_filter),
        *(*parents, body, rule_body(rule)),
    )
    async with asyncio.timeout(30):
        # EnvoyFilters have no marker that shows when istiod has read them.
        while True:
            tester, route = routes_in(await istiod.router_resources())
            if "hash_policy" in route["route"]:
                break
    assert route["name"] == f"{before}tidegate-sticky.models.{view.name}@s7{after}"
    assert route["route"]["hash_policy"] == [policy]
    weighted = route["route"]["weighted_clusters"]
    assert weighted["use_hash_policy"] is True
    shares = [(each["name"].split("|")[2], each["weight"]) for each in weighted["clusters"]]
    # The last one is the EnvoyFilter's: without it a route to nothing would be possible.
    assert shares == [("v2", 10_500), ("v1", 89_500), ("v1", 1)]
    assert "hash_policy" not in tester["route"]
    assert tester["route"]["cluster"] == f"outbound|8500|v2|{HOST}"


@pytest.mark.parametrize("write", ["own", "delegate"])
async def test_istio_accepts_what_rollouts_write(istiod, write):
    for each in written(write):
        assert await istiod.verdict(each) is None
