"""`MeshRouter` against a real controller and a real Envoy."""

import asyncio

import grpc
import pytest
from mesh_objects import VISION
from running_mesh import free_port

from tidegate.mesh.v1 import mesh_pb2
from tidegate.rollout import traffic
from tidegate.rollout.traffic import Knowledge, MatchKind, Sticky, TrafficSplit
from tidegate.traffic.mesh_router import MeshRouter
from tidegate.traffic.router import TrafficError

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWNER = "models/vision-v2"
HEADER = traffic.TesterMatch(kind=MatchKind.HEADER, name="x-user-tier", value="beta", version="v2")
COOKIE = traffic.TesterMatch(kind=MatchKind.COOKIE, name="stage", value="", version="v2")


def router_of(mesh, **settings):
    return MeshRouter(mesh.controller.channel, mesh.controller.address, **settings)


def split(*testers, sticky=None, mirrors=None, **weights):
    return TrafficSplit(weights=weights, testers=testers, sticky=sticky, mirrors=mirrors or {})


async def failing(awaitable):
    with pytest.raises(TrafficError) as caught:
        await awaitable
    return caught.value


async def test_a_split_is_applied_read_and_given_back(shared):
    router = router_of(shared)
    before = await router.read("vision")
    assert (before.host, before.owner, before.problem) == (VISION, "", "")
    assert (before.versions, before.ready) == (("v1", "v2"), ("v1", "v2"))
    assert before.split == split(v1=100.0)
    wanted = split(
        *(HEADER, COOKIE),
        sticky=Sticky(kind=MatchKind.COOKIE, name="user"),
        mirrors={"v2": 5.0},
        v1=100 - 0.3,
        v2=0.3,
    )
    applied = await router.apply(before.host, wanted, OWNER)
    assert applied.known is Knowledge.ACKNOWLEDGED
    assert 0 < applied.since_s - applied.requested_s < 10
    assert applied.detail.startswith("acknowledged by 1 proxy in ")
    now = await router.read("vision")
    assert now.split.same_as(wanted)
    assert now.owner == OWNER
    again = await router.apply(before.host, wanted, OWNER)
    assert again.detail == "it was in force already"
    assert again.since_s > applied.since_s
    await router.apply("vision", before.split, "")
    assert await router.read("vision") == before
    assert not (await shared.controller.status()).shifted_files


async def test_testers_reach_their_version_at_weight_0_and_no_longer_after_the_release(shared):
    router = router_of(shared)
    before = await router.read("vision")
    await router.apply("vision", split(HEADER, COOKIE, v1=100.0, v2=0.0), OWNER)
    async with shared.channel() as channel:
        tester, cookie = ("x-user-tier", "beta"), ("cookie", "a=b; stage=2")
        assert await shared.say(channel, tester) == "v2"
        assert await shared.say(channel, cookie) == "v2"
        assert {await shared.say(channel) for _ in range(20)} == {"v1"}
        await router.apply("vision", before.split, "")
        assert await shared.say(channel, tester) == "v1"
        assert await shared.say(channel, cookie) == "v1"


async def test_splits_under_load_lose_no_request(shared):
    router = router_of(shared)
    async with shared.load() as load:
        for number in range(30):
            share = 10.0 * (number % 11)
            testers = (HEADER,) * (number % 2)
            mirrors = {"v2": 20.0} if number % 3 == 0 else {}
            await router.apply(
                "vision", split(*testers, mirrors=mirrors, v1=100 - share, v2=share), OWNER
            )
        await router.apply("vision", split(v1=100.0), "")
        await load.only("v1")
    assert not load.failures


async def test_an_error_says_whether_to_try_again_is_useless(shared):
    router = router_of(shared)
    for call, words in (
        (router.read("nobody"), "there is no host nobody"),
        (router.apply("nobody", split(v1=100.0), OWNER), "there is no host nobody"),
        (router.apply("vision", split(v9=100.0), OWNER), "has no subset v9"),
        (router.apply("vision", split(v1=50.0), OWNER), "add up to 50 %"),
    ):
        error = await failing(call)
        assert error.permanent
        assert words in str(error)
    await router.apply("vision", split(v1=90.0, v2=10.0), OWNER)
    error = await failing(router.apply("vision", split(v1=100.0), "models/other"))
    assert error.permanent
    assert f"belongs to the rollout {OWNER}" in str(error)


async def test_a_split_that_was_rolled_back_may_be_tried_again(shared):
    shared.backends["v2"].health.set_all(False)
    await shared.endpoint_is(shared.backends["v2"], mesh_pb2.ENDPOINT_STATE_UNHEALTHY)
    router = router_of(shared, stage_deadline_s=0.3)
    assert (await router.read("vision")).ready == ("v1",)
    error = await failing(router.apply("vision", split(v1=90.0, v2=10.0), OWNER))
    assert not error.permanent
    assert "rolled back" in str(error)
    assert "no healthy endpoint" in str(error)
    assert (await router.read("vision")).owner == ""
    shared.backends["v2"].health.set_all(True)
    await shared.endpoint_is(shared.backends["v2"], mesh_pb2.ENDPOINT_STATE_HEALTHY)
    await router.apply("vision", split(v1=90.0, v2=10.0), OWNER)


async def test_a_controller_that_does_not_answer_may_come_back():
    address = f"127.0.0.1:{free_port()}"
    async with grpc.aio.insecure_channel(address) as channel:
        router = MeshRouter(channel, address)
        for call in (router.read("vision"), router.apply("vision", split(v1=100.0), OWNER)):
            error = await failing(call)
            assert not error.permanent
            assert f"Nothing answers at {address}" in str(error)


async def test_a_cancelled_apply_ends_at_once_and_the_change_goes_on(shared):
    router = router_of(shared)
    proxy = await shared.attach("slow")
    applying = asyncio.create_task(router.apply("vision", split(v1=50.0, v2=50.0), OWNER))
    update = await proxy.read()
    applying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await applying
    await proxy.ack(update)
    applied = await router.apply("vision", split(v1=50.0, v2=50.0), OWNER)
    assert applied.detail == "it was in force already"
    proxy.call.cancel()


async def test_an_urgent_split_is_in_force_although_one_proxy_does_not_answer(shared):
    router = router_of(shared, stage_deadline_s=0.4)
    await router.apply("vision", split(v1=50.0, v2=50.0), OWNER)
    proxy = await shared.attach("frozen")
    error = await failing(router.apply("vision", split(v1=100.0), ""))
    assert "frozen has not acknowledged" in str(error)
    applied = await router.apply("vision", split(v1=100.0), "", urgent=True)
    assert applied.detail.startswith("acknowledged by 1 proxy in ")
    assert applied.detail.endswith("; not yet in frozen, which went on with what they had")
    async with shared.load() as load:
        await load.only("v1")
    proxy.call.cancel()
