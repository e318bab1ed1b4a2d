"""The split of a host: set and read over MeshService, owned by a rollout, kept over everything."""

import asyncio
import itertools

import grpc
import pytest
from mesh_objects import VISION, to
from mesh_splits import (
    OWNER,
    get,
    pretty,
    reason_of,
    refused,
    save,
    seconds,
    set_,
    setting,
    shares,
    split,
)

from tidegate.mesh.v1 import mesh_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

BETA = mesh_pb2.Tester(header="x-user-tier", value="beta", subset="v2")


async def test_a_split_is_set_read_and_given_back(shared):
    events, in_force = await set_(shared, split(BETA, v1=90, v2=10, mirrors={"v2": 5}))
    assert events[-1] == "completed"
    assert in_force.changed
    assert [*in_force.proxies] == ["ingress"]
    assert 0 < seconds(in_force.since) - seconds(in_force.requested) < 5
    found = await get(shared)
    assert (found.host, found.owner, found.problem) == (VISION, OWNER, "")
    assert (shares(found), [*found.subsets]) == ({"v2": 10, "v1": 90}, ["v1", "v2"])
    assert [*found.split.testers] == [BETA]
    assert [(each.subset, each.percent) for each in found.split.mirrors] == [("v2", 5)]
    assert [*found.ready_subsets] == ["v1", "v2"]
    status = await shared.controller.status()
    assert {each.owner for each in status.routes} == {OWNER}
    assert [*status.shifted_files] == [str(shared.objects / "mesh.yaml")]
    # In force already: an answer without a transition.
    last = status.last_transition.id
    events, in_force = await set_(shared, split(BETA, v1=90, v2=10, mirrors={"v2": 5}))
    assert events == ["completed"]
    assert not in_force.changed
    assert in_force.since == in_force.requested
    assert (await shared.controller.status()).last_transition.id == last
    await set_(shared, split(v1=100), owner="")
    status = await shared.controller.status()
    # The file means what it holds again.
    assert not status.shifted_files
    assert status.last_transition.description == "traffic is given back: vision: v1=100"
    assert (await get(shared)).owner == ""


async def test_every_request_after_since_is_divided_by_the_split(shared):
    watch = shared.controller.stub.WatchRequests(mesh_pb2.WatchRequestsRequest(host="vision"))
    taken = []

    async def follow():
        async for each in watch:
            taken.extend((seconds(record.start), record.subset) for record in each.records)

    following = asyncio.create_task(follow())
    changes = []
    async with shared.load() as load:
        await load.some(20)
        for number in range(20):
            to_ = ("v1", "v2")[number % 2 == 0]
            _, in_force = await set_(shared, split(**{to_: 100}))
            changes.append((seconds(in_force.requested), seconds(in_force.since), to_))
            await load.some(20)
        end = changes[-1][1]
        await until_true(lambda: taken and taken[-1][0] > end)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert not load.failures
    for (_, since, subset), (until, _, _) in itertools.pairwise(changes):
        during = [name for start, name in taken if since <= start < until]
        assert during
        assert {*during} == {subset}


async def until_true(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_testers_and_users_get_their_version_through_envoy(shared):
    cookie = mesh_pb2.Tester(cookie="stage", value="a.b", subset="v2")
    any_ = mesh_pb2.Tester(cookie="canary", subset="v2")
    await set_(shared, split(BETA, cookie, any_, v1=100, v2=0))
    async with shared.channel() as channel:
        for metadata, name in (
            ((), "v1"),
            ((("x-user-tier", "beta"),), "v2"),
            ((("x-user-tier", "gamma"),), "v1"),
            ((("cookie", "x=1; stage=a.b; y=2"),), "v2"),
            ((("cookie", "stage=aXb"),), "v1"),
            ((("cookie", "canary="),), "v2"),
            # Envoy joins cookies that a client sends apart.
            ((("cookie", "x=1"), ("cookie", "stage=a.b")), "v2"),
        ):
            assert await shared.say(channel, *metadata) == name, metadata
        await set_(shared, split(v1=100), owner="")
        assert await shared.say(channel, ("x-user-tier", "beta")) == "v1"
        assert await shared.say(channel, ("cookie", "stage=a.b")) == "v1"


@pytest.mark.parametrize(
    ("sticky", "metadata"),
    [
        (mesh_pb2.Sticky(header="x-user-id"), lambda user: ("x-user-id", user)),
        (mesh_pb2.Sticky(cookie="user"), lambda user: ("cookie", f"a=b; user={user}")),
    ],
)
async def test_users_stay_on_their_version_while_a_canary_grows(shared, sticky, metadata):
    async with shared.channel() as channel:

        async def versions():
            return {user: await shared.say(channel, metadata(f"user-{user}")) for user in range(60)}

        await set_(shared, split(v1=70, v2=30, sticky=sticky))
        first = await versions()
        assert first == await versions()
        assert 3 < sum(name == "v2" for name in first.values()) < 40
        await set_(shared, split(v1=40, v2=60, sticky=sticky))
        second = await versions()
        moved = {user for user in first if first[user] != second[user]}
        assert all(first[user] == "v1" for user in moved)
        assert (await get(shared)).split.sticky == sticky
        # Without the header or cookie each request is divided by itself.
        answers = {await shared.say(channel) for _ in range(60)}
        assert answers == {"v1", "v2"}


async def test_owned_traffic_is_not_changed_by_others_unless_forced(shared):
    await set_(shared, split(v1=90, v2=10))
    for call in (
        shared.controller.shifting({"v2": 50}),
        shared.controller.shifting({"v2": 50}, dry_run=True),
        shared.controller.stub.Reset(mesh_pb2.ResetRequest()),
        shared.controller.stub.Reset(mesh_pb2.ResetRequest(dry_run=True)),
        setting(shared, split(v1=100), owner="models/other"),
    ):
        error = await refused(call)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert reason_of(error) == "TRAFFIC_OWNED"
        assert f"belongs to the rollout {OWNER}" in error.details()
        assert "`tidegate rollout abort vision-v2`" in error.details()
    await shared.controller.shift({"v2": 50}, force=True)
    found = await get(shared)
    # The owner sees a foreign change, and stays the owner.
    assert (shares(found), found.owner) == ({"v2": 50, "v1": 50}, OWNER)
    await set_(shared, split(v1=90, v2=10))
    await shared.controller.reset(force=True)
    found = await get(shared)
    assert (shares(found), found.owner) == ({"v1": 100}, "")
    # Nobody owns it now.
    await set_(shared, split(v1=90, v2=10), owner="models/other")
    assert (await get(shared)).owner == "models/other"


async def test_wrong_splits_name_their_fields(shared):
    before = (await shared.controller.status()).last_transition.id
    for wanted, owner, field in (
        (split(), OWNER, "split.weights"),
        (split(v1=50), OWNER, "split.weights"),
        (split(v1=50, v2=150), OWNER, "split.weights[1].weight"),
        (split(v1=50, v9=50), OWNER, "split.weights[1].subset"),
        (split(v1=100, mirrors={"v9": 5}), OWNER, "split.mirrors[0].subset"),
        (split(v1=100, mirrors={"v1": float("nan")}), OWNER, "split.mirrors[0].percent"),
        (split(mesh_pb2.Tester(subset="v2"), v1=100), OWNER, "split.testers[0]"),
        (split(mesh_pb2.Tester(cookie="a b", subset="v2"), v1=100), OWNER, "split.testers[0].cook"),
        (split(mesh_pb2.Tester(header="a", subset="v9"), v1=100), OWNER, "split.testers[0].subs"),
        (split(sticky=mesh_pb2.Sticky(), v1=100), OWNER, "split.sticky"),
        (split(sticky=mesh_pb2.Sticky(cookie="a b"), v1=100), OWNER, "split.sticky.cookie"),
        (split(v1=100), "vision", "owner"),
    ):
        error = await refused(setting(shared, wanted, owner))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith(field), error.details()
    for call in (setting(shared, split(v1=100), host="nobody"), get(shared, "nobody")):
        error = await refused(call)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.NOT_FOUND, "HOST_UNKNOWN")
    assert (await refused(get(shared, ""))).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await shared.controller.status()).last_transition.id == before


async def test_a_split_that_cannot_come_into_force_is_rolled_back_with_its_owner(shared):
    shared.backends["v2"].health.set_all(False)
    await shared.endpoint_is(shared.backends["v2"], mesh_pb2.ENDPOINT_STATE_UNHEALTHY)
    call = setting(shared, split(v1=90, v2=10), deadline={"nanos": 300_000_000})
    error = await refused(call)
    assert reason_of(error) == "TRANSITION_ROLLED_BACK"
    assert "no healthy endpoint" in error.details()
    found = await get(shared)
    assert (shares(found), found.owner, [*found.ready_subsets]) == ({"v1": 100}, "", ["v1"])


async def test_an_edit_of_something_else_keeps_the_split_and_one_of_the_weights_is_seen(shared):
    routes = {"route": [to("v1", 90), to("v2", 10)], "retries": {"attempts": 1}}
    save(shared, pretty(shared, routes))
    await shared.status_is(lambda status: "edit" in status.last_transition.description)
    await set_(shared, split(BETA, v1=60, v2=40, sticky=mesh_pb2.Sticky(header="x-user-id")))
    save(shared, pretty(shared, {**routes, "retries": {"attempts": 3}}))
    await shared.status_is(lambda status: "edit" in status.last_transition.description)
    found = await get(shared)
    assert (shares(found), found.owner, found.problem) == ({"v1": 60, "v2": 40}, OWNER, "")
    assert [*found.split.testers] == [BETA]
    assert found.split.sticky.header == "x-user-id"
    save(shared, pretty(shared, {**routes, "route": [to("v1", 80), to("v2", 20)]}))
    await shared.status_is(
        lambda status: "in place of what was shifted" in status.last_transition.description
    )
    found = await get(shared)
    assert (shares(found), found.owner, [*found.split.testers]) == ({"v1": 80, "v2": 20}, "", [])


async def test_a_client_that_leaves_does_not_stop_the_change(shared):
    proxy = await shared.attach("slow")
    call = setting(shared, split(v1=50, v2=50))
    update = await proxy.read()
    await shared.stage_is(mesh_pb2.STAGE_ROUTES)
    call.cancel()
    await proxy.ack(update)
    await shared.status_is(lambda status: not status.HasField("transition"))
    assert shares(await get(shared)) == {"v2": 50, "v1": 50}
    proxy.call.cancel()
