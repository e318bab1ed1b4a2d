"""Controllers that end at the wrong moment: killed, stopped, restarted."""

import asyncio
import signal

import grpc
import pytest
from mesh_objects import to

from tidegate.mesh.v1 import mesh_pb2


async def killed_in_the_middle(mesh, **shift):
    """Kills the controller while it waits for a proxy that does not answer; returns the proxy."""
    proxy = await mesh.attach("mute")
    shifting = asyncio.create_task(mesh.controller.refused({"v2": 100}, **shift))
    await mesh.stage_is(mesh_pb2.STAGE_ROUTES)
    await mesh.controller.kill()
    await shifting
    return proxy


def ended(status):
    """Whether the interrupted change has ended; until then the status shows it."""
    unfinished = status.waiting_transitions or status.HasField("transition")
    assert status.last_transition.id or unfinished
    return status.last_transition.id


async def test_a_change_that_a_kill_interrupted_is_made_at_the_next_start(serving):
    async with serving.load() as load:
        proxy = await killed_in_the_middle(serving)
        await load.only("v2")
        await serving.controller.start()
        status = await serving.status_is(ended)
        assert status.last_transition.state == mesh_pb2.TRANSITION_STATE_DONE
        assert status.last_transition.description == "shift vision: v2=100"
        await load.only("v2")
    assert not load.failures
    assert [*(await serving.controller.status()).shifted_files] == [
        str(serving.objects / "mesh.yaml")
    ]
    # The next start has nothing left to do.
    await serving.controller.kill()
    await serving.controller.start()
    assert not (await serving.controller.status()).last_transition.id
    proxy.call.cancel()


async def test_a_change_that_cannot_be_made_after_a_kill_is_rolled_back(serving):
    # The change goes on once this is over: the proxy has to be back by then.
    serving.controller.settings["settle_s"] = 5
    before = (serving.objects / "mesh.yaml").read_text()
    async with serving.load() as load:
        await killed_in_the_middle(serving, deadline_s=1)
        await serving.controller.start()
        # The proxy that did not answer is back, and still does not answer.
        proxy = await serving.attach("mute", answers=False)
        status = await serving.status_is(lambda status: status.last_transition.id)
        assert status.last_transition.state == mesh_pb2.TRANSITION_STATE_ROLLED_BACK
        assert "mute has not acknowledged" in status.last_transition.reason
        await load.only("v1")
    assert not load.failures
    assert (serving.objects / "mesh.yaml").read_text() == before
    assert not (await serving.controller.status()).shifted_files
    proxy.call.cancel()


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_restarts_under_load_lose_nothing(serving, end):
    async with serving.load() as load, serving.channel() as channel:
        await serving.controller.shift({"v2": 50})
        flow = serving.flow(channel)
        answerer = (await flow.read()).decode()
        for _ in range(2):
            await getattr(serving.controller, end)()
            await load.some(100)
            await serving.controller.start()
            await serving.status_is(
                lambda status: status.proxies and status.proxies[0].synchronized
            )
            await load.some(100)
        # An edit made while no controller ran is applied afterwards, as any edit.
        await serving.controller.stop()
        serving.write(*serving.vision({"route": [to("v1", 99)]}))
        await serving.controller.start()
        await serving.status_is(lambda status: status.last_transition.id)
        await load.only("v1")
        serving.backends[answerer].go_on.set()
        assert (await flow.read()).decode() == answerer
    assert not load.failures


async def test_a_stopped_controller_ends_at_once_and_resumes_its_change(serving):
    proxy = await serving.attach("mute")
    watch = serving.controller.stub.WatchRequests(mesh_pb2.WatchRequestsRequest())
    shifting = asyncio.create_task(serving.controller.refused({"v2": 100}))
    await serving.stage_is(mesh_pb2.STAGE_ROUTES)
    serving.controller.process.send_signal(signal.SIGTERM)
    error, _ = await shifting
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "goes on at its next start" in error.details()
    assert await watch.read() is grpc.aio.EOF
    assert await asyncio.to_thread(serving.controller.process.wait, 20) == 0
    drained = next(each for each in serving.controller.events() if each["event"] == "drained")
    assert drained["seconds"] < 5
    assert not [each for each in serving.controller.events() if each["level"] == "error"]
    await serving.controller.start()
    await serving.status_is(
        lambda status: status.last_transition.state == mesh_pb2.TRANSITION_STATE_DONE
    )
    proxy.call.cancel()


async def test_wrong_objects_at_the_first_start_are_reported_and_end_it(mesh):
    mesh.write(*mesh.vision({"route": [to("v9", 100)]}))
    mesh.controller.spawn()
    assert await asyncio.to_thread(mesh.controller.process.wait, 30) == 1
    failure = next(each for each in mesh.controller.events() if each["level"] == "error")
    assert "v9" in failure["error"]
    assert "exception" not in failure


async def test_wrong_objects_at_a_later_start_leave_what_was_in_effect(serving):
    await serving.controller.stop()
    good = (serving.objects / "mesh.yaml").read_text()
    (serving.objects / "mesh.yaml").write_text("nonsense")
    async with serving.load() as load:
        await serving.controller.start()
        status = await serving.status_is(lambda status: list(status.problems))
        assert "mesh.yaml" in status.problems[0].source
        await load.only("v1")
        (serving.objects / "mesh.yaml").write_text(good)
        await serving.status_is(lambda status: not status.problems)
    assert not load.failures
