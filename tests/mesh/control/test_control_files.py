"""Files that people edit and servers that start and stop, with a real Envoy."""

import grpc
from mesh_objects import entry, gateway, rule, to, virtual

from tidegate.mesh.v1 import mesh_pb2

DRAINING = mesh_pb2.ENDPOINT_STATE_DRAINING


async def test_an_edit_goes_through_a_transition(serving):
    async with serving.load() as load:
        await load.only("v1")
        serving.write(*serving.vision({"route": [to("v2", 100)]}))
        status = await serving.status_is(lambda status: status.last_transition.id)
        assert status.last_transition.description == "edit of mesh.yaml"
        assert status.last_transition.state == mesh_pb2.TRANSITION_STATE_DONE
        await load.only("v2")
    assert not load.failures


async def test_an_edit_with_errors_is_refused_until_it_is_mended(serving):
    good = (serving.objects / "mesh.yaml").read_text()
    async with serving.load() as load:
        (serving.objects / "mesh.yaml").write_text(good.replace('"http"', '"htpp"'))
        status = await serving.status_is(lambda status: list(status.problems))
        assert "htpp" in status.problems[0].message
        assert status.problems[0].source.endswith("mesh.yaml")
        error, _ = await serving.controller.refused({"v2": 10})
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "not in effect" in error.details()
        # Only all objects together show that a subset is missing.
        (serving.objects / "mesh.yaml").write_text(good.replace('"subset": "v1"', '"subset": "v7"'))
        status = await serving.status_is(
            lambda status: status.problems and "v7" in status.problems[-1].message
        )
        assert not status.transition.id
        await load.only("v1")
        (serving.objects / "mesh.yaml").write_text(good)
        await serving.status_is(lambda status: not status.problems)
        await serving.controller.shift({"v2": 100})
        await load.only("v2")
    assert not load.failures


async def test_an_edit_that_cannot_be_made_leaves_what_is_in_effect_and_the_file(mesh):
    mesh.controller.settings["stage_deadline_s"] = 0.5
    mesh.write(*mesh.vision({"route": [to("v1", 100)]}))
    mesh.backends["v2"].health.set_all(False)
    await mesh.controller.start()
    async with mesh.envoy(), mesh.load() as load:
        mesh.write(*mesh.vision({"route": [to("v2", 100)]}))
        edited = (mesh.objects / "mesh.yaml").read_text()
        status = await mesh.status_is(lambda status: list(status.problems))
        assert status.problems[0].source == "edited files"
        assert "no healthy endpoint" in status.problems[0].message
        assert status.last_transition.state == mesh_pb2.TRANSITION_STATE_ROLLED_BACK
        await load.only("v1")
        assert (mesh.objects / "mesh.yaml").read_text() == edited
    assert not load.failures


def selected(mesh, *http):
    """Objects whose endpoints are the servers that register themselves."""
    return (
        gateway(mesh.port),
        entry([], workloadSelector={"labels": {"app": "vision"}}),
        rule(subsets=("v1", "v2")),
        virtual(*http),
    )


async def test_a_server_that_goes_finishes_its_streams(mesh):
    other = await mesh.add_backend("v1-b")
    first = mesh.backends["v1"]
    mesh.write(*selected(mesh, {"route": [to("v1", 100)]}))
    for backend in (first, other):
        mesh.workload(backend, "v1")
    await mesh.controller.start()
    async with mesh.envoy() as admin, mesh.load() as load, mesh.channel() as channel:
        mesh.admin = admin
        await load.comes_to("v1", "v1-b")
        flows = [mesh.flow(channel) for _ in range(8)]
        for flow in flows:
            await flow.read()
        assert first.flows
        (mesh.workloads / "v1.yaml").unlink()
        await mesh.envoy_has(first, healthy=False)
        await load.comes_to("v1-b")
        assert first.address in await mesh.clusters("v1")
        first.go_on.set()
        other.go_on.set()
        for flow in flows:
            await flow.read()
            assert await flow.code() is grpc.StatusCode.OK
        await mesh.envoy_lost(first)
    assert not load.failures


async def test_requests_that_are_stranded_at_the_deadline_are_reported(mesh):
    mesh.controller.settings["leave_deadline_s"] = 2
    other = await mesh.add_backend("v1-b")
    first = mesh.backends["v1"]
    mesh.write(*selected(mesh, {"route": [to("v1", 100)]}))
    mesh.workload(first, "v1")
    await mesh.controller.start()
    async with mesh.envoy() as admin, mesh.channel() as channel:
        mesh.admin = admin
        flow = mesh.flow(channel)
        await flow.read()
        mesh.workload(other, "v1")
        await mesh.envoy_has(other, healthy=True)
        (mesh.workloads / "v1.yaml").unlink()
        status = await mesh.status_is(lambda status: list(status.problems))
        assert status.problems[0].source == f"endpoint {first.address}"
        assert "with requests still running: 1" in status.problems[0].message
        await mesh.envoy_lost(first)
        # Envoy lets the stream go on all the same.
        first.go_on.set()
        assert await flow.read() == b"v1"


async def test_an_endpoint_is_drained_and_taken_into_use_again(mesh):
    other = await mesh.add_backend("v1-b")
    first = mesh.backends["v1"]
    mesh.write(*selected(mesh, {"route": [to("v1", 100)]}))
    mesh.workload(first, "v1")
    await mesh.controller.start()
    stub = mesh.controller.stub
    async with mesh.envoy(), mesh.channel() as channel, mesh.load() as load:
        flow = mesh.flow(channel)
        assert await flow.read() == b"v1"
        mesh.workload(other, "v1")
        await mesh.endpoint_is(other, mesh_pb2.ENDPOINT_STATE_HEALTHY)
        request = mesh_pb2.DrainEndpointRequest(address=first.address)
        request.deadline.FromMilliseconds(800)
        answer = await stub.DrainEndpoint(request)
        assert (answer.drained, answer.stranded_requests) == (False, 1)
        assert answer.reason == "requests still run there"
        await load.comes_to("v1-b")
        status = await mesh.controller.status(count=True)
        told = {each.address: each for each in status.endpoints}
        assert told[first.address].state == DRAINING
        assert told[first.address].requests_in_progress == 1
        first.go_on.set()
        assert await flow.read() == b"v1"
        answer = await stub.DrainEndpoint(mesh_pb2.DrainEndpointRequest(address=first.address))
        assert answer.drained
        undrain = mesh_pb2.UndrainEndpointRequest(address=first.address)
        assert (await stub.UndrainEndpoint(undrain)).state == mesh_pb2.ENDPOINT_STATE_HEALTHY
        await load.comes_to("v1", "v1-b")
    assert not load.failures


async def test_a_server_that_stops_serving_or_dies_gets_no_more_requests(mesh):
    other = await mesh.add_backend("v1-b")
    mesh.write(*selected(mesh, {"route": [to("v1", 100)]}))
    mesh.workload(mesh.backends["v1"], "v1")
    mesh.workload(other, "v1")
    await mesh.controller.start()
    async with mesh.envoy(), mesh.load() as load:
        await load.comes_to("v1", "v1-b")
        other.health.set_all(False)
        await mesh.endpoint_is(other, mesh_pb2.ENDPOINT_STATE_UNHEALTHY)
        await load.comes_to("v1")
        other.health.set_all(True)
        await load.comes_to("v1", "v1-b")
        other.health.set_all(False)
        await load.comes_to("v1")
        await other.server.stop(None)
        status = await mesh.status_is(
            lambda status: any("stream broke" in each.reason for each in status.endpoints)
        )
        assert len(status.endpoints) == 2
        await load.comes_to("v1")
    assert not load.failures
