"""The double of `TrafficRouter` keeps the promises of the interface, as `MeshRouter` does."""

import asyncio
import itertools

import pytest
from traffic_router_double import TrafficRouterDouble

from tidegate.rollout.traffic import TrafficSplit
from tidegate.traffic.router import TrafficError

OWNER = "models/vision-v2"
HALF = TrafficSplit(weights={"v1": 50.0, "v2": 50.0})
ALL = TrafficSplit(weights={"v1": 100.0})


def double():
    clock = itertools.count(1000)
    return TrafficRouterDouble(
        {"vision": {"v1": 100.0}}, versions=("v1", "v2"), clock=lambda: float(next(clock))
    )


async def test_a_split_is_applied_read_and_given_back():
    router = double()
    applied = await router.apply("vision", HALF, OWNER)
    assert (applied.requested_s, applied.since_s) == (1000, 1001)
    now = await router.read("vision")
    assert (now.split, now.owner, now.versions) == (HALF, OWNER, ("v1", "v2"))
    await router.apply("vision", ALL, "")
    assert (await router.read("vision")).owner == ""
    assert router.applied == [("vision", HALF, OWNER), ("vision", ALL, "")]


@pytest.mark.parametrize(
    ("host", "split", "owner"),
    [
        ("nobody", ALL, OWNER),
        ("vision", TrafficSplit(weights={"v9": 100.0}), OWNER),
        ("vision", TrafficSplit(weights={"v1": 50.0}), OWNER),
        ("vision", ALL, "models/other"),
    ],
)
async def test_what_the_mesh_refuses_is_refused_for_good(host, split, owner):
    router = double()
    await router.apply("vision", HALF, OWNER)
    with pytest.raises(TrafficError) as caught:
        await router.apply(host, split, owner)
    assert caught.value.permanent
    assert (await router.read("vision")).split == HALF


async def test_it_waits_fails_and_changes_when_a_test_says_so():
    router = double()
    with router.held():
        applying = asyncio.create_task(router.apply("vision", HALF, OWNER))
        await router.has_begun()
        assert (await router.read("vision")).split.weights == {"v1": 100.0}
    await applying
    router.fail_next("no proxy answers")
    with pytest.raises(TrafficError, match="no proxy answers") as caught:
        await router.apply("vision", ALL, OWNER)
    assert not caught.value.permanent
    router.change("vision", ALL)
    assert (await router.read("vision")).owner == OWNER
    router.change("vision", HALF, owner="")
    router.ready("vision", "v1")
    router.problem("vision", "routes differ")
    now = await router.read("vision")
    assert (now.owner, now.ready, now.problem) == ("", ("v1",), "routes differ")
    with router.unreadable(), pytest.raises(TrafficError, match="nothing answers"):
        await router.read("vision")
