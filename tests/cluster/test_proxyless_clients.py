"""gRPC clients without a proxy, programmed by a real istiod: what they obey, and what they ignore.

`docs/proxyless.md` has the result of each test in its tables.
"""

import asyncio
import contextlib
import os
import statistics
import sys
import time

import grpc
import pytest
import pytest_asyncio
from double_server import double_server
from envoy_harness import Backend, XdsClient
from istio_corpus import entry, rule, service, subset
from istiod_control_plane import IstiodControlPlane
from mesh_objects import istio, text
from xds_reading import XdsReader

from tidegate.client.xds import xds_bootstrap
from tidegate.istio import IstioObjects
from tidegate.istio.reading.documents import parse
from tidegate.mesh.ads import AdsServicer, Distribution
from tidegate.mesh.compiler import Compiler, MeshSettings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.cluster]

HOST = service("vision")
TARGET = f"{HOST}:8500"
TIMEOUT_S = 20.0
CHANGES = 15
_CLASSIFY = """
from tidegate.client import Client
with Client("xds:///{target}") as client:
    for _ in range(20):
        print(client.vision.classify(b"jpeg").top.label)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def istiod(tmp_path_factory):
    """An istiod that waits for more changes before each push, as it does on a cluster."""
    folder = tmp_path_factory.mktemp("istiod")
    async with IstiodControlPlane.running(folder, PILOT_DEBOUNCE_AFTER="100ms") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def backends():
    """Three gRPC servers: v1, v2 and v3."""
    made = {name: Backend(name) for name in ("v1", "v2", "v3")}
    for each in made.values():
        await each.server.start()
    yield made
    for each in made.values():
        await each.server.stop(None)


@pytest_asyncio.fixture(loop_scope="module")
async def client(istiod):
    async with XdsClient.running(istiod.ads_port, _bootstrap(istiod)) as running:
        yield running


def _bootstrap(istiod):
    return xds_bootstrap(f"127.0.0.1:{istiod.ads_port}", namespace="clients", address="10.0.0.7")


def host(ports, policy=None):
    """A host with an endpoint for each version, and its subsets."""
    endpoints = [
        {"address": "127.0.0.1", "ports": {"main": port}, "labels": {"version": version}}
        for version, port in ports.items()
    ]
    subsets = [subset(version) for version in ("v1", "v2", "v3")]
    made = rule("vision", policy)
    made["spec"]["subsets"] = subsets
    return entry("vision", endpoints=endpoints), made


def routes(*http):
    return istio("VirtualService", "vision", {"hosts": [HOST], "http": list(http)})


def to(version=None, weight=None):
    destination = {"host": HOST} | ({"subset": version} if version else {})
    return {"destination": destination} | ({} if weight is None else {"weight": weight})


def ports_of(backends):
    return {name: each.port for name, each in backends.items()}


async def until(ask, wanted):
    """Asks again and again until the answer is the wanted one, which it then stays."""
    async with asyncio.timeout(TIMEOUT_S):
        while (answer := await ask()) != wanted:
            await asyncio.sleep(0.05)
    return answer


async def test_weights_and_header_routes_hold_and_change(istiod, backends, client):
    beta = {"match": [{"headers": {"x-tier": {"exact": "beta"}}}], "route": [to("v3")]}
    split = {"route": [to("v2", 25), to("v1", 75)]}
    await istiod.apply(*host(ports_of(backends)), routes(beta, split))
    await until(lambda: client.calls(TARGET, 20, ("x-tier", "beta")), {"v3": 20})
    taken = await client.calls(TARGET, 400)
    assert taken.keys() == {"v1", "v2"}
    assert abs(taken["v2"] - 100) < 6 * (400 * 0.25 * 0.75) ** 0.5
    await istiod.change(routes(beta, {"route": [to("v2", 0), to("v1", 100)]}))
    await until(lambda: client.calls(TARGET, 50), {"v1": 50})
    assert await client.calls(TARGET, 50) == {"v1": 50}


async def test_a_removed_endpoint_gets_no_more_calls(istiod, backends, client):
    ports = ports_of(backends)
    await istiod.apply(*host(ports), routes({"route": [to()]}))

    async def seen():
        return (await client.calls(TARGET, 20)).keys()

    await until(seen, {"v1", "v2", "v3"})
    del ports["v3"]
    await istiod.change(host(ports)[0])
    await until(seen, {"v1", "v2"})
    assert (await client.calls(TARGET, 60)).keys() == {"v1", "v2"}


async def test_least_request_fails_every_call_and_no_balancer_is_round_robin(
    istiod, backends, client
):
    least = {"loadBalancer": {"simple": "LEAST_REQUEST"}}
    await istiod.apply(*host(ports_of(backends), least), routes({"route": [to()]}))

    async def of_a_new_client():
        # One that got the objects before these would refuse these and keep those.
        async with XdsClient.running(istiod.ads_port, _bootstrap(istiod)) as new:
            return await new.calls(TARGET, 2, within_s=1)

    await until(of_a_new_client, {"DEADLINE_EXCEEDED": 2})
    await istiod.apply(*host(ports_of(backends)), routes({"route": [to()]}))
    # In turn: as many calls for each.
    await until(lambda: client.calls(TARGET, 30), {"v1": 10, "v2": 10, "v3": 10})


async def test_retries_and_faults_hold_and_mirrors_and_changed_headers_do_not(
    istiod, backends, client
):
    abort = {"abort": {"grpcStatus": "ABORTED", "percentage": {"value": 100}}}
    rich = {
        "route": [to("v1")],
        "mirrors": [{"destination": {"host": HOST, "subset": "v3"}}],
        "headers": {"request": {"set": {"x-added": "1"}}},
    }
    await istiod.apply(
        *host(ports_of(backends)),
        routes(
            {"match": [{"headers": {"x-fault": {}}}], "route": [to("v1")], "fault": abort},
            {
                "match": [{"headers": {"x-retried": {}}}],
                "route": [to("v2")],
                "retries": {"attempts": 3, "retryOn": "unavailable"},
            },
            rich,
        ),
    )
    await until(lambda: client.calls(TARGET, 5, ("x-fault", "1")), {"ABORTED": 5})
    for each in backends.values():
        each.calls.clear()
    failing = (("x-retried", "1"), ("x-do", "fail UNAVAILABLE"))
    assert await client.calls(TARGET, 2, *failing) == {"UNAVAILABLE": 2}
    assert len(backends["v2"].calls) == 8
    assert await client.calls(TARGET, 10) == {"v1": 10}
    assert backends["v3"].calls == []
    assert not any("x-added" in metadata for _, metadata in backends["v1"].calls)
    # Istio's default: two retries.
    backends["v1"].calls.clear()
    assert await client.calls(TARGET, 1, ("x-do", "fail UNAVAILABLE")) == {"UNAVAILABLE": 1}
    assert len(backends["v1"].calls) == 3


async def test_the_timeout_of_a_route_ends_calls(istiod, backends, client):
    async def hanging_s():
        started = time.monotonic()
        ended = await client.calls(TARGET, 1, ("x-do", "hang"), within_s=1.5)
        assert ended == {"DEADLINE_EXCEEDED": 1}
        return time.monotonic() - started

    await istiod.apply(*host(ports_of(backends)), routes({"route": [to("v1")]}))
    await until(lambda: client.calls(TARGET, 5), {"v1": 5})
    assert await hanging_s() > 1.4
    await istiod.change(routes({"route": [to("v1")], "timeout": "0.2s"}))
    async with asyncio.timeout(TIMEOUT_S):
        while await hanging_s() > 1:
            pass


async def test_the_python_client_dials_through_istiod(istiod, tmp_path):
    """Both servers are called, 20 times in all, with a bootstrap from the command line."""
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(double_server()) for name in ("v1", "v2")}
        ports = {name: int(each.address.rpartition(":")[2]) for name, each in servers.items()}
        await istiod.apply(*host(ports), routes({"route": [to("v1", 50), to("v2", 50)]}))
        file = tmp_path / "xds.json"
        server = f"127.0.0.1:{istiod.ads_port}"
        file.write_text(await output(sys.executable, "-m", "tidegate.client.xds", server))
        script = _CLASSIFY.format(target=TARGET)
        labels = await output(sys.executable, "-c", script, GRPC_XDS_BOOTSTRAP=str(file))
        assert labels.split() == ["tabby"] * 20
        counts = [len(each.script.requests) for each in servers.values()]
        assert sum(counts) == 20
        assert min(counts) > 0


async def test_a_change_of_weight_is_pushed_sooner_here(istiod):
    """`pytest -rP` shows both times: from the write to the arrival of the push at a client."""

    def split(weight):
        return routes({"route": [to("v1", weight), to("v2", 1000 - weight)]})

    async def measured_s(reader, change):
        taken = []
        async with reader.watching(TARGET) as pushed:
            for weight in range(101, 101 + CHANGES):
                started = time.perf_counter()
                await asyncio.gather(change(split(weight)), pushed(f'"weight": {weight}}}'))
                taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    objects = host({"v1": 1, "v2": 2})
    await istiod.apply(*objects, split(100))
    await istiod.client_resources([TARGET])
    theirs = await measured_s(istiod.reader, istiod.change)
    async with LaptopAds.running(objects) as laptop:
        await laptop.change(split(100))
        ours = await measured_s(laptop.reader, laptop.change)
    print(  # noqa: T201 - the result of the measurement
        f"from write to push, p50 of {CHANGES}: istiod {theirs * 1e3:.1f} ms, "
        f"Tidegate {ours * 1e3:.1f} ms"
    )
    assert ours < theirs


class LaptopAds:
    """The compiler and the discovery server of the laptop's mesh, with objects in memory."""

    def __init__(self, objects):
        self._objects = objects
        self._compiler = Compiler(MeshSettings())
        self._compiled = Compiler(MeshSettings()).compile(IstioObjects(), {})
        self._distribution = Distribution()
        self.reader = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, objects):
        laptop = cls(objects)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        AdsServicer(laptop._distribution).register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                laptop.reader = XdsReader(channel, "clients")
                yield laptop
        finally:
            await server.stop(None)

    async def change(self, routes):
        """Compiles the objects with other routes, and serves the difference."""
        parsed = parse(text(*self._objects, routes), "objects.yaml")
        compiled = self._compiler.compile(parsed, {})
        for kind, change in compiled.changed_from(self._compiled).items():
            self._distribution.apply(kind, change)
        self._compiled = compiled


async def output(*command, **environment):
    """The output of a program that ends well."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}
    )
    async with asyncio.timeout(3 * TIMEOUT_S):
        told, _ = await process.communicate()
    assert process.returncode == 0
    return told.decode()
