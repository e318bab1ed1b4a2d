"""Servers whose process is frozen: their connections stay open and they do not answer."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mesh_objects import entry, everywhere, gateway, rule

from tidegate.mesh.control.endpoints.health_checks import (
    CheckKind,
    HealthCheck,
    HealthCheckTiming,
)
from tidegate.mesh.control.endpoints.health_watch import HealthWatch

SCRIPT = Path(__file__).with_name("frozen_backend.py")
GRPC = HealthCheck(CheckKind.GRPC)
NO_ANSWER = "it did not answer 3 health checks in a row within 0.5 s"


@contextlib.asynccontextmanager
async def process(name):
    """A server in a process of its own."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SCRIPT), name), stdin=pipe, stdout=pipe
    )
    try:
        port = int(await child.stdout.readline())
        yield SimpleNamespace(
            port=port,
            address=f"127.0.0.1:{port}",
            freeze=lambda: child.send_signal(signal.SIGSTOP),
            thaw=lambda: child.send_signal(signal.SIGCONT),
        )
    finally:
        child.kill()
        await child.communicate()


class Watched:
    """A watch of one endpoint, and all that it reported."""

    def __init__(self, timing):
        self.told = []
        self._changed = asyncio.Event()
        self.watch = HealthWatch(10, self._tell, timing)

    def _tell(self, address):
        self.told.append(self.watch.seen[address])
        self._changed.set()

    async def until(self, address, condition):
        async with asyncio.timeout(30):
            while not condition(self.watch.seen[address]):
                self._changed.clear()
                await self._changed.wait()


async def test_a_frozen_server_is_unhealthy_until_it_goes_on():
    watched = Watched(HealthCheckTiming(interval_s=0.1, timeout_s=0.5, failures=3))
    async with process("v1") as server, watched.watch:
        watched.watch.watch({server.address: GRPC})
        await watched.until(server.address, lambda seen: seen.serving)
        for _ in range(2):
            server.freeze()
            await watched.until(server.address, lambda seen: not seen.serving)
            assert watched.watch.seen[server.address].reason == NO_ANSWER
            server.thaw()
            await watched.until(server.address, lambda seen: seen.serving)
            assert watched.watch.seen[server.address].reason == ""


class Slow(health_pb2_grpc.HealthServicer):
    """Leaves two of three checks without an answer in time, as a server under full load may."""

    def __init__(self):
        self.checks = 0
        self.many = asyncio.Event()

    async def Check(self, request, context):  # noqa: N802 - gRPC's name
        self.checks += 1
        if self.checks > 6:
            self.many.set()
        if self.checks % 3:
            await asyncio.Event().wait()
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(self, request, context):  # noqa: N802 - gRPC's name
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
        await asyncio.Event().wait()


async def test_a_slow_server_that_answers_is_not_taken_out():
    watched = Watched(HealthCheckTiming(interval_s=0.01, timeout_s=1.0, failures=3))
    slow = Slow()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(slow, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with watched.watch:
            watched.watch.watch({address: GRPC})
            async with asyncio.timeout(60):
                await slow.many.wait()
            assert watched.watch.seen[address].serving
            assert [each.serving for each in watched.told] == [True]
    finally:
        await server.stop(None)


async def test_a_frozen_server_without_health_is_unhealthy():
    watched = Watched(HealthCheckTiming(interval_s=0.1, timeout_s=0.5, failures=3))
    async with process("no-health") as server, watched.watch:
        watched.watch.watch({server.address: GRPC})
        await watched.until(server.address, lambda seen: seen.serving)
        server.freeze()
        await watched.until(server.address, lambda seen: seen.reason == NO_ANSWER)
        server.thaw()
        await watched.until(server.address, lambda seen: seen.serving)


async def only_v2_answers(channel):
    """Waits until many calls in a row are answered, all of them by v2."""
    say = channel.unary_unary("/tidegate.test.v1.Echo/Say")
    answered = 0
    async with asyncio.timeout(60):
        while answered < 50:
            try:
                assert await say(b"", timeout=1) == b"v2"
                answered += 1
            except grpc.aio.AioRpcError:
                # Envoy's workers stop using an endpoint a moment after its main thread.
                answered = 0


async def test_requests_go_to_the_other_server_while_one_is_frozen(mesh):
    mesh.controller.settings |= {"health_check_interval_s": 0.1, "health_check_timeout_s": 0.5}
    async with process("v1") as v1, process("v2") as v2:
        ports = {"v1": v1.port, "v2": v2.port}
        mesh.write(gateway(mesh.port), entry(ports), rule(), everywhere())
        await mesh.controller.start()
        async with mesh.envoy() as admin:
            mesh.admin = admin
            await mesh.envoy_has(v1, healthy=True)
            await mesh.envoy_has(v2, healthy=True)
            v1.freeze()
            await mesh.envoy_has(v1, healthy=False)
            async with mesh.channel() as channel:
                await only_v2_answers(channel)
            v1.thaw()
            await mesh.envoy_has(v1, healthy=True)
            async with mesh.load() as load:
                await load.comes_to("v1", "v2")
