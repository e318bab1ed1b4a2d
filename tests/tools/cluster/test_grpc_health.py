"""gRPC health checks of a real gRPC server."""

import asyncio
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.grpc_health import health_status

STATUSES = health_pb2.HealthCheckResponse


@pytest.fixture
def server():
    """A server with a service of each status, and its port."""
    made = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    servicer.set("", STATUSES.SERVING)
    servicer.set("tests.Idle", STATUSES.NOT_SERVING)
    servicer.set("tests.New", STATUSES.UNKNOWN)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    yield port
    made.stop(None)


async def check(port, service):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            return await health_status(reader, writer, f"127.0.0.1:{port}", service)
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("service", "status"),
    [
        ("", "SERVING"),
        ("tests.Idle", "NOT_SERVING"),
        ("tests.New", "UNKNOWN"),
    ],
)
async def test_a_server_tells_its_status(server, service, status):
    assert await check(server, service) == status


async def test_a_server_without_health_checks_has_no_status():
    made = grpc.server(futures.ThreadPoolExecutor(1))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    assert await check(port, "") == "the call failed"
    made.stop(None)


async def test_a_server_that_closes_the_connection_has_no_status():
    async def close(reader, writer):
        await reader.read(1)
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        status = await check(server.sockets[0].getsockname()[1], "")
    assert status == "the server closed the connection"
