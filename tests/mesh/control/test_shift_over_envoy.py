"""Shifts through a real Envoy, under load."""

import asyncio

import grpc
import pytest
from mesh_objects import to
from stopped_threads import stopped

from tidegate.mesh.v1 import mesh_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

Event = mesh_pb2.TransitionEvent


def kinds(messages):
    names = [Event.Kind.Name(each.event.kind).removeprefix("KIND_") for each in messages]
    return [name.lower() for name in names]


async def test_a_shift_moves_traffic_and_loses_nothing(shared):
    before = (shared.objects / "mesh.yaml").read_text()
    async with shared.load() as load:
        await load.only("v1")
        told = await shared.controller.shift({"v2": 50})
        assert kinds(told) == [
            *("stage_started", "cluster_healthy", "stage_done"),
            *("stage_started", "proxy_acknowledged", "stage_done"),
            "completed",
        ]
        assert {each.event.proxy for each in told if each.event.proxy} == {"ingress"}
        load.answers.clear()
        await load.some(400)
        assert 100 < load.answers["v2"] < 300
        await shared.controller.shift({"v1": 0, "v2": 100})
        await load.only("v2")
    assert not load.failures
    # The file is as it was; the text in effect is kept apart from it.
    status = await shared.controller.status()
    assert [(each.subset, each.share) for each in status.routes[0].destinations] == [
        ("v2", 1.0),
        ("v1", 0.0),
    ]
    assert [*status.shifted_files] == [str(shared.objects / "mesh.yaml")]
    assert (shared.objects / "mesh.yaml").read_text() == before


async def test_a_hundred_shifts_under_load_lose_nothing(shared):
    async with shared.load() as load:
        for number in range(100):
            await shared.controller.shift({"v1": 10 * (number % 7), "v2": 100 - 10 * (number % 7)})
        await load.some()
    assert not load.failures


async def test_a_shift_waits_for_the_workers_of_envoy_and_not_only_for_its_acknowledgement(shared):
    with stopped(shared.envoy_pid, "wrk:worker_0"):
        error, told = await shared.controller.refused({"v2": 100}, deadline_s=1)
    assert "ingress acknowledged, but not all of its workers use the routes within 1 s" in str(
        error.details()
    )
    # Envoy's main thread acknowledged at once, and the shift did not end then.
    assert kinds(told)[-3:] == ["proxy_acknowledged", "rolling_back", "rolled_back"]
    await shared.controller.shift({"v2": 100})
    async with shared.load() as load:
        await load.only("v2")
    assert not load.failures


async def test_a_new_subset_is_edited_in_shifted_to_and_removed_again(shared):
    backend = await shared.add_backend("v3")
    everything = {"subsets": ("v1", "v2", "v3"), "backends": ("v1", "v2", "v3")}
    async with shared.load() as load:
        shared.write(*shared.vision({"route": [to("v1", 100)]}, **everything))
        await until_subsets(shared, "v1", "v2", "v3")
        await shared.controller.shift({"v3": 100})
        await load.only("v3")
        async with shared.channel() as channel:
            flow = shared.flow(channel)
            assert await flow.read() == b"v3"
            shared.write(*shared.vision({"route": [to("v1", 100)]}))
            # The cluster and the endpoint wait for the stream; the stream is not cut.
            await shared.stage_is(mesh_pb2.STAGE_DRAIN)
            await load.only("v1")
            assert await shared.clusters("v3") == {backend.address}
            backend.go_on.set()
            assert await flow.read() == b"v3"
            assert await flow.code() is grpc.StatusCode.OK
        await until_subsets(shared, "v1", "v2")
        assert await shared.clusters("v3") == set()
    assert not load.failures


async def test_a_subset_without_healthy_endpoints_gets_nothing(shared):
    before = (shared.objects / "mesh.yaml").read_text()
    shared.backends["v2"].health.set_all(False)
    async with shared.load() as load:
        await shared.endpoint_is(shared.backends["v2"], mesh_pb2.ENDPOINT_STATE_UNHEALTHY)
        error, told = await shared.controller.refused({"v2": 10}, deadline_s=0.3)
        await load.only("v1")
    assert not load.failures
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "no healthy endpoint" in error.details()
    assert f"{shared.backends['v2'].address}: it says NOT_SERVING" in error.details()
    assert kinds(told) == ["stage_started", "rolling_back", "rolled_back"]
    assert (shared.objects / "mesh.yaml").read_text() == before
    assert (await shared.controller.status()).last_transition.reason


async def test_a_change_that_one_proxy_rejects_is_rolled_back_for_all(shared):
    before = (shared.objects / "mesh.yaml").read_text()
    proxy = await shared.attach("picky")
    async with shared.load() as load:
        shift = asyncio.create_task(shared.controller.refused({"v2": 100}))
        await proxy.nack(await proxy.read(), "I will not have it")
        # The proxy still has what is served again, so nothing is sent to it.
        error, told = await shift
        await load.only("v1")
        assert not load.failures
    assert "picky refused virtual_host" in error.details()
    assert "I will not have it" in error.details()
    assert kinds(told)[-2:] == ["rolling_back", "rolled_back"]
    assert (shared.objects / "mesh.yaml").read_text() == before
    proxy.call.cancel()


async def test_a_proxy_that_does_not_answer_is_named_and_a_disconnected_one_is_not_waited_for(
    shared,
):
    proxy = await shared.attach("mute")
    error, _ = await shared.controller.refused({"v2": 10}, deadline_s=0.5)
    assert "mute has not acknowledged virtual_host" in error.details()
    shift = asyncio.create_task(shared.controller.shift({"v2": 10}))
    await shared.stage_is(mesh_pb2.STAGE_ROUTES)
    proxy.call.cancel()
    assert "proxy_gone" in kinds(await shift)


async def test_shifts_wait_for_each_other(shared):
    proxy = await shared.attach("slow")
    first = asyncio.create_task(shared.controller.shift({"v2": 10}))
    await shared.stage_is(mesh_pb2.STAGE_ROUTES)
    second = asyncio.create_task(shared.controller.shift({"v2": 20}))
    await shared.status_is(lambda status: status.waiting_transitions == 1)
    await proxy.take()
    assert kinds(await first)[-1] == "completed"
    await proxy.take()
    told = kinds(await second)
    assert (told[0], told[-1]) == ("queued", "completed")
    proxy.call.cancel()


async def test_nonsense_is_refused_and_dry_runs_change_nothing(shared):
    last = (await shared.controller.status()).last_transition
    before = (shared.objects / "mesh.yaml").read_text()
    for fields, words in (
        ({"weights": {"v9": 10}}, "v9"),
        ({"weights": {}}, "weights"),
        ({"weights": {"v2": 10}, "deadline_s": 0.001}, "deadline"),
        ({"weights": {"v1": 0, "v2": 0}}, "weight"),
        ({"mirrors": [mesh_pb2.Mirror(subset="v2", percent=float("nan"))]}, "mirrors[0].percent"),
        ({"weights": {"v2": 1}, "matches": [mesh_pb2.HeaderMatch(name="a b")]}, "matches[0].name"),
    ):
        error, told = await shared.controller.refused(**fields)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in error.details()
        assert told == []
    error, _ = await shared.controller.refused({"v2": 1}, host="vision.elsewhere")
    assert error.code() is grpc.StatusCode.NOT_FOUND
    (message,) = await shared.controller.shift({"v2": 25}, dry_run=True)
    assert "weight: 25" in message.preview.objects_diff
    assert "weighted_clusters" in message.preview.resources_diff
    # The scope with the same routes is not shown again.
    assert "scoped_route" not in message.preview.resources_diff
    assert (shared.objects / "mesh.yaml").read_text() == before
    assert (await shared.controller.status()).last_transition.id == last.id


async def test_finished_requests_can_be_watched(shared):
    request = mesh_pb2.WatchRequestsRequest(host="vision", subset="v1")
    watch = shared.controller.stub.WatchRequests(request)
    async with shared.load() as load:
        record = (await watch.read()).records[0]
        await load.some()
    assert record.endpoint == shared.backends["v1"].address
    assert (record.proxy, record.subset, record.grpc_status) == ("ingress", "v1", 0)
    assert record.method.endswith("/Say")
    watch.cancel()


async def until_subsets(mesh, *names):
    await mesh.status_is(
        lambda status: (
            [each.name for each in status.hosts[0].subsets] == ["", *names]
            and not status.transition.id
        )
    )
