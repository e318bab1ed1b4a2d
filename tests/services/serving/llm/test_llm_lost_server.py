"""The end of a server: SIGTERM, SIGKILL, or a killed engine. Each test ends its server."""

import asyncio

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from llm_server import SERVICE, LlmServer, chat

from tidegate.llm.v1 import llm_pb2

pytestmark = [pytest.mark.llm, pytest.mark.e2e, pytest.mark.timeout(300)]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NOBODY, EVERYBODY = (False,) * 3, (True,) * 3


@pytest.fixture
def slow_to_go(models, tmp_path):
    """A server with a long drain delay, so that tests can call it during the drain."""
    flags = ("--kv-cache-gib", "1", "--drain-delay-s", "600")
    server = LlmServer.start(tmp_path, "--model-repository", str(models), *flags)
    yield server
    server.stop()


def watch_of(client):
    asked = health_pb2.HealthCheckRequest(service=SERVICE)
    return health_pb2_grpc.HealthStub(client.channel).Watch(asked)


async def told(server, client):
    """Returns whether health, the probe and ListModels report the server as ready."""
    stub = health_pb2_grpc.HealthStub(client.channel)
    checked = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    for name, wanted in (("readiness", checked.status), ("liveness", SERVING)):
        probed = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert probed.status == wanted, name
    (model,) = (await client.stub.ListModels(llm_pb2.ListModelsRequest())).models
    assert model.HasField("loaded_at") == model.ready
    return checked.status == SERVING, await server.is_ready(), model.ready


async def draining(server):
    """Waits until the drain has begun; after that, a signal ends the server at once."""
    async with asyncio.timeout(60):
        while '"event": "draining"' not in server.log.read_text():
            await asyncio.sleep(0.02)


async def streaming(client, count, max_tokens):
    """Starts streams and returns them when each has sent a message."""
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


async def test_streams_in_flight_finish_after_sigterm(server, client):
    calls, read = await streaming(client, 4, max_tokens=100)
    server.process.terminate()
    rest = await asyncio.gather(*(tokens_left(call) for call in calls))
    assert [before + after for before, after in zip(read, rest, strict=True)] == [100] * 4
    assert await asyncio.to_thread(server.process.wait) == 0


async def test_streams_end_as_unavailable_when_the_engine_is_killed(slow_to_go):
    server = slow_to_go
    await asyncio.to_thread(server.wait_until_loaded)
    async with server.client() as client:
        watch = watch_of(client)
        assert (await watch.read()).status == SERVING
        assert await told(server, client) == EVERYBODY
        calls, _ = await streaming(client, 4, max_tokens=900)
        waiting = [asyncio.create_task(tokens_left(call)) for call in calls]
        children = server.process.children(recursive=True)
        server.engine_process().kill()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [each.code() for each in ended] == [grpc.StatusCode.UNAVAILABLE] * 4
        assert (await watch.read()).status == NOT_SERVING
        assert await told(server, client) == NOBODY
        watch.cancel()
    # During the drain delay a signal ends the server at once. Health reports the dead engine before
    # the drain begins.
    await draining(server)
    server.process.terminate()
    assert await asyncio.to_thread(server.process.wait) == 1
    assert "engine died" in server.log.read_text()
    for child in children:
        await asyncio.to_thread(child.wait)


@pytest.mark.long
async def test_a_draining_server_is_nowhere_reported_as_ready(slow_to_go):
    server = slow_to_go
    async with server.client() as client:
        watch = watch_of(client)
        assert (await watch.read()).status == NOT_SERVING
        assert await told(server, client) == NOBODY
        assert (await watch.read()).status == SERVING
        assert await told(server, client) == EVERYBODY
        server.process.terminate()
        assert (await watch.read()).status == NOT_SERVING
        assert await told(server, client) == NOBODY
        watch.cancel()
    # During the drain delay the next signal ends the server at once.
    server.process.terminate()
    assert await asyncio.to_thread(server.process.wait) == 0


async def test_no_process_outlives_a_killed_server(server, client):
    calls, _ = await streaming(client, 1, max_tokens=900)
    children = server.process.children(recursive=True)
    assert server.engine_process() in children
    server.process.kill()
    with pytest.raises(grpc.aio.AioRpcError):
        await tokens_left(calls[0])
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=20)
    assert not alive
