"""Requests in progress, as a real Envoy and a real gRPC client report them."""

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path

import grpc
import pytest
from ads_double import xds_bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.config.route.v3.route_pb2 import RouteConfiguration
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.load_stats.v3.lrs_pb2 import LoadStatsRequest
from envoy.service.load_stats.v3.lrs_pb2_grpc import LoadReportingServiceStub

from tidegate.mesh.telemetry import LoadReportingServicer, LoadReports

WAIT_S = 30.0
HOST = "echo.models.svc.cluster.local"
DOUBLES = Path(__file__).parents[2] / "doubles"


def name(subset):
    return f"outbound|50051|{subset}|{HOST}"


async def reported(loads, cluster, condition):
    """Waits until the reports on a cluster meet a condition."""
    async with asyncio.timeout(WAIT_S):
        while not condition(found := loads.in_progress(cluster)):
            await loads.next_report()
        return found


async def envoy_reported(mesh, subset, requests):
    """Waits until Envoy reports a number of requests for a subset; returns its endpoints."""

    def is_so(found):
        return "ingress-1" in found and found["ingress-1"].requests == requests

    return (await reported(mesh.loads, name(subset), is_so))["ingress-1"].endpoints


async def opened(mesh, to, count):
    calls = [mesh.call("Stream", to, kind="unary_stream", timeout=None) for _ in range(count)]
    for call in calls:
        assert await call.read() == b"1"
    return calls


async def finished(calls):
    for call in calls:
        rest = [await call.read(), await call.read(), await call.read()]
        assert rest == [b"2", b"3", grpc.aio.EOF]
        assert await call.code() is grpc.StatusCode.OK


@pytest.fixture
def held(mesh):
    """Streams stop after their first message until the test releases them."""
    servers = (mesh.v1, mesh.v2, mesh.v3)
    for server in servers:
        server.go_on.clear()
    yield
    for server in servers:
        server.go_on.set()


@pytest.mark.asyncio(loop_scope="module")
async def test_streams_are_counted_until_they_end(mesh, held):
    calls = await opened(mesh, "v1", 3)
    with mesh.loads.watch([name("v1")]):
        assert mesh.loads.in_progress(name("v1"))["ingress-1"].requests is None
        assert await envoy_reported(mesh, "v1", 3) == {mesh.v1.address: 3}
        mesh.v1.go_on.set()
        await finished(calls)
        assert await envoy_reported(mesh, "v1", 0) == {}
        assert mesh.loads.in_progress(name("v1"))["ingress-1"].silent_s >= 0
    assert mesh.loads.in_progress(name("v1"))["ingress-1"].requests is None


@pytest.mark.asyncio(loop_scope="module")
async def test_clusters_without_traffic_and_unknown_clusters_have_no_requests(mesh):
    with mesh.loads.watch([name("empty"), name("refused"), name("no-such")]):
        for subset in ("empty", "refused", "no-such"):
            assert await envoy_reported(mesh, subset, 0) == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_draining_endpoint_is_reported_until_it_leaves_its_cluster(mesh, held):
    v2, v3 = mesh.v2, mesh.v3
    calls = []
    with mesh.loads.watch([name("v2")]):
        # One after the other, so that both endpoints have requests with any load balancing.
        for only in (v2, v3):
            mesh.write_endpoints(
                {each.port: "HEALTHY" if each is only else "DRAINING" for each in (v2, v3)}
            )
            while not only.metadata or len(calls) % 2:
                calls += await opened(mesh, "v2", 1)
        both = await envoy_reported(mesh, "v2", len(calls))
        assert both.keys() == {v2.address, v3.address}
        mesh.write_endpoints({v2.port: "DRAINING", v3.port: "HEALTHY"})
        assert await envoy_reported(mesh, "v2", len(calls)) == both
        # The endpoint leaves its cluster: its streams go on, but Envoy no longer reports them.
        mesh.write_endpoints({v3.port: "HEALTHY"})
        assert await envoy_reported(mesh, "v2", both[v3.address]) == {v3.address: both[v3.address]}
        v2.go_on.set()
        v3.go_on.set()
        await finished(calls)
        assert await envoy_reported(mesh, "v2", 0) == {}
    mesh.write_endpoints({v2.port: "HEALTHY", v3.port: "HEALTHY"})


@pytest.mark.asyncio(loop_scope="module")
async def test_a_removed_cluster_is_reported_as_idle_although_its_streams_go_on(mesh, held):
    calls = await opened(mesh, "v1", 2)
    with mesh.loads.watch([name("v1")]):
        await envoy_reported(mesh, "v1", 2)
        mesh.write_clusters(*(each for each in mesh.first_clusters if each["name"] != name("v1")))
        await envoy_reported(mesh, "v1", 0)
    mesh.v1.go_on.set()
    await finished(calls)
    added = await mesh.stat("cluster_manager.cluster_added")
    mesh.write_clusters(*mesh.first_clusters)
    mesh.v1.go_on.clear()
    with mesh.loads.watch([name("v1")]):
        async with asyncio.timeout(WAIT_S):
            while await mesh.stat("cluster_manager.cluster_added") == added:
                await mesh.loads.next_report()
        calls = await opened(mesh, "v1", 1)
        # A cluster that is added again while it is watched is reported again.
        await envoy_reported(mesh, "v1", 1)
        mesh.v1.go_on.set()
        await finished(calls)


@pytest.fixture
async def lrs():
    """The service on its own server, and a channel to it."""
    loads = LoadReports()
    server = grpc.aio.server()
    LoadReportingServicer(loads).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield loads, LoadReportingServiceStub(channel)
    await server.stop(None)


def report(node="", **clusters):
    request = LoadStatsRequest()
    if node:
        request.node.id = node
    for cluster, requests in clusters.items():
        stats = request.cluster_stats.add(cluster_name=cluster)
        # Two localities, of which the second has one request.
        stats.upstream_locality_stats.add(total_requests_in_progress=requests)
        stats.upstream_locality_stats.add(total_requests_in_progress=1)
    return request


async def test_proxies_are_asked_only_while_a_cluster_is_watched(lrs):
    loads, stub = lrs
    stream = stub.StreamLoadStats()
    await stream.write(report("a"))
    await reported(loads, "c", lambda found: "a" in found)
    asked = asyncio.create_task(stream.read())
    with loads.watch(["c", "d"]), loads.watch(["d"]):
        first = await asked
        assert (list(first.clusters), first.report_endpoint_granularity) == (["c", "d"], True)
        assert not first.send_all_clusters
    questions = []
    while not questions or questions[-1].clusters:
        questions.append(await stream.read())
    assert questions[-1].load_reporting_interval.seconds == 3600
    stream.cancel()


async def test_proxies_with_one_node_id_are_added_up(lrs):
    loads, stub = lrs
    with loads.watch(["c"]):
        async with asyncio.TaskGroup() as group:
            first = group.create_task(_reporting(stub, report("same", c=3, d=100)))
            other = group.create_task(_reporting(stub, report("other", c=0)))
            found = await reported(loads, "c", _known(same=4, other=1))
            silent = stub.StreamLoadStats()
            await silent.write(report("same"))
            # One of the two has not reported, so the number is unknown.
            await reported(loads, "c", _known(same=None, other=1))
            silent.cancel()
            await reported(loads, "c", _known(same=4, other=1))
            second = group.create_task(_reporting(stub, report("same", c=7)))
            found = await reported(loads, "c", _known(same=12, other=1))
            assert found["same"].at("10.0.0.1:1") == 12
            for each in (first, second, other):
                each.cancel()
        assert await reported(loads, "c", lambda found: not found) == {}


def _known(**requests):
    return lambda found: {node: each.requests for node, each in found.items()} == requests


async def _reporting(stub, request):
    """Sends reports repeatedly, as proxies do."""
    stream = stub.StreamLoadStats()
    try:
        while True:
            await stream.write(request)
            await asyncio.sleep(0.05)
    finally:
        stream.cancel()


class StaticAds(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    """Serves one cluster to a gRPC client over the state-of-the-world variant."""

    def __init__(self, port):
        self.resources = dict(_grpc_resources(port))

    async def StreamAggregatedResources(self, requests, context):  # noqa: N802
        async for request in requests:
            if request.response_nonce:
                continue
            answer = discovery_pb2.DiscoveryResponse(
                type_url=request.type_url, version_info="1", nonce="1"
            )
            answer.resources.add().Pack(self.resources[request.type_url.rpartition(".")[2]])
            yield answer


def _grpc_resources(port):
    manager = http_connection_manager_pb2.HttpConnectionManager()
    manager.rds.route_config_name = "routes"
    manager.rds.config_source.ads.SetInParent()
    router = manager.http_filters.add(name="router")
    router.typed_config.Pack(Router())
    listener = Listener(name="echo")
    listener.api_listener.api_listener.Pack(manager)
    yield "Listener", listener
    routes = RouteConfiguration(name="routes")
    host = routes.virtual_hosts.add(name="echo", domains=["*"])
    route = host.routes.add()
    route.match.prefix = ""
    route.route.cluster = name("v1")
    yield "RouteConfiguration", routes
    cluster = Cluster(name=name("v1"), type=Cluster.EDS)
    cluster.eds_cluster_config.eds_config.ads.SetInParent()
    cluster.lrs_server.self.SetInParent()
    yield "Cluster", cluster
    assignment = ClusterLoadAssignment(cluster_name=name("v1"))
    locality = assignment.endpoints.add()
    locality.load_balancing_weight.value = 1
    locality.locality.region = "laptop"
    address = locality.lb_endpoints.add().endpoint.address.socket_address
    address.address, address.port_value = "127.0.0.1", port
    yield "ClusterLoadAssignment", assignment


@contextlib.asynccontextmanager
async def grpc_client(control_port, method, streams):
    bootstrap = json.dumps(xds_bootstrap(control_port, "client-1"))
    environment = os.environ | {"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(DOUBLES / "xds_echo_client.py"), "xds:///echo", method, str(streams)),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
        process.stdin.write(b"\n")
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_grpc_client_reports_its_clusters():
    go_on = asyncio.Event()

    async def stream(request, context):
        yield b"1"
        await go_on.wait()

    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    backend, control = grpc.aio.server(), grpc.aio.server()
    backend.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Echo", handlers)])
    port = backend.add_insecure_port("127.0.0.1:0")
    loads = LoadReports()
    LoadReportingServicer(loads).register(control)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(StaticAds(port), control)
    control_port = control.add_insecure_port("127.0.0.1:0")
    await backend.start()
    await control.start()
    async with grpc_client(control_port, "/a.Echo/Stream", 2) as client:
        assert await client.stdout.readline() == b"open\n"
        with loads.watch([name("v1"), name("v2")]):

            def is_so(requests):
                return lambda found: "client-1" in found and found["client-1"].requests == requests

            found = await reported(loads, name("v1"), is_so(2))
            assert (found["client-1"].endpoints, found["client-1"].at("a:1")) == ({}, 2)
            assert loads.in_progress(name("v2"))["client-1"].requests == 0
            client.stdin.write(b"\n")
            assert await client.stdout.readline() == b"closed\n"
            await reported(loads, name("v1"), is_so(0))
        # After another request it reports zero again.
        with loads.watch([name("v1")]):
            assert loads.in_progress(name("v1"))["client-1"].requests is None
            await reported(loads, name("v1"), is_so(0))
    for server in (control, backend):
        await server.stop(None)
