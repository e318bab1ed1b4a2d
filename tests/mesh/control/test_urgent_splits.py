"""Splits that take traffic from a bad version: proxies that do not answer and broken files.

A test that attaches a proxy reads what it is sent and decides whether it answers. Envoy answers.
"""

import asyncio
import contextlib
import time

import grpc
import pytest
from mesh_objects import to
from mesh_splits import OWNER, get, pretty, reason_of, refused, save, set_, setting, shares, split

from tidegate.mesh.v1 import mesh_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

ON_ITS_OWN = pytest.mark.asyncio(loop_scope="function")
KEEP = mesh_pb2.ON_DEADLINE_KEEP
BROKEN = "\n---\nkind: VirtualService\n  broken: [\n"


def brief(seconds):
    return {"deadline": {"nanos": round(seconds * 1e9)}}


@contextlib.asynccontextmanager
async def frozen(mesh):
    """A proxy that stops answering while the context is open."""
    proxy = await mesh.attach("frozen")
    try:
        yield proxy
    finally:
        proxy.call.cancel()
        await mesh.status_is(lambda status: len(status.proxies) == 1)


async def test_a_split_stays_where_it_was_acknowledged(shared):
    await set_(shared, split(v1=50, v2=50))
    async with frozen(shared) as proxy, shared.load() as load:
        events, in_force = await set_(
            shared, split(v1=100), owner="", on_deadline=KEEP, **brief(0.4)
        )
        assert events[-1] == "completed"
        assert "proxy_late" in events
        assert ([*in_force.proxies], [*in_force.late_proxies]) == (["ingress"], ["frozen"])
        assert "frozen" in in_force.message
        # Nothing flips back.
        await load.only("v1")
        assert (shares(await get(shared)), (await get(shared)).owner) == ({"v1": 100}, "")
        status = await shared.controller.status()
        assert status.last_transition.state == mesh_pb2.TRANSITION_STATE_DONE
        # A proxy that answers again has been sent the split.
        await proxy.take()
        await shared.status_is(lambda found: all(each.synchronized for each in found.proxies))
    assert not load.failures


async def test_without_the_option_a_split_that_one_proxy_does_not_take_is_rolled_back(shared):
    await set_(shared, split(v1=50, v2=50))
    async with frozen(shared):
        error = await refused(setting(shared, split(v1=100), owner="", **brief(0.4)))
        assert reason_of(error) == "TRANSITION_ROLLED_BACK"
        assert "frozen has not acknowledged" in error.details()
        assert shares(await get(shared)) == {"v1": 50, "v2": 50}


async def test_a_proxy_that_refuses_the_routes_does_not_hold_back_the_others(shared):
    await set_(shared, split(v1=50, v2=50))
    async with frozen(shared) as proxy:
        call = setting(shared, split(v1=100), owner="", on_deadline=KEEP)
        await proxy.nack(await proxy.read(), "no good")
        *events, last = [each async for each in call]
        late = [each.event for each in events if each.event.proxy == "frozen"]
        assert [each.kind for each in late] == [mesh_pb2.TransitionEvent.KIND_PROXY_LATE]
        assert "refused" in late[0].message
        assert "no good" in late[0].message
        assert [*last.in_force.late_proxies] == ["frozen"]
        assert shares(await get(shared)) == {"v1": 100}


@ON_ITS_OWN
async def test_routes_that_every_proxy_refuses_are_rolled_back(mesh):
    mesh.write(*mesh.vision({"route": [to("v1", 50), to("v2", 50)]}))
    await mesh.controller.start()
    proxy = await mesh.attach("only")
    call = setting(mesh, split(v1=100), owner="", on_deadline=KEEP)
    await proxy.nack(await proxy.read(), "no good")
    error = await refused(call)
    assert reason_of(error) == "TRANSITION_ROLLED_BACK"
    assert "no good" in error.details()
    proxy.call.cancel()


async def test_a_subset_without_a_healthy_endpoint_gets_no_traffic_even_if_it_is_urgent(shared):
    await set_(shared, split(v1=0, v2=100))
    shared.backends["v1"].health.set_all(False)
    await shared.endpoint_is(shared.backends["v1"], mesh_pb2.ENDPOINT_STATE_UNHEALTHY)
    error = await refused(setting(shared, split(v1=100), owner="", on_deadline=KEEP, **brief(0.3)))
    assert "no healthy endpoint" in error.details()
    assert shares(await get(shared)) == {"v1": 0, "v2": 100}


async def test_a_split_that_runs_gives_way_to_an_urgent_one(shared):
    await set_(shared, split(v1=90, v2=10))
    async with frozen(shared):
        running = setting(shared, split(v1=50, v2=50))
        await shared.stage_is(mesh_pb2.STAGE_ROUTES)
        began = time.monotonic()
        events, in_force = await set_(
            shared, split(v1=100), owner="", on_deadline=KEEP, **brief(0.5)
        )
        # A stage without an urgent one behind it has 30 s.
        assert time.monotonic() - began < 15
        assert events[0] == "queued"
        assert [*in_force.late_proxies] == ["frozen"]
        error = await refused(running)
        assert reason_of(error) == "TRANSITION_ROLLED_BACK"
        assert "it gave way to an urgent change" in error.details()
        assert shares(await get(shared)) == {"v1": 100}


async def test_what_a_client_that_left_had_begun_gives_way_too(shared):
    async with frozen(shared):
        running = setting(shared, split(v1=50, v2=50))
        await shared.stage_is(mesh_pb2.STAGE_ROUTES)
        running.cancel()
        began = time.monotonic()
        await set_(shared, split(v1=100), owner="", on_deadline=KEEP, **brief(0.5))
        assert time.monotonic() - began < 15
        assert shares(await get(shared)) == {"v1": 100}


async def test_a_shift_by_a_person_does_not_give_way(shared):
    async with frozen(shared) as proxy:
        shifting = shared.controller.shifting({"v2": 50}, deadline_s=20)
        update = await proxy.read()
        await shared.stage_is(mesh_pb2.STAGE_ROUTES)
        urgent = asyncio.ensure_future(
            set_(shared, split(v1=100), owner="", on_deadline=KEEP, **brief(0.5))
        )
        await shared.status_is(lambda status: status.waiting_transitions == 1)
        await proxy.ack(update)
        assert [each async for each in shifting]
        await urgent
        assert shares(await get(shared))["v1"] == 100


async def test_a_wrong_option_is_refused(shared):
    error = await refused(setting(shared, split(v1=100), on_deadline=7))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("on_deadline: is 7; use")


async def broken(mesh, content):
    """Saves a file with an error, and waits until the status says so."""
    save(mesh, content)
    await mesh.status_is(lambda status: any("mesh.yaml" in each.source for each in status.problems))


async def test_a_broken_file_does_not_hold_back_a_split_and_is_merged_once_it_is_mended(shared):
    routes = {"route": [to("v1", 90), to("v2", 10)], "retries": {"attempts": 1}}
    good = pretty(shared, routes)
    save(shared, good)
    await shared.status_is(lambda status: "edit" in status.last_transition.description)
    await set_(shared, split(v1=50, v2=50))
    edited = pretty(shared, {**routes, "retries": {"attempts": 3}})
    await broken(shared, edited + BROKEN)
    # A person can mend the file, and is told so.
    error, _ = await shared.controller.refused({"v2": 20}, force=True)
    assert reason_of(error) == "FILE_NOT_IN_EFFECT"
    await set_(shared, split(v1=70, v2=30))
    assert (shares(await get(shared)), (await get(shared)).owner) == ({"v1": 70, "v2": 30}, OWNER)
    save(shared, edited)
    status = await shared.status_is(
        lambda status: not status.problems and "edit" in status.last_transition.description
    )
    # The edit is in effect, and so is the split.
    assert "in place of" not in status.last_transition.description
    assert (shares(await get(shared)), (await get(shared)).owner) == ({"v1": 70, "v2": 30}, OWNER)
    await set_(shared, split(v1=90, v2=10), owner="")
    assert not (await shared.controller.status()).shifted_files


async def test_a_host_is_given_back_while_its_file_is_broken(shared):
    good = pretty(shared, {"route": [to("v1", 100)]})
    await set_(shared, split(v1=90, v2=10))
    await broken(shared, good + BROKEN)
    await set_(shared, split(v1=100), owner="", on_deadline=KEEP)
    assert (shares(await get(shared)), (await get(shared)).owner) == ({"v1": 100}, "")
    edited = pretty(shared, {"route": [to("v1", 80), to("v2", 20)]})
    save(shared, edited)
    await shared.status_is(lambda status: "edit" in status.last_transition.description)
    assert shares(await get(shared)) == {"v1": 80, "v2": 20}
    assert not (await shared.controller.status()).shifted_files


@ON_ITS_OWN
async def test_a_split_over_a_broken_file_outlives_the_controller(serving):
    await set_(serving, split(v1=90, v2=10))
    good = (serving.objects / "mesh.yaml").read_text()
    await broken(serving, good + BROKEN)
    await set_(serving, split(v1=70, v2=30))
    await serving.controller.kill()
    await serving.controller.start()
    assert (shares(await get(serving)), (await get(serving)).owner) == ({"v1": 70, "v2": 30}, OWNER)
    save(serving, good)
    await serving.status_is(lambda status: not status.problems)
    assert shares(await get(serving)) == {"v1": 70, "v2": 30}
