"""Shares of a host as weights of a route, which other hosts may share."""

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidegate.istio import EditError, Kind, ObjectName, parse
from tidegate.istio.editing.shares import with_shares
from tidegate.istio.editing.shifts import Shift, header_condition, shift
from tidegate.istio.virtual_service import Destination, HttpRouteDestination

HOST = "web.models.svc.cluster.local"
WEB = ObjectName(Kind.VIRTUAL_SERVICE, "models", "web")
RULES = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: models}
spec: {host: web, subsets: [{name: v1}, {name: v2}, {name: v3}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: models}
spec:
  hosts: [web]
  http:
"""


def destination(text):
    host, _, subset = text.partition("/")
    subset, _, port = subset.partition(":")
    return HttpRouteDestination(
        destination=Destination(
            host=HOST if host == "web" else host,
            subset=subset or None,
            port=int(port) if port else None,
        )
    )


def route(text):
    """Parses destinations such as ``other=50 web/v1=50``."""
    found = []
    for each in text.split():
        name, _, weight = each.partition("=")
        one = destination(name)
        found.append(
            HttpRouteDestination(destination=one.destination, weight=int(weight) if weight else 0)
        )
    return found


def text(destinations):
    return " ".join(
        f"{'web' if each.destination.host == HOST else each.destination.host}"
        f"{f'/{each.destination.subset}' if each.destination.subset else ''}"
        f"{f':{each.destination.port}' if each.destination.port else ''}={each.weight}"
        for each in destinations
    )


def asked(words):
    pairs = (each.split("=") for each in words.split())
    return {name: float(share) for name, share in pairs}


@pytest.mark.parametrize(
    ("before", "words", "after"),
    [
        # The shift divides the host's own part and leaves that of another host alone.
        ("other=50 web/v1=50", "v2=20", "web/v2=10 other=50 web/v1=40"),
        ("other=50 web/v1=50", "v1=80 v2=20", "web/v2=10 other=50 web/v1=40"),
        ("other=50 web/v2=25 web/v1=25", "v2=100", "other=50 web/v2=50 web/v1=0"),
        # No other way avoids fractions: the smallest factor for all weights.
        ("other=50 web/v1=50", "v2=25", "web/v2=25 other=100 web/v1=75"),
        ("other=97 web/v1=3", "v2=25", "web/v2=3 other=388 web/v1=9"),
        ("other=1 web/v1=1", "v2=25", "web/v2=1 other=4 web/v1=3"),
        # A sum of 100 where it has no fraction.
        ("other=5 web/v1=5", "v2=10", "web/v2=5 other=50 web/v1=45"),
        # A single destination gets every request, whatever its weight.
        ("web/v1", "v2=25", "web/v2=25 web/v1=75"),
        ("web/v1=7", "v1=40 v2=60", "web/v2=60 web/v1=40"),
        ("web", "v1=75 v2=25", "web/v1=75 web/v2=25 web=0"),
        # Decimals, and the destinations that divide the rest.
        ("web/v2=10 web/v1=90", "v2=0.5", "web/v2=1 web/v1=199"),
        ("web/v2=10 web/v1=90", "v2=0.001", "web/v2=1 web/v1=99999"),
        ("web/v3=1 web/v1=999", "v2=50", "web/v2=500 web/v3=1 web/v1=499"),
        # Other destinations of weight 0 keep it.
        ("other=0 web/v1=50 web/v2=50", "v2=10", "other=0 web/v1=90 web/v2=10"),
        ("web/v3=0 web/v2=20 web/v1=80", "v1=50 v2=50", "web/v3=0 web/v2=50 web/v1=50"),
        ("web/v3=0 web/v2=20 web/v1=80", "v2=50", "web/v3=0 web/v2=50 web/v1=50"),
        ("web/v2=100 web/v1=0", "v2=30", "web/v2=30 web/v1=70"),
        # One subset twice, as at two ports: both keep their proportion.
        (
            "web/v1:80=60 web/v1:81=20 web/v2:80=20",
            "v1=40",
            "web/v1:80=30 web/v1:81=10 web/v2:80=60",
        ),
        ("web/v1:80=0 web/v1:81=0 web/v2:80=20", "v1=40", "web/v1:80=40 web/v1:81=0 web/v2:80=60"),
        # The route already has the shares, in other numbers.
        ("web/v2=5 web/v1=995", "v2=0.5", "web/v2=5 web/v1=995"),
        ("other=7 web/v2=1 web/v1=2 web/v3=1", "v2=25", "other=7 web/v2=1 web/v1=2 web/v3=1"),
        # The host gets no request here, so there is nothing to divide.
        ("other=100 web/v1=0", "v2=25", "other=100 web/v1=0"),
    ],
)
def test_a_share_is_a_percentage_of_the_hosts_requests(before, words, after):
    assert text(with_shares(route(before), HOST, asked(words), "http[0]")) == after


@pytest.mark.parametrize(
    ("before", "words", "problem"),
    [
        ("web/v2=20 web/v1=80", "v1=50 v2=20", r"v1=50 v2=20 add up to 70 %.* make the shares 100"),
        ("web/v1", "v1=50", r"v1=50 adds up to 50 %, and http\[0\] has no other subset"),
        ("web/v3=0 web/v2=20 web/v1=80", "v1=9 v2=1", "no other subset than v3, which gets none"),
        ("web", "v2=25", "destination without a subset.* name every subset"),
        ("web/v1:80=1 web/v1:81=1", "v2=25", r"at several ports \(80, 81\).* by hand"),
        ("other=2000000000 web/v1=3", "v2=0.001", "would sum to more than 2147483647"),
    ],
)
def test_impossible_shares_are_refused(before, words, problem):
    with pytest.raises(EditError, match=problem):
        with_shares(route(before), HOST, asked(words), "http[0]")


def mesh(*rules):
    return parse(RULES + "".join(f"    - {rule}\n" for rule in rules), "mesh")


def rule(destinations, match=""):
    return f"{{{match}route: [{destinations}]}}"


OTHER = "{destination: {host: other}, weight: 50}"
V1 = "{destination: {host: web.models.svc.cluster.local, subset: v1}, weight: 50}"
BETA = "match: [{headers: {tier: {exact: beta}}}], "


def routes(objects):
    return [text(each.route) for each in objects.virtual_services[WEB].http]


@pytest.mark.parametrize(
    ("weights", "field", "problem"),
    [
        ({"v2": 101}, "weights[0].weight", "cannot be 101; write a percentage from 0 to 100"),
        ({"v1": 1, "v2": -1}, "weights[1].weight", "cannot be -1"),
        ({"v2": 2**32}, "weights[0].weight", "cannot be 4.29497e"),
        ({"v2": math.nan}, "weights[0].weight", "cannot be nan"),
        ({"v2": math.inf}, "weights[0].weight", "cannot be inf"),
        ({"v2": 0.0001}, "weights[0].weight", "at most 3 decimals"),
        ({"v1": 60, "v2": 60}, "weights", "v1=60 v2=60 add up to 120 %"),
        ({"v1": 60, "v9": 40}, "weights[1].subset", "no subset v9: DestinationRule models/web has"),
    ],
)
def test_invalid_share_is_refused_with_its_field(weights, field, problem):
    with pytest.raises(EditError, match=problem) as caught:
        shift(mesh(rule(f"{OTHER}, {V1}")), Shift(host="web", weights=weights))
    assert caught.value.field == field


def test_routes_without_the_host_and_routes_of_weight_0_stay():
    idle = V1.replace("50", "0")
    before = mesh(rule(OTHER), rule(f"{OTHER}, {idle}"), rule(V1, BETA), rule(f"{OTHER}, {V1}"))
    after = shift(before, Shift(host="web", weights={"v2": 20}))
    assert routes(after)[:3] == routes(before)[:3]
    assert routes(after)[3] == "web/v2=10 other.models.svc.cluster.local=50 web/v1=40"


def test_a_host_of_weight_0_and_one_behind_conditions_have_different_errors():
    nothing = mesh(rule(f"{OTHER}, {V1.replace('50', '0')}"))
    with pytest.raises(EditError, match=r"gives it weight 0.* nothing to divide") as caught:
        shift(nothing, Shift(host="web", weights={"v2": 20}))
    assert caught.value.field == "host"
    behind = mesh(rule(V1, BETA))
    with pytest.raises(EditError, match=r"header:tier is beta.* name them with --match") as caught:
        shift(behind, Shift(host="web", weights={"v2": 20}))
    assert caught.value.field == "matches"
    name, condition = header_condition("header:tier=gold")
    with pytest.raises(EditError, match="has other conditions on headers"):
        shift(behind, Shift(host="web", weights={"v2": 20}, match={name: condition}))


def test_every_virtual_service_and_every_route_of_the_host_is_changed():
    second = RULES.partition("---\n")[2].replace("name: web,", "name: web2,")
    first = rule(V1, "match: [{uri: {prefix: /a}}], ")
    before = parse(
        f"{RULES}    - {first}\n    - {rule(f'{OTHER}, {V1}')}\n---\n{second}    - {rule(V1)}\n",
        "mesh",
    )
    after = shift(before, Shift(host="web", weights={"v2": 20}))
    other = after.virtual_services[ObjectName(Kind.VIRTUAL_SERVICE, "models", "web2")]
    assert [text(each.route) for each in other.http] == ["web/v2=20 web/v1=80"]
    assert routes(after) == [
        "web/v2=20 web/v1=80",
        "web/v2=10 other.models.svc.cluster.local=50 web/v1=40",
    ]


def test_subsets_of_two_rules_are_listed_once_each_with_their_rules():
    both = parse(
        f"{RULES}    - {rule(V1)}\n---\n"
        + RULES.partition("---\n")[0]
        .replace("name: web,", "name: web2,")
        .replace("{name: v3}", "{name: v7}"),
        "mesh",
    )
    with pytest.raises(EditError) as caught:
        shift(both, Shift(host="web", weights={"v9": 20}))
    assert (
        "no subset v9: DestinationRule models/web and DestinationRule models/web2 have "
        "v1, v2, v3, v7" in str(caught.value)
    )


NAMES = st.sampled_from(["a", "b", "web/v1", "web/v2", "web/v3", "web/v1:80", "web/v2:80"])
WEIGHTS = st.one_of(st.integers(0, 100), st.integers(0, 3), st.just(0), st.integers(0, 2000))
SHARES = st.one_of(
    st.integers(0, 100), st.integers(0, 100_000).map(lambda thousandths: thousandths / 1000)
)


def own(destinations):
    alone = len(destinations) == 1
    weights = {}
    for each in destinations:
        if each.destination.host == HOST:
            name = each.destination.subset
            weights[name] = weights.get(name, 0) + (each.weight or int(alone))
    return weights


def share_of_others(destinations):
    whole = sum(each.weight for each in destinations) or 1
    return [
        (each.destination.host, Fraction(each.weight, whole))
        for each in destinations
        if each.destination.host != HOST
    ]


@given(
    st.lists(st.tuples(NAMES, WEIGHTS), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(["v1", "v2", "v3"]), SHARES, min_size=1, max_size=3),
)
def test_shares_are_exact_and_other_hosts_keep_theirs(destinations, shares):
    before = route(" ".join(f"{name}={weight}" for name, weight in destinations))
    assume(any(each.destination.host == HOST for each in before))
    assume(sum(Fraction(str(share)) for share in shares.values()) <= 100)
    try:
        after = list(with_shares(before, HOST, shares, "http[0]"))
    except EditError:
        return
    assert with_shares(after, HOST, shares, "http[0]") == after
    had = own(before)
    if not sum(had.values()):
        assert after == before
        return
    assert share_of_others(after) == share_of_others(before)
    assert all(0 <= each.weight < 2**31 for each in after)
    assert sum(each.weight for each in after) < 2**31
    has = own(after)
    whole = sum(has.values())
    for name, share in shares.items():
        assert Fraction(has[name] * 100, whole) == Fraction(str(share))
    # The others keep their proportion within one step of the shares.
    rest = Fraction(100) - sum(Fraction(str(share)) for share in shares.values())
    others = {name: weight for name, weight in had.items() if name not in shares}
    if rest and sum(others.values()) and after != before:
        for name, weight in others.items():
            exact = rest * weight / sum(others.values())
            # At most one whole percent for each of the subset's destinations.
            assert abs(Fraction(has[name] * 100, whole) - exact) <= 2
            assert bool(has[name]) == bool(weight)
