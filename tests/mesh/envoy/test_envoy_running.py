"""A real Envoy, started as the supervisor starts it, with a controller that stops and restarts."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from google.protobuf import json_format
from stopped_threads import stopped

from tidegate.mesh.ads import Distribution
from tidegate.mesh.ads.servicer import AdsServicer
from tidegate.mesh.envoy import Admin, AdminError, HostStatus
from tidegate.mesh.envoy.bootstrap import NODE_METADATA
from tidegate.mesh.resources import Change, ProxyKind, Resource, ResourceType

CLUSTER = "outbound|1||echo"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listener(port: int) -> Resource:
    """A listener that forwards connections to the cluster."""
    message = listener_pb2.Listener(name=f"0.0.0.0_{port}")
    message.address.socket_address.address = "127.0.0.1"
    message.address.socket_address.port_value = port
    network_filter = message.filter_chains.add().filters.add(name="envoy.filters.network.tcp_proxy")
    network_filter.typed_config.Pack(tcp_proxy_pb2.TcpProxy(stat_prefix="x", cluster=CLUSTER))
    return Resource.of(ResourceType.LISTENER, message.name, message)


def cluster() -> Resource:
    message = cluster_pb2.Cluster(name=CLUSTER, type=cluster_pb2.Cluster.EDS)
    message.eds_cluster_config.eds_config.ads.SetInParent()
    message.eds_cluster_config.eds_config.resource_api_version = 2
    return Resource.of(ResourceType.CLUSTER, CLUSTER, message)


def endpoints(**health: int) -> Resource:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name=CLUSTER)
    for number, status in health.items():
        added = message.endpoints.add().lb_endpoints.add(health_status=status)
        added.endpoint.address.socket_address.address = "127.0.0.1"
        added.endpoint.address.socket_address.port_value = int(number.strip("p"))
    return Resource.of(ResourceType.ENDPOINT, CLUSTER, message)


@contextlib.asynccontextmanager
async def controller(port: int, *resources: Resource):
    """A controller that serves these resources."""
    distribution = Distribution()
    if resources:
        distribution.apply(ProxyKind.ENVOY, Change(put=resources))
    servicer = AdsServicer(distribution)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    servicer.register(server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield distribution
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def envoy(folder: Path, controller_port: int):
    """Runs an Envoy; yields the client of its admin interface."""
    admin_file = folder / "admin"
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tidegate.mesh.envoy", "--concurrency=1"),
                *(f"--controller=127.0.0.1:{controller_port}", f"--admin-file={admin_file}"),
                f"--bootstrap-file={folder / 'bootstrap.json'}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(30):
            while not (admin_file.exists() and admin_file.read_text()):
                assert process.poll() is None, (folder / "envoy.log").read_text()
                await asyncio.sleep(0.05)
        admin = Admin(admin_file.read_text())
        admin.pid = process.pid
        yield admin
    finally:
        process.terminate()
        # An Envoy that has only just started is ended by the signal itself.
        assert process.wait(timeout=30) in {0, -signal.SIGTERM}


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.05)


async def has_proxy(distribution: Distribution) -> bool:
    return bool(distribution.proxies())


async def test_envoy_is_live_once_it_has_a_configuration_and_reports_listeners_and_hosts(tmp_path):
    ads_port, port = free_port(), free_port()
    async with envoy(tmp_path, ads_port) as admin:
        assert not await admin.is_live()
        assert await admin.listeners() == {}
        healthy, draining = 1, 3
        resources = (cluster(), endpoints(p7001=healthy, p7002=draining), listener(port))
        async with controller(ads_port, *resources) as distribution:
            await until(admin.is_live)
            assert await admin.listeners() == {f"0.0.0.0_{port}": f"127.0.0.1:{port}"}
            hosts = await admin.hosts()
            assert hosts[CLUSTER] == {
                HostStatus("127.0.0.1:7001", healthy=True),
                HostStatus("127.0.0.1:7002", healthy=False),
            }
            (proxy,) = distribution.proxies()
            assert proxy.proxy.node == "ingress"
            # The label has the name that Istio's proxies give it.
            found = await asyncio.to_thread(admin._get, "/stats/prometheus")
            assert ',cluster_name="tidegate-ads"} 1' in found[1].decode()
            assert proxy.proxy_kind is ProxyKind.ENVOY


async def test_envoy_goes_on_without_its_controller_and_reconnects_to_the_next(tmp_path):
    ads_port, port = free_port(), free_port()
    resources = (cluster(), endpoints(p7001=1), listener(port))
    async with envoy(tmp_path, ads_port) as admin:
        async with controller(ads_port, *resources):
            await until(admin.is_live)
        for _ in range(3):
            async with controller(ads_port, *resources) as distribution:
                await until(lambda distribution=distribution: has_proxy(distribution))
            assert await admin.is_live()
            assert len(await admin.listeners()) == 1


async def test_workers_caught_up_waits_for_every_worker(tmp_path):
    ads_port, port = free_port(), free_port()
    async with envoy(tmp_path, ads_port) as admin:
        # Without a configuration no worker can be behind.
        await admin.workers_caught_up()
        async with controller(ads_port, cluster(), endpoints(p7001=1), listener(port)):
            await until(admin.is_live)
            assert await admin.node_id() == "ingress"
            await asyncio.gather(*(admin.workers_caught_up() for _ in range(3)))
            with stopped(admin.pid, "wrk:worker_0"):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(admin.workers_caught_up(), 0.5)
                # The main thread still answers and sends ACKs; this proves nothing about workers.
                assert await admin.is_live()
            await admin.workers_caught_up()


async def test_envoys_log_is_json_with_the_keys_of_the_servers(tmp_path):
    async with envoy(tmp_path, free_port()):
        pass
    lines = [json.loads(line) for line in (tmp_path / "envoy.log").read_text().splitlines()]
    assert {"event", "level", "logger", "timestamp"} == set().union(*lines)


async def test_bootstrap_file_stays_after_the_start(tmp_path):
    async with envoy(tmp_path, free_port()):
        text = (tmp_path / "bootstrap.json").read_text()
    node = json_format.Parse(text, bootstrap_pb2.Bootstrap()).node
    assert (node.id, dict(node.metadata)) == ("ingress", NODE_METADATA)


async def test_unreachable_admin_interface_is_an_admin_error():
    with pytest.raises(AdminError, match="does not answer /ready"):
        await Admin(f"127.0.0.1:{free_port()}").is_live()
