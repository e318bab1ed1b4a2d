"""An endpoint's state follows the location and the protocol of the hosts that use it."""

import asyncio
import contextlib

import pytest
import typer
from mesh_objects import entry, gateway, rule, virtual
from typer.testing import CliRunner

from tidegate.cli.mesh.status import status as status_command
from tidegate.mesh.v1 import mesh_pb2

HEALTHY = mesh_pb2.ENDPOINT_STATE_HEALTHY
UNHEALTHY = mesh_pb2.ENDPOINT_STATE_UNHEALTHY
DRAINING = mesh_pb2.ENDPOINT_STATE_DRAINING
NOT_CHECKED = "not checked: it is outside of the mesh, or found by DNS"
ONE, TWO = "one.models.svc.cluster.local", "two.models.svc.cluster.local"
INSIDE, OUTSIDE = "MESH_INTERNAL", "MESH_EXTERNAL"


def host(name, backend, location, protocol="GRPC"):
    return entry({"v1": backend.port}, host=name, location=location, protocol=protocol)


async def endpoint_is(mesh, backend, state, reason="", *, hosts=None):
    """Waits until an endpoint has a state and a reason, and hosts have these healthy endpoints."""

    def condition(status):
        found = {each.address: (each.state, each.reason) for each in status.endpoints}
        return (
            found.get(backend.address) == (state, reason)
            and not status.transition.id
            and hosts in (None, healthy(status))
        )

    return await mesh.status_is(condition)


def healthy(status):
    """How many endpoints of each host are healthy, and how many of them are not checked."""
    return {
        each.name.partition(".")[0]: (
            each.subsets[0].healthy_endpoints,
            each.subsets[0].unchecked_endpoints,
        )
        for each in status.hosts
    }


async def test_a_state_follows_the_location_of_hosts_at_one_address(mesh):
    backend = mesh.backends["v1"]
    refusing = "it says NOT_SERVING"
    backend.health.set_all(False)
    mesh.write(host(ONE, backend, INSIDE))
    await mesh.controller.start()
    await endpoint_is(mesh, backend, UNHEALTHY, refusing)
    # Out of the mesh: not checked any more.
    mesh.write(host(ONE, backend, OUTSIDE))
    await endpoint_is(mesh, backend, HEALTHY, NOT_CHECKED, hosts={"one": (1, 1)})
    # A host of the mesh at the same address is checked, and the outside host stays healthy.
    mesh.write(host(ONE, backend, OUTSIDE), host(TWO, backend, INSIDE))
    await endpoint_is(mesh, backend, UNHEALTHY, refusing, hosts={"one": (1, 1), "two": (0, 0)})
    # Only the other host has the address now; that host leaves the mesh and comes back.
    mesh.write(host(TWO, backend, INSIDE))
    await endpoint_is(mesh, backend, UNHEALTHY, refusing, hosts={"two": (0, 0)})
    mesh.write(host(TWO, backend, OUTSIDE))
    await endpoint_is(mesh, backend, HEALTHY, NOT_CHECKED)
    mesh.write(host(TWO, backend, INSIDE))
    await endpoint_is(mesh, backend, UNHEALTHY, refusing)
    backend.health.set_all(True)
    await endpoint_is(mesh, backend, HEALTHY, hosts={"two": (1, 0)})


async def test_a_state_follows_the_protocol_of_the_port(mesh):
    backend = mesh.backends["v1"]
    backend.health.set_all(False)
    mesh.write(host(ONE, backend, INSIDE))
    await mesh.controller.start()
    await endpoint_is(mesh, backend, UNHEALTHY, "it says NOT_SERVING")
    for protocol in ("HTTP", "HTTP2", "TCP"):
        mesh.write(host(ONE, backend, INSIDE, protocol))
        await endpoint_is(mesh, backend, HEALTHY)
        mesh.write(host(ONE, backend, INSIDE, "GRPC"))
        await endpoint_is(mesh, backend, UNHEALTHY, "it says NOT_SERVING")


async def test_a_server_that_is_called_with_tls_is_connected_to_by_tcp(mesh):
    """The controller has no certificate for it, so a gRPC check would fail."""
    backend = mesh.backends["v1"]
    backend.health.set_all(False)
    one = host(ONE, backend, INSIDE)
    mesh.write(one, rule({"tls": {"mode": "SIMPLE"}}, subsets=(), host=ONE))
    await mesh.controller.start()
    await endpoint_is(mesh, backend, HEALTHY)
    mesh.write(one, rule({"tls": {"mode": "DISABLE"}}, subsets=(), host=ONE))
    await endpoint_is(mesh, backend, UNHEALTHY, "it says NOT_SERVING")
    tls = {"name": "v1", "labels": {"version": "v1"}, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}
    mesh.write(one, rule(subsets=[tls], host=ONE))
    await endpoint_is(mesh, backend, HEALTHY)


async def test_endpoints_outside_of_the_mesh_can_be_drained(mesh):
    backend = mesh.backends["v1"]
    mesh.write(host(ONE, backend, OUTSIDE))
    await mesh.controller.start()
    await endpoint_is(mesh, backend, HEALTHY, NOT_CHECKED)
    stub = mesh.controller.stub
    await stub.DrainEndpoint(mesh_pb2.DrainEndpointRequest(address=backend.address))
    status = await mesh.status_is(
        lambda status: [each.state for each in status.endpoints] == [DRAINING]
    )
    assert healthy(status) == {"one": (0, 0)}
    await stub.UndrainEndpoint(mesh_pb2.UndrainEndpointRequest(address=backend.address))
    await endpoint_is(mesh, backend, HEALTHY, NOT_CHECKED)


@contextlib.asynccontextmanager
async def http_server():
    open_ = set()

    async def answer(reader, writer):
        open_.add(writer)
        # A connection without a request is a health check.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
            await writer.drain()
        await close(writer)
        open_.discard(writer)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
    # A health check that has just been accepted is not in the set before its task has run.
    await asyncio.sleep(0.1)
    for each in tuple(open_):
        await close(each)


async def close(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def get(port):
    """Envoy's answer; none while it does not listen."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        await asyncio.sleep(0.02)
        return ""
    try:
        writer.write(b"GET / HTTP/1.1\r\nhost: vision.example.com\r\nconnection: close\r\n\r\n")
        return (await reader.read()).decode()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("location", [INSIDE, OUTSIDE])
async def test_a_plain_http_server_is_reached_through_envoy(mesh, location):
    async with http_server() as port:
        one = entry({"v1": port}, host=ONE, port=80, protocol="HTTP", location=location)
        route = virtual({"route": [{"destination": {"host": ONE}}]})
        mesh.write(gateway(mesh.port, protocol="HTTP"), one, route)
        await mesh.controller.start()
        async with mesh.envoy() as admin:
            mesh.admin = admin
            await mesh.status_is(lambda status: healthy(status)["one"][0] == 1)
            answer = ""
            async with asyncio.timeout(30):
                while "200 OK" not in answer:
                    answer = await get(mesh.port)
            assert answer.endswith("hello")
        invoked = await asyncio.to_thread(shown, mesh.controller.address)
    assert ("1 of 1 (1 not checked)" in invoked) is (location == OUTSIDE)
    assert "1 of 1" in invoked


def shown(address):
    app = typer.Typer()
    app.command()(status_command)
    return CliRunner().invoke(app, ["--address", address]).output


async def test_servers_found_by_dns_are_not_said_to_be_unhealthy(mesh):
    backend = mesh.backends["v1"]
    found = [{"address": "localhost", "ports": {"main": backend.port}}]
    mesh.write(entry(found, host=ONE, resolution="DNS", location=INSIDE))
    await mesh.controller.start()
    status = await mesh.controller.status()
    assert healthy(status) == {"one": (1, 1)}


async def test_an_http_workload_is_asked_at_the_path_that_it_names(mesh):
    statuses = [b"200 OK"]

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + statuses[0] + b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        service = entry({}, host=ONE, location=INSIDE, protocol="HTTP")
        del service["spec"]["endpoints"]
        service["spec"]["workloadSelector"] = {"labels": {"app": "one"}}
        workload = {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": "one-1",
                "namespace": "models",
                "annotations": {"tidegate.dev/readiness": "/readyz"},
            },
            "spec": {
                "address": "127.0.0.1",
                "ports": {service["spec"]["ports"][0]["name"]: port},
                "labels": {"app": "one"},
            },
        }
        mesh.write(service, workload)
        await mesh.controller.start()

        def has(state, reason):
            return lambda status: (
                [(each.address, each.state, each.reason) for each in status.endpoints]
                == [(f"127.0.0.1:{port}", state, reason)]
            )

        await mesh.status_is(has(HEALTHY, ""))
        statuses[0] = b"503 Service Unavailable"
        await mesh.status_is(has(UNHEALTHY, "it answers /readyz with 503"))
        # As with any check, another protocol of the host gets another check.
        service["spec"]["ports"][0]["protocol"] = "TCP"
        mesh.write(service, workload)
        await mesh.status_is(has(HEALTHY, ""))
    await mesh.controller.stop()
    await asyncio.sleep(0.1)
