"""Telling a change of shares by the versions of requests: how often it is wrong, and how late."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.router.istio_log.split_change import changed_since

ERROR = 1e-3


def drawn(chance, shares):
    return chance.choices(list(shares), list(shares.values()))[0]


def requests(chance, before, after, changed_at, count):
    """Requests at every millisecond; from `changed_at` on, the new shares decide."""
    return [
        (float(number), drawn(chance, before if number < changed_at else after))
        for number in range(count)
    ]


SPLITS = [
    ({"v1": 1.0}, {"v1": 0.95, "v2": 0.05}),
    ({"v1": 0.95, "v2": 0.05}, {"v1": 0.75, "v2": 0.25}),
    ({"v1": 0.9, "v2": 0.1}, {"v1": 0.8, "v2": 0.2}),
    ({"v1": 0.5, "v2": 0.5}, {"v2": 1.0}),
    ({"v1": 0.1, "v2": 0.9}, {"v2": 1.0}),
    ({"v1": 0.8, "v2": 0.2}, {"v1": 1.0}),
]


@pytest.mark.parametrize(("before", "after"), SPLITS)
def test_the_answer_is_hardly_ever_earlier_than_the_truth(before, after):
    chance = random.Random(1)
    early = found = 0
    for _ in range(150):
        changed_at = chance.randrange(0, 200)
        calls = requests(chance, before, after, changed_at, 900)
        # Whoever looks often must not be wrong more often.
        for count in range(50, 901, 50):
            since = changed_since(calls[:count], before, after, ERROR)
            if since is not None:
                found += 1
                early += since < changed_at
                break
    assert found >= 145
    assert early <= 1


@pytest.mark.parametrize(("before", "after"), SPLITS)
def test_nothing_is_seen_while_nothing_changes(before, after):
    chance = random.Random(2)
    seen = 0
    for _ in range(200):
        calls = requests(chance, before, after, 10**9, 500)
        seen += any(
            changed_since(calls[:n], before, after, ERROR) is not None for n in (100, 300, 500)
        )
    assert seen <= 1


def test_one_request_of_a_new_version_shows_the_change():
    calls = [(float(n), "v1") for n in range(40)] + [(40.0, "v2")]
    assert changed_since(calls[:40], {"v1": 1}, {"v1": 0.9, "v2": 0.1}, ERROR) is None
    assert changed_since(calls, {"v1": 1}, {"v1": 0.9, "v2": 0.1}, ERROR) == 40.0


def test_a_request_of_a_version_that_leaves_is_before_the_change():
    calls = [(1.0, "v1"), (2.0, "v1"), *((3.0 + n, "v2") for n in range(80))]
    before, after = {"v1": 0.5, "v2": 0.5}, {"v2": 1.0}
    since = changed_since(calls, before, after, ERROR)
    assert since is not None
    assert 3.0 <= since < 20.0
    assert changed_since([*calls, (99.0, "v1")], before, after, ERROR) is None


def test_a_small_change_is_not_seen_in_few_requests():
    calls = requests(random.Random(3), {"v1": 0.99, "v2": 0.01}, {"v1": 0.98, "v2": 0.02}, 0, 200)
    assert changed_since(calls, {"v1": 0.99, "v2": 0.01}, {"v1": 0.98, "v2": 0.02}, ERROR) is None


def test_requests_of_other_versions_tell_nothing():
    before, after = {"v1": 1.0, "v3": 0.0}, {"v1": 0.5, "v2": 0.5, "v3": 0.0}
    assert changed_since([(1.0, "v3"), (2.0, "v9"), (3.0, "")], before, after, ERROR) is None


@given(
    st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["v1", "v2", "v3", ""])), max_size=60),
    st.fixed_dictionaries({"v1": st.floats(0, 1), "v2": st.floats(0, 1)}),
    st.fixed_dictionaries({"v1": st.floats(0, 1), "v3": st.floats(0, 1)}),
)
@settings(max_examples=200)
def test_the_answer_is_the_start_of_a_request(calls, before, after):
    calls = sorted(calls)
    since = changed_since(calls, before, after, 0.05)
    assert since is None or since in {start for start, _ in calls}


@given(st.integers(0, 400), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_large_change_is_seen_within_a_hundred_requests(changed_at, seed):
    before, after = {"v1": 0.9, "v2": 0.1}, {"v1": 0.1, "v2": 0.9}
    calls = requests(random.Random(seed), before, after, changed_at, changed_at + 100)
    since = changed_since(calls, before, after, ERROR)
    assert since is not None
    assert since <= changed_at + 40
