"""Watching the health of endpoints."""

import asyncio
import contextlib
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from tidegate.chassis.health import Health, HealthServicer
from tidegate.mesh.control.endpoints.health_checks import (
    CheckKind,
    HealthCheck,
    HealthCheckTiming,
)
from tidegate.mesh.control.endpoints.health_watch import HealthWatch, ObservedHealth

GRPC, TCP, NONE = map(HealthCheck, (CheckKind.GRPC, CheckKind.TCP, CheckKind.NONE))
QUICK = HealthCheckTiming(interval_s=0.05, timeout_s=1.0, failures=3)


class Watcher:
    """A watch, and a way to wait for what it reports."""

    def __init__(self, limit=10, timing=QUICK):
        self.changed = asyncio.Event()
        self.told = []
        self.watch = HealthWatch(limit, self._tell, timing)

    def _tell(self, address):
        self.told.append(self.watch.seen[address])
        self.changed.set()

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition(self.watch.seen):
                self.changed.clear()
                await self.changed.wait()


class OnlyCheck(health_pb2_grpc.HealthServicer):
    """A health service without Watch, as many servers have it."""

    def __init__(self, health):
        self._full = HealthServicer(health)

    async def Check(self, request, context):  # noqa: N802 - gRPC's name
        return await self._full.Check(request, context)

    async def Watch(self, request, context):  # noqa: N802 - gRPC's name
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")


@contextlib.asynccontextmanager
async def server(port=0, *, has_health=True, can_watch=True):
    made = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health = Health(["x"])
    health.set_all(True)
    if has_health:
        servicer = HealthServicer(health) if can_watch else OnlyCheck(health)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    port = made.add_insecure_port(f"127.0.0.1:{port}")
    await made.start()
    try:
        yield f"127.0.0.1:{port}", health
    finally:
        await made.stop(None)


@pytest.fixture
def watcher():
    return Watcher()


async def test_an_endpoint_that_comes_back_is_seen_again(watcher):
    async with watcher.watch:
        async with server() as (address, health):
            watcher.watch.watch({address: GRPC})
            assert not watcher.watch.seen[address].serving
            await watcher.watch.answered(20)
            assert watcher.watch.seen[address].serving
            health.set_all(False)
            await watcher.until(lambda seen: seen[address].reason == "it says NOT_SERVING")
            health.set_all(True)
            await watcher.until(lambda seen: seen[address].serving)
        await watcher.until(lambda seen: not seen[address].serving)
        assert "UNAVAILABLE" in watcher.watch.seen[address].reason
        async with server(int(address.rpartition(":")[2])):
            await watcher.until(lambda seen: seen[address].serving)


@pytest.mark.parametrize("timing", [QUICK, HealthCheckTiming(interval_s=0)])
async def test_a_server_without_health_serves_while_it_is_connected(timing):
    watcher = Watcher(timing=timing)
    async with watcher.watch:
        async with server(has_health=False) as (address, _):
            watcher.watch.watch({address: GRPC})
            await watcher.watch.answered(20)
            assert watcher.watch.seen[address].serving
            assert "no service grpc.health.v1.Health" in watcher.watch.seen[address].reason
        await watcher.until(lambda seen: not seen[address].serving)
        async with server(int(address.rpartition(":")[2])):
            await watcher.until(lambda seen: seen[address].serving and not seen[address].reason)


async def test_a_server_that_has_only_check_is_asked_with_it(watcher):
    async with server(can_watch=False) as (address, health), watcher.watch:
        watcher.watch.watch({address: GRPC})
        await watcher.until(lambda seen: seen[address].serving)
        assert watcher.watch.seen[address].reason == ""
        health.set_all(False)
        await watcher.until(lambda seen: seen[address].reason == "it says NOT_SERVING")


async def test_an_endpoint_that_is_not_grpc_is_connected_to_by_tcp(watcher):
    async def close(_, writer):
        writer.close()

    async with watcher.watch:
        listener = await asyncio.start_server(close, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        address = f"127.0.0.1:{port}"
        async with listener:
            watcher.watch.watch({address: TCP})
            await watcher.watch.answered(20)
            assert watcher.watch.seen[address] == ObservedHealth(serving=True)
        await watcher.until(lambda seen: not seen[address].serving)
        assert watcher.watch.seen[address].reason == "it refuses TCP connections"
        async with await asyncio.start_server(close, "127.0.0.1", port):
            await watcher.until(lambda seen: seen[address].serving)


@contextlib.asynccontextmanager
async def web_server(answer):
    """A server that answers whatever comes with some bytes."""
    asked = []

    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            asked.append((await reader.readuntil(b"\r\n")).decode())
            writer.write(answer[0])
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        host, port = listener.sockets[0].getsockname()
        yield f"{host}:{port}", asked
    # Connections that have just been accepted end in later turns of the loop.
    await asyncio.sleep(0.1)


async def test_an_http_endpoint_says_by_its_status_whether_it_is_ready(watcher):
    answer = [b"HTTP/1.1 200 OK\r\n\r\n"]
    async with web_server(answer) as (address, asked), watcher.watch:
        watcher.watch.watch({address: HealthCheck(CheckKind.HTTP, "/readyz")})
        await watcher.until(lambda seen: seen[address].serving)
        assert asked[0] == "GET /readyz HTTP/1.1\r\n"
        answer[0] = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
        await watcher.until(lambda seen: not seen[address].serving)
        assert watcher.watch.seen[address].reason == "it answers /readyz with 503"
        answer[0] = b"HTTP/1.0 302 Found\r\n\r\n"
        await watcher.until(lambda seen: seen[address].serving)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "does not answer /readyz over HTTP"),
        (b"x" * 100_000, "does not answer /readyz over HTTP"),
        (b"", "cannot be connected to by TCP: it closed the connection"),
    ],
)
async def test_what_does_not_speak_http_is_not_ready(watcher, answer, words):
    async with web_server([answer]) as (address, _), watcher.watch:
        watcher.watch.watch({address: HealthCheck(CheckKind.HTTP, "/readyz")})
        await watcher.until(lambda seen: words in seen[address].reason)
        assert not watcher.watch.seen[address].serving


async def test_a_listener_that_accepts_no_more_connections_is_unhealthy():
    watcher = Watcher(timing=HealthCheckTiming(interval_s=0.05, timeout_s=0.2, failures=3))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        host, port = listener.getsockname()
        # Linux takes one connection more than the backlog; the test accepts none.
        with socket.create_connection((host, port)):
            async with watcher.watch:
                watcher.watch.watch({f"{host}:{port}": TCP})
                await watcher.until(lambda seen: "did not answer" in seen[f"{host}:{port}"].reason)
                assert not watcher.watch.seen[f"{host}:{port}"].serving


async def test_a_listener_that_gets_requests_keeps_them_for_one_missed_check():
    watcher = Watcher(timing=HealthCheckTiming(interval_s=0.05, timeout_s=0.2, failures=3))
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        host, port = listener.getsockname()
        address = f"{host}:{port}"
        with socket.create_connection((host, port)):
            async with watcher.watch:
                watcher.watch.watch({address: NONE})
                watcher.watch.watch({address: TCP})
                await watcher.until(lambda seen: not seen[address].serving)
                reason = "it did not answer 3 health checks in a row within 0.2 s"
                assert watcher.watch.seen[address].reason == reason


async def test_an_ipv6_address_is_connected_to(watcher):
    async with watcher.watch:
        watcher.watch.watch({"[::1]:1": TCP})
        await watcher.watch.answered(20)
        reason = watcher.watch.seen["[::1]:1"].reason
        assert reason.startswith(("it refuses TCP", "it cannot be connected to by TCP: "))


async def test_a_new_check_keeps_the_state_of_the_check_before_it(watcher):
    async with server() as (address, health), watcher.watch:
        health.set_all(False)
        watcher.watch.watch({address: GRPC})
        await watcher.until(lambda seen: seen[address].reason == "it says NOT_SERVING")
        watcher.watch.watch({address: TCP})
        assert not watcher.watch.seen[address].serving
        await watcher.until(lambda seen: seen[address].serving)
        watcher.watch.watch({address: NONE})
        assert watcher.watch.seen[address].serving
        assert not watcher.watch.seen[address].checked
        watcher.watch.watch({address: GRPC})
        assert watcher.watch.seen[address].serving
        await watcher.until(lambda seen: seen[address].reason == "it says NOT_SERVING")


async def test_endpoints_beyond_the_limit_are_assumed_to_serve():
    watcher = Watcher(limit=1)
    async with server() as (address, _), watcher.watch:
        watcher.watch.watch({address: GRPC, "127.0.0.1:1": GRPC, "127.0.0.1:2": GRPC})
        await watcher.watch.answered(20)
        assert all(seen.serving for seen in watcher.watch.seen.values())
        assert watcher.watch.seen[address].reason == ""
        assert "beyond the limit" in watcher.watch.seen["127.0.0.1:2"].reason
        watcher.watch.watch({"127.0.0.1:2": GRPC})
        await watcher.until(lambda seen: not seen["127.0.0.1:2"].serving)


async def test_an_endpoint_that_is_no_longer_watched_is_not_waited_for(watcher):
    async with watcher.watch:
        watcher.watch.watch({"127.0.0.1:1": GRPC})
        waiting = asyncio.create_task(watcher.watch.answered(20))
        watcher.watch.watch({})
        await waiting
        assert watcher.watch.seen == {}
