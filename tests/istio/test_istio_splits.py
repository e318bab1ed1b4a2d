"""Splits: a host's requests divided exactly so, read back, and given back as they were."""

import json
import re
from dataclasses import replace
from fractions import Fraction

import pytest
from examples import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mesh_objects import entry, rule, text, to, virtual

from tidegate.istio import (
    EditError,
    IstioObjects,
    Kind,
    ObjectName,
    edit_manifest,
    parse,
    parse_manifest,
)
from tidegate.istio.annotations import RolloutName, Sticky
from tidegate.istio.editing.plain_values import plain
from tidegate.istio.editing.split_reading import read_split
from tidegate.istio.editing.splits import HostSplit, with_split
from tidegate.istio.editing.tester_routes import SplitTester
from tidegate.istio.expressions import full_match

HOST = "vision.models.svc.cluster.local"
VISION = ObjectName(Kind.VIRTUAL_SERVICE, "models", "vision")
OWNER = RolloutName("models", "vision-v2")


def objects(*http, annotations=None, more=()):
    """Objects of a host whose VirtualService has these routes."""
    return parse(
        text(entry({}), rule(), virtual(*http, annotations=annotations), *more).replace(
            '"endpoints": []', '"endpoints": [{"address": "127.0.0.1"}]'
        ),
        "mesh",
    )


def split(testers=(), sticky=None, mirrors=None, **weights):
    return HostSplit(weights=weights, testers=tuple(testers), sticky=sticky, mirrors=mirrors or {})


def http(found):
    return found.virtual_services[VISION].http


def shares(route):
    return [(each.destination.subset, each.weight) for each in route.route]


def test_every_subset_gets_exactly_its_share_and_those_not_named_get_nothing():
    before = objects({"route": [to("v2", 20), to("v1", 80)]}, {"route": [to("v1", 1)]})
    after = with_split(before, "vision", split(v1=70, v3=30), OWNER)
    assert shares(http(after)[0]) == [("v3", 30), ("v2", 0), ("v1", 70)]
    assert shares(http(after)[1]) == [("v3", 30), ("v1", 70)]
    assert after.virtual_services[VISION].annotations.rollout == OWNER
    found = read_split(after, "vision")
    assert found.split.weights == {"v3": 30, "v2": 0, "v1": 70}
    assert (found.host, found.owner, found.problem) == (HOST, OWNER, "")
    assert found.subsets == ("v1", "v2", "v3")


def test_testers_stand_ahead_of_the_hosts_routes_and_not_of_those_of_others():
    before = objects(
        {"match": [{"uri": {"prefix": "/a"}}], "route": [to(host="llm")]},
        {"match": [{"headers": {"x": {"exact": "y"}}}], "route": [to("v3")]},
        {
            "name": "classify",
            "match": [{"uri": {"prefix": "/b"}}, {"uri": {"prefix": "/c"}}],
            "timeout": "3s",
            "route": [to("v1", 100)],
        },
        {"match": [{"uri": {"prefix": "/d"}}], "redirect": {"uri": "/e"}},
        {"route": [to("v1", 100, headers={"request": {"set": {"a": "b"}}})]},
    )
    beta = SplitTester(header="x-user-tier", value="beta", subset="v2")
    kept = SplitTester(cookie="stay", subset="v1")
    after = with_split(before, "vision", split([beta, kept], v1=100), OWNER)
    names = ["tidegate-tester-1", "tidegate-tester-2", "tidegate-tester-3", "tidegate-tester-4"]
    assert [route.name for route in http(after)] == [
        *(None, names[0], names[1], None, "classify"),
        *(None, names[2], names[3], None),
    ]
    added = http(after)[1]
    assert [match.uri.value for match in added.match] == ["/b", "/c"]
    assert all(match.headers["x-user-tier"].value == "beta" for match in added.match)
    assert shares(added) == [("v2", 100)]
    assert added.timeout == http(before)[2].timeout
    # A tester of a subset that the route has keeps the changes of headers there.
    assert http(after)[7].route[0].headers == http(before)[4].route[0].headers
    found = read_split(after, "vision")
    assert (found.split.testers, found.problem) == ((beta, kept), "")
    fewer = with_split(after, "vision", split([kept], v1=100), OWNER)
    assert read_split(fewer, "vision").split.testers == (kept,)
    assert with_split(fewer, "vision", split(v1=100), None).changed_from(before) <= {VISION}
    assert http(with_split(fewer, "vision", split(v1=100), None)) == http(before)


@pytest.mark.parametrize(
    ("cookies", "matches"),
    [
        ("user=a.b", True),
        ("x=1; user=a.b", True),
        ("x=1; user=a.b; y=2", True),
        ("user=a.b;y=2", True),
        ("user=aXb", False),
        ("xuser=a.b", False),
        ("user=a.bc", False),
        ("y=user=a.b", False),
        ("user=", False),
    ],
)
def test_a_cookie_is_compared_exactly(cookies, matches):
    after = with_split(
        objects({"route": [to("v1")]}),
        "vision",
        split([SplitTester(cookie="user", value="a.b", subset="v2")], v1=100),
        OWNER,
    )
    condition = http(after)[0].match[0].headers["cookie"].value
    assert condition == r"^(.*?;\s*)?(user=a\.b)(;.*)?$"
    assert full_match(condition, cookies) is matches
    # Python's engine agrees with RE2.
    assert bool(re.fullmatch(condition, cookies)) is matches


def test_the_form_of_the_author_is_given_back():
    before = objects(
        {
            "route": [to("v2", 1), to("v1", 2)],
            "mirror": {"host": "vision", "subset": "v3"},
            "mirrorPercentage": {"value": 5},
        },
        annotations={"sticky": "header:x-user-id"},
    )
    original = read_split(before, "vision").split
    assert original.weights == {"v2": 33.333, "v1": 66.667}
    assert original.mirrors == {"v3": 5}
    during = with_split(before, "vision", split(v1=50, v2=25, v3=25), OWNER)
    assert shares(http(during)[0]) == [("v3", 25), ("v2", 25), ("v1", 50)]
    assert http(during)[0].mirror is None
    assert during.virtual_services[VISION].annotations.sticky is None
    assert with_split(during, "vision", original, None) == before
    # What means something else than before stays as the last split wrote it.
    promoted = with_split(during, "vision", split(v3=100), None)
    assert shares(http(promoted)[0]) == [("v3", 100), ("v2", 0), ("v1", 0)]
    assert promoted.virtual_services[VISION].annotations.rollout is None
    assert promoted.virtual_services[VISION].annotations.rollout_before is None


def test_a_change_of_others_meanwhile_is_not_undone_when_the_host_is_given_back():
    before = objects({"route": [to("v1", 3)]}, {"name": "two", "route": [to("v1", 1)]})
    during = with_split(before, "vision", split(v1=90, v2=10), OWNER)
    service = during.virtual_services[VISION]
    first, second = service.http
    edited = during.with_(replace(service, http=(first, replace(second, timeout=None, name="x"))))
    after = with_split(edited, "vision", split(v1=100), None)
    assert http(after) == (http(before)[0], replace(http(before)[1], name="x"))
    fewer = during.with_(replace(service, http=(second,)))
    assert shares(http(with_split(fewer, "vision", split(v1=100), None))[0]) == [
        ("v2", 0),
        ("v1", 100),
    ]


def test_a_subset_that_has_gone_may_be_named_with_nothing():
    before = objects({"route": [to("v1", 100)]})
    assert with_split(before, "vision", split(v1=100, v9=0), None) == before
    with pytest.raises(EditError, match="no subset v9") as caught:
        with_split(before, "vision", split(v1=50, v9=50), None)
    assert caught.value.field == "split.weights[1].subset"


@pytest.mark.parametrize(
    ("wrong", "field", "words"),
    [
        (split(v1=50), "split.weights", "add up to 50 %; name every subset"),
        (split(), "split.weights", "add up to 0 %"),
        (split(v1=60, v2=60), "split.weights", "add up to 120 %"),
        (split(v1=-1, v2=101), "split.weights[0].weight", "cannot be -1"),
        (split(v1=99.9999, v2=0.0001), "split.weights[0].weight", "at most 3 decimals"),
        (split(v1=100, mirrors={"v2": 101}), "split.mirrors[0].percent", "cannot be 101 %"),
        (split(v1=100, mirrors={"v9": 1}), "split.mirrors[0].subset", "no subset v9"),
        (
            split([SplitTester(subset="v2")], v1=100),
            "split.testers[0]",
            "either a header or a cookie",
        ),
        (
            split([SplitTester(header="a b", subset="v2")], v1=100),
            "split.testers[0].header",
            "'a b' is not the name of a header",
        ),
        (
            split([SplitTester(header="cookie", value="a=b", subset="v2")], v1=100),
            "split.testers[0]",
            "name a cookie",
        ),
        (
            split([SplitTester(header="a", value=" b", subset="v2")], v1=100),
            "split.testers[0].value",
            "leave out spaces",
        ),
        (
            split([SplitTester(cookie="a=b", subset="v2")], v1=100),
            "split.testers[0].cookie",
            "'a=b' is not the name of a cookie",
        ),
        (
            split([SplitTester(cookie="a", value="b;c", subset="v2")], v1=100),
            "split.testers[0].value",
            "'b;c': a value has no spaces",
        ),
        (
            split([SplitTester(cookie="a", value="x" * 1024, subset="v2")], v1=100),
            "split.testers[0].value",
            "longer than the 1024 bytes",
        ),
        (
            split([SplitTester(cookie="a", subset="v9")], v1=100),
            "split.testers[0].subset",
            "no subset v9",
        ),
        (
            split(
                [SplitTester(cookie="a", subset="v2"), SplitTester(cookie="a", subset="v1")], v1=100
            ),
            "split.testers[1]",
            "cookie a is named twice",
        ),
    ],
)
def test_an_impossible_split_is_refused_with_its_field_and_a_fix(wrong, field, words):
    with pytest.raises(EditError) as caught:
        with_split(objects({"route": [to("v1", 100)]}), "vision", wrong, OWNER)
    assert words in str(caught.value)
    assert caught.value.field == field


def test_a_host_without_a_route_of_its_own_is_refused():
    with pytest.raises(EditError, match=r"conditions on headers.*; add a route without"):
        with_split(
            objects({"match": [{"headers": {"a": {"exact": "b"}}}], "route": [to("v1")]}),
            *("vision", split(v1=100), OWNER),
        )


@pytest.mark.parametrize(
    ("routes", "words"),
    [
        ([{"route": [to("v1")]}, {"route": [to("v2")]}], "divide the requests differently"),
        ([{"route": [to("v1", 50), to(host="llm", weight=50)]}], "also sends requests to llm"),
        ([{"route": [to()]}], "sends requests to every endpoint"),
        ([{"route": [to("v1")], "mirrors": [{"destination": {"host": "vision"}}]}], "to every end"),
        (
            [{"match": [{"headers": {"a": {"exact": "b"}}}], "route": [to("v1")]}],
            "no route without conditions",
        ),
        (
            [{"name": "tidegate-tester-1", "route": [to("v2")]}, {"route": [to("v1")]}],
            "routes",
        ),
    ],
)
def test_routes_without_one_split_are_a_problem_in_words(routes, words):
    assert words in read_split(objects(*routes), "vision").problem


def test_routes_of_testers_that_somebody_changed_are_a_problem():
    tester = SplitTester(header="a", value="b", subset="v2")
    during = with_split(
        objects({"route": [to("v1", 100)]}), "vision", split([tester], v1=100), OWNER
    )
    service = during.virtual_services[VISION]
    changed = replace(service.http[0], route=(*service.http[0].route, *service.http[1].route))
    edited = during.with_(replace(service, http=(changed, service.http[1])))
    found = read_split(edited, "vision")
    assert "somebody has changed the routes of testers" in found.problem
    # The next split has them as they should be.
    assert with_split(edited, "vision", split([tester], v1=100), OWNER) == during


def test_virtual_services_of_a_host_that_differ_are_a_problem():
    more = virtual({"route": [to("v1", 100)]}, name="inside", gateways=("mesh",), hosts=("vision",))
    before = objects({"route": [to("v1", 1)]}, more=(more,))
    assert read_split(before, "vision").problem == ""
    after = with_split(before, "vision", split(v1=1, v2=99), OWNER)
    assert read_split(after, "vision").problem == ""
    assert read_split(after, "vision").owner == OWNER
    service = after.virtual_services[VISION]
    without = after.with_(replace(service, annotations=replace(service.annotations, rollout=None)))
    assert "VirtualServices differ" in read_split(without, "vision").problem
    sticky = replace(service.annotations, sticky=Sticky(cookie="u"))
    differing = after.with_(replace(service, annotations=sticky))
    assert "is sticky cookie:u" in read_split(differing, "vision").problem


def test_annotations_are_read_and_written():
    before = objects({"route": [to("v1", 100)]})
    after = with_split(before, "vision", split(v1=90, v2=10, sticky=Sticky(cookie="user")), OWNER)
    manifest = json.loads(text(virtual({"route": [to("v1", 100)]})))
    manifest["metadata"]["annotations"] = {"example.com/a": "b"}
    known = IstioObjects.of([parse_manifest(manifest), *before.destination_rules.values()])
    written = edit_manifest(manifest, after.virtual_services[VISION])
    assert written["metadata"]["annotations"] == {
        "example.com/a": "b",
        "tidegate.dev/sticky": "cookie:user",
        "tidegate.dev/rollout": "models/vision-v2",
        "tidegate.dev/rollout-before": (
            '[{"route":[["vision.models.svc.cluster.local","v1",null,100]]}]'
        ),
    }
    assert parse_manifest(written) == after.virtual_services[VISION]
    assert known.virtual_services[VISION] == before.virtual_services[VISION]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollout", "vision"),
        ("rollout", "a/b/c"),
        ("rollout", "A/b"),
        ("sticky", "cookie:a b"),
        ("rollout-before", "{}"),
        ("rollout-before", "["),
        ("rollout-before", '[{"route":[["a",1,null,1]]}]'),
        ("rollout-before", '[{"route":[["a","b",null,true]]}]'),
        ("rollout-before", '[{"ruote":[]}]'),
        ("rollout-before", "[" * 100_000),
    ],
)
def test_a_wrong_annotation_is_refused(name, value):
    with pytest.raises(Exception, match=f"tidegate.dev/{name}.*cannot be"):
        objects({"route": [to("v1")]}, annotations={name: value})


def test_destinations_of_one_subset_at_two_ports_keep_their_proportion():
    def at(subset, weight, port):
        made = to(subset, weight)
        made["destination"]["port"] = {"number": port}
        return made

    route = [at("v1", 3, 8500), at("v1", 1, 8501), at("v2", 4, 8500)]
    before = objects({"route": route})
    assert read_split(before, "vision").split.weights == {"v1": 50, "v2": 50}
    during = with_split(before, "vision", split(v1=40, v2=60), OWNER)
    assert shares(http(during)[0]) == [("v1", 30), ("v1", 10), ("v2", 60)]
    assert with_split(during, "vision", split(v1=50, v2=50), None) == before
    with pytest.raises(EditError, match="at several ports"):
        with_split(before, "vision", split(v3=100), OWNER)


# Properties.

SUBSETS = ("v1", "v2", "v3")


@st.composite
def percentages(draw):
    """Shares that sum to 100, with up to three decimals."""
    units = 10 ** draw(st.integers(0, 3))
    cuts = sorted(draw(st.lists(st.integers(0, 100 * units), min_size=2, max_size=2)))
    parts = (cuts[0], cuts[1] - cuts[0], 100 * units - cuts[1])
    named = draw(st.permutations(SUBSETS))
    found = {name: part / units for name, part in zip(named, parts, strict=True)}
    return {name: share for name, share in found.items() if share or draw(st.booleans())}


TEXTS = st.text("ab.*+?(){}[]|^$-#&~/:", min_size=1, max_size=6)
TESTERS = st.one_of(
    st.builds(
        SplitTester,
        header=st.sampled_from(["x-a", "x-b"]),
        value=st.one_of(st.just(""), TEXTS),
        subset=st.sampled_from(SUBSETS),
    ),
    st.builds(
        SplitTester,
        cookie=st.sampled_from(["u", "u.v", "$w|x"]),
        value=st.one_of(st.just(""), TEXTS),
        subset=st.sampled_from(SUBSETS),
    ),
)
SPLITS = st.builds(
    HostSplit,
    weights=percentages(),
    testers=st.lists(
        TESTERS, max_size=3, unique_by=lambda each: (each.header, each.cookie, each.value)
    ).map(tuple),
    sticky=st.sampled_from([None, Sticky(header="x-u"), Sticky(cookie="u")]),
    mirrors=st.dictionaries(st.sampled_from(SUBSETS), st.integers(1, 100).map(float), max_size=2),
)


@st.composite
def weighted(draw):
    """A route's destinations, as authors write them."""
    names = draw(st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=3, unique=True))
    if len(names) == 1 and draw(st.booleans()):
        return [to(names[0])]
    weights = draw(st.lists(st.integers(0, 300), min_size=len(names), max_size=len(names)))
    assume(any(weights) or len(names) == 1)
    return [to(name, weight) for name, weight in zip(names, weights, strict=True)]


FOREIGN = st.sampled_from(
    [
        {"match": [{"uri": {"prefix": "/l"}}], "route": [to(host="llm", weight=1)]},
        {"match": [{"headers": {"x-a": {"prefix": "b"}}}], "route": [to("v3", 7), to("v1", 9)]},
        {"match": [{"uri": {"exact": "/r"}}], "redirect": {"uri": "/s"}},
        {"match": [{"uri": {"exact": "/d"}}], "delegate": {"name": "d", "namespace": "x"}},
        {"match": [{"uri": {"exact": "/0"}}], "route": [to(host="llm", weight=1), to("v1", 0)]},
    ]
)


@st.composite
def hosts(draw):
    """Objects of a host whose unconditional routes are alike, among foreign ones."""
    destinations = draw(weighted())
    mirrors = draw(
        st.sampled_from(
            [
                {},
                {"mirror": {"host": "vision", "subset": "v2"}},
                {"mirror": {"host": "llm"}, "mirrorPercentage": {"value": 3}},
                {
                    "mirror": {"host": "vision", "subset": "v3"},
                    "mirrorPercentage": {"value": 2.5},
                },
                {
                    "mirrors": [
                        {"destination": {"host": "vision", "subset": "v3"}},
                        {"destination": {"host": "llm"}, "percentage": {"value": 1}},
                        {
                            "destination": {"host": "vision", "subset": "v1"},
                            "percentage": {"value": 9},
                        },
                    ]
                },
            ]
        )
    )
    own = []
    for index in range(draw(st.integers(1, 2))):
        match = {} if index else {"match": [{"uri": {"prefix": "/a"}}, {"uri": {"prefix": "/b"}}]}
        own.append({**match, "route": destinations, **mirrors, "timeout": f"{index + 1}s"})
    foreign = draw(st.lists(FOREIGN, max_size=3))
    routes = draw(st.permutations([*enumerate(own), *((9, each) for each in foreign)]))
    ordered = iter(own)
    sticky = draw(st.sampled_from([None, "header:x-user-id", "cookie:c"]))
    annotations = {"sticky": sticky} if sticky else None
    http = [next(ordered) if index < 9 else each for index, each in routes]
    return objects(*http, annotations=annotations)


def foreign_routes(found):
    return [
        route
        for route in http(found)
        if not (route.name or "").startswith("tidegate-tester-")
        and ((route.match and any(match.headers for match in route.match)) or not route.route)
    ]


@settings(max_examples=examples(150), deadline=None)
@given(hosts(), st.lists(SPLITS, min_size=1, max_size=3))
def test_a_split_is_read_as_it_was_written_and_gives_back_what_was_there(before, splits):
    original = read_split(before, "vision")
    assert original.problem == ""
    now = before
    for each in splits:
        now = with_split(now, "vision", each, OWNER)
        found = read_split(now, HOST)
        assert found.problem == ""
        assert found.owner == OWNER
        assert {k: v for k, v in found.split.weights.items() if v} == {
            k: v for k, v in each.weights.items() if v
        }
        assert {*found.split.testers} == {*each.testers}
        assert found.split.sticky == each.sticky
        assert found.split.mirrors == each.mirrors
        assert with_split(now, HOST, each, OWNER).changed_from(now) == frozenset()
        assert foreign_routes(now) == foreign_routes(before)
    assert with_split(now, HOST, original.split, None) == before


@settings(max_examples=examples(60), deadline=None)
@given(hosts(), SPLITS)
def test_the_text_of_a_manifest_is_given_back_too(before, split_):
    service = before.virtual_services[VISION]
    original = read_split(before, "vision").split
    during = with_split(before, "vision", split_, OWNER)
    manifest = plain(service)
    manifest["metadata"]["annotations"]["example.com/a"] = "b"
    shifted = edit_manifest(manifest, during.virtual_services[VISION])
    assert shifted["metadata"]["annotations"]["example.com/a"] == "b"
    assert parse_manifest(shifted) == during.virtual_services[VISION]
    back = edit_manifest(shifted, with_split(during, "vision", original, None)[VISION])
    assert back == manifest


@settings(max_examples=examples(60), deadline=None)
@given(hosts(), SPLITS, st.integers(1, 200))
def test_routes_that_other_hosts_share_keep_the_share_of_these(before, wanted, weight):
    service = before.virtual_services[VISION]
    other = parse(text(virtual({"route": [to(host="llm", weight=weight)]})), "")
    foreign = other.virtual_services[VISION].http[0].route

    def shared(route):
        if route.match and any(match.headers for match in route.match):
            return route
        if not any(each.destination.host == HOST and each.weight for each in route.route):
            return route
        return replace(route, route=(*route.route, *foreign))

    before = before.with_(replace(service, http=tuple(map(shared, service.http))))
    assume(before.virtual_services[VISION] != service)
    original = read_split(before, "vision").split
    during = with_split(before, "vision", wanted, OWNER)
    assert with_split(during, "vision", wanted, OWNER) == during
    pairs = zip(
        [each for each in http(during) if not (each.name or "").startswith("tidegate-tester-")],
        http(before),
        strict=True,
    )
    for now, then in pairs:
        assert share_of_llm(now) == share_of_llm(then)
    assert with_split(during, "vision", original, None) == before


def share_of_llm(route):
    whole = sum(each.weight for each in route.route)
    if not whole:
        return None
    mine = sum(each.weight for each in route.route if each.destination.host.startswith("llm"))
    return Fraction(mine, whole)
