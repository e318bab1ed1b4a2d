"""Watching the health of endpoints."""

import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from tidegate.chassis.health import Health, HealthServicer
from tidegate.mesh.control.health_watching import HealthWatch


class Watcher:
    """A watch, and a way to wait for what it sees."""

    def __init__(self, limit=10):
        self.changed = asyncio.Event()
        self.watch = HealthWatch(limit, lambda _: self.changed.set())

    async def until(self, condition):
        async with asyncio.timeout(20):
            while not condition(self.watch.seen):
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def server(port=0, *, has_health=True):
    made = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health = Health(["x"])
    health.set_all(True)
    if has_health:
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health), made)
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
            watcher.watch.watch([address])
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


async def test_a_server_without_health_does_not_serve(watcher):
    async with server(has_health=False) as (address, _), watcher.watch:
        watcher.watch.watch([address])
        await watcher.watch.answered(20)
        assert not watcher.watch.seen[address].serving
        assert "grpc.health.v1.Health" in watcher.watch.seen[address].reason


async def test_endpoints_beyond_the_limit_are_taken_to_serve():
    watcher = Watcher(limit=1)
    async with server() as (address, _), watcher.watch:
        watcher.watch.watch([address, "127.0.0.1:1", "127.0.0.1:2"])
        await watcher.watch.answered(20)
        assert all(seen.serving for seen in watcher.watch.seen.values())
        assert watcher.watch.seen[address].reason == ""
        assert "beyond the limit" in watcher.watch.seen["127.0.0.1:2"].reason


async def test_an_endpoint_that_is_no_longer_watched_is_not_waited_for(watcher):
    async with watcher.watch:
        watcher.watch.watch(["127.0.0.1:1"])
        waiting = asyncio.create_task(watcher.watch.answered(20))
        watcher.watch.watch([])
        await waiting
        assert watcher.watch.seen == {}
