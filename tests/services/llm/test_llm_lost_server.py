"""Ends of a server: asked to go, killed, its engine killed. Each ends the server it is given."""

import asyncio

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from llm_server import SERVICE, chat

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]


async def streaming(client, count, max_tokens):
    """Starts streams and returns them once each has given a piece."""
    calls = [
        client.stub.Chat(chat("Count.", ignore_end_of_text=True, max_tokens=max_tokens))
        for _ in range(count)
    ]
    first = [await call.read() for call in calls]
    return calls, [len(piece.delta.token_ids) for piece in first]


async def tokens_left(call):
    tokens = 0
    while (piece := await call.read()) is not grpc.aio.EOF:
        tokens += len(piece.delta.token_ids)
    return tokens


async def test_streams_in_flight_finish_when_the_server_is_asked_to_go(server, client):
    calls, read = await streaming(client, 4, max_tokens=100)
    server.process.terminate()
    rest = await asyncio.gather(*(tokens_left(call) for call in calls))
    assert [before + after for before, after in zip(read, rest, strict=True)] == [100] * 4
    assert await asyncio.to_thread(server.process.wait) == 0


async def test_streams_end_as_unavailable_when_the_engine_is_killed(server, client):
    health = health_pb2_grpc.HealthStub(client.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    calls, _ = await streaming(client, 4, max_tokens=900)
    waiting = [asyncio.create_task(tokens_left(call)) for call in calls]
    children = server.process.children(recursive=True)
    server.engine_process().kill()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [each.code() for each in ended] == [grpc.StatusCode.UNAVAILABLE] * 4
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    assert await asyncio.to_thread(server.process.wait) == 1
    assert "engine died" in server.log.read_text()
    for child in children:
        await asyncio.to_thread(child.wait)


async def test_nothing_outlives_a_server_that_is_killed(server, client):
    calls, _ = await streaming(client, 1, max_tokens=900)
    children = server.process.children(recursive=True)
    assert server.engine_process() in children
    server.process.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await tokens_left(calls[0])
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=20)
    assert not alive
