"""Connections over real sockets: pipelines, limits, and clients that leave or do not read."""

import asyncio
import gc
import json
import socket
import struct
from contextlib import suppress

import pytest
from gateway_routes import add_test_routes
from gateway_server import gateway
from raw_http import ask, connected
from starlette.responses import Response

from tidegate.gateway.http_server.exchanges import Exchange
from tidegate.gateway.http_server.protocol import GatewayProtocol

GET = "GET /test/echo HTTP/1.1\nHost: a\n\n"
HOLD = "POST /test/hold HTTP/1.1\nHost: a\nContent-Length: 0\n\n"
STREAM = "POST /test/stream?frames={frames}&size={size} HTTP/1.1\nHost: a\nContent-Length: 0\n\n"
CANCELLED_WITHIN_S = 1.0


@pytest.fixture
async def served():
    async with gateway() as running:
        yield running


@pytest.fixture(autouse=True)
def held(served):
    return add_test_routes(served.gateway.app)


def post(body):
    return f"POST /test/echo HTTP/1.1\nHost: a\nContent-Length: {len(body)}\n\n{body}"


async def test_pipelined_requests_are_answered_in_order(served, held):
    async with connected(served.port) as connection:
        await connection.send(HOLD, *(post("x" * size) for size in range(10)), GET)
        await held.until(begun=1)
        await asyncio.sleep(0.05)
        assert not await connection.is_closed(within_s=0.05)
        assert held.cancelled == 0
        held.go_on.set()
        assert json.loads((await connection.response()).body) == {"held": "/test/hold"}
        for size in range(10):
            assert json.loads((await connection.response()).body)["bytes"] == size
        assert json.loads((await connection.response()).body)["method"] == "GET"


async def test_a_stream_is_not_disturbed_by_the_request_behind_it(served, held):
    async with connected(served.port) as connection:
        await connection.send(STREAM.format(frames=3, size=1), GET)
        await held.until(begun=1)
        held.go_on.set()
        assert (await connection.response()).body.endswith(b"data: [DONE]\n\n")
        assert (await connection.response()).status == 200


@pytest.mark.parametrize("behind", ["", GET, HOLD * 3, "POST / HTTP/1.1\nHost: a\nContent"])
async def test_a_client_that_leaves_ends_its_request_whatever_is_behind_it(served, held, behind):
    async with connected(served.port) as connection:
        await connection.send(HOLD, behind)
        await held.until(begun=1)
    async with asyncio.timeout(CANCELLED_WITHIN_S):
        await held.until(cancelled=1)
    assert held.begun == 1
    assert len(served.gateway.parts.in_flight) == 0


async def test_a_pipeline_too_long_is_answered_in_part_and_then_closed(served, held):
    async with connected(served.port) as connection:
        await connection.send(HOLD, *(post("x" * 100_000) for _ in range(20)))
        await held.until(begun=1)
        held.go_on.set()
        answered = 0
        async with asyncio.timeout(5):
            while not connection.reader.at_eof():
                assert (await connection.response()).status == 200
                answered += 1
                await asyncio.sleep(0.01)
    assert 5 < answered < 20


async def test_a_bad_request_behind_a_stream_is_answered_after_it(served, held):
    async with connected(served.port) as connection:
        await connection.send(
            STREAM.format(frames=2, size=1), "GET /%zz HTTP/1.1\nHost: a\n\n", GET
        )
        await held.until(begun=1)
        held.go_on.set()
        assert (await connection.response()).body.endswith(b"data: [DONE]\n\n")
        assert (await connection.response()).status == 400
        assert await connection.is_closed()


async def test_nothing_behind_a_request_with_close_is_answered(served, held):
    async with connected(served.port) as connection:
        await connection.send("GET /test/echo HTTP/1.1\nHost: a\nConnection: close\n\n", HOLD)
        assert (await connection.response()).headers["connection"] == "close"
        assert await connection.is_closed()
    assert held.begun == 0


async def test_a_broken_body_ends_its_request(served):
    chunked = "POST /test/echo HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n3\nabc\n"
    async with connected(served.port) as connection:
        await connection.send(chunked)
        await asyncio.sleep(0.02)
        await connection.send("not a size\n")
        answer = await connection.response()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await connection.is_closed()


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("path", ["hold", "stream"])
async def test_a_client_that_leaves_ends_its_request_at_once(served, held, path, reset):
    sent = HOLD if path == "hold" else STREAM.format(frames=3, size=10)
    async with connected(served.port) as connection:
        await connection.send(sent)
        await held.until(begun=1)
        if reset:
            linger = struct.pack("ii", 1, 0)
            raw = connection.writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.writer.transport.abort()
        else:
            connection.writer.close()
        async with asyncio.timeout(CANCELLED_WITHIN_S):
            await held.until(cancelled=1)


async def test_a_client_that_does_not_read_is_cut_off():
    async with gateway(stalled_limit_s=0.3, keep_alive_s=0.1) as served:
        held = add_test_routes(served.gateway.app)
        async with connected(served.port, limit=1024) as connection:
            await connection.send(STREAM.format(frames=1000, size=100_000))
            async with asyncio.timeout(3):
                while not served.gateway.parts.in_flight:
                    await asyncio.sleep(0.01)
                while served.gateway.parts.in_flight:
                    await asyncio.sleep(0.01)
            assert held.begun == 0
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ValueError)):
                await connection.response()


async def test_connections_beyond_the_limit_are_told_so():
    async with gateway(max_connections=2) as served:
        add_test_routes(served.gateway.app)
        async with connected(served.port) as one, connected(served.port) as two:
            for connection in (one, two):
                await connection.send(GET)
                assert (await connection.response()).status == 200
            answer = await ask(served.port, GET)
            assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
            assert answer.headers["retry-after"] == "1"
        async with asyncio.timeout(5):
            while (await ask(served.port, GET)).status != 200:
                await asyncio.sleep(0.05)


async def test_idle_connections_close_whether_or_not_they_sent_a_request():
    async with gateway(idle_timeout_s=0.2) as served:
        add_test_routes(served.gateway.app)
        async with connected(served.port) as silent, connected(served.port) as used:
            await used.send(GET)
            await used.response()
            assert await silent.is_closed(within_s=1)
            assert await used.is_closed(within_s=1)


async def test_empty_lines_do_not_keep_a_connection_open():
    limits = {"idle_timeout_s": 0.2, "header_timeout_s": 0.2}
    async with gateway(**limits) as served, connected(served.port) as connection:
        closing = asyncio.create_task(connection.is_closed(within_s=2))
        with suppress(ConnectionError):
            while not closing.done():
                await connection.send("\n")
                await asyncio.sleep(0.02)
        assert await closing or connection.reader.at_eof()


async def test_a_slow_reader_of_a_large_response_gets_all_of_it():
    limits = {"idle_timeout_s": 0.2, "stalled_limit_s": 0.4}
    async with gateway(**limits) as served:
        size = 12_000_000

        @served.gateway.app.get("/test/large")
        async def large():
            return Response(b"x" * size)

        sent = "GET /test/large HTTP/1.1\nHost: a\n\n"
        async with connected(served.port, limit=1024) as slow:
            await slow.send(sent)
            await slow.head()
            read = 0
            async with asyncio.timeout(20):
                while read < size:
                    read += len(await slow.reader.read(400_000))
                    await asyncio.sleep(0.04)
        async with connected(served.port, limit=1024) as stalled:
            await stalled.send(sent)
            await stalled.head()
            await asyncio.sleep(2)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await stalled.reader.readexactly(size)


async def test_nothing_is_left_of_clients_that_left(served, held):
    async def leave(number):
        async with connected(served.port) as connection:
            await connection.send([HOLD, STREAM.format(frames=2, size=10), post("x")][number % 3])
            await asyncio.sleep(number % 7 / 1000)

    tasks = len(asyncio.all_tasks())
    for _ in range(5):
        await asyncio.gather(*(leave(number) for number in range(60)))
    async with asyncio.timeout(5):
        while served.gateway.parts.in_flight or len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)
    assert held.cancelled == held.begun


async def test_no_request_waits_for_the_garbage_collector(served, held):
    """A cycle would keep a request's body in memory until the collector runs."""

    def kept():
        return [
            each
            for each in gc.get_objects()
            if type(each) in (Exchange, GatewayProtocol) and id(each) not in old_ids
        ]

    held.go_on.set()
    fails = "GET /test/fail HTTP/1.1\nHost: a\n\n"
    gc.collect()
    gc.disable()
    # What other tests of this process still hold. The list keeps the ids from being used again.
    old_ids = set[int]()
    old = kept()
    old_ids.update(map(id, old))
    try:
        for sent in (GET, post("x"), HOLD, STREAM.format(frames=2, size=10), fails, "BREW\n\n"):
            async with connected(served.port) as connection:
                for _ in range(1 if sent == "BREW\n\n" else 2):
                    await connection.send(sent)
                    await connection.response()
        held.go_on.clear()
        left = (HOLD, STREAM.format(frames=2, size=10), HOLD + GET)
        for begun, sent in enumerate(left, held.begun + 1):
            async with connected(served.port) as connection:
                await connection.send(sent)
                await held.until(begun=begun)
        # The last connections end in later turns of the loop.
        for _ in range(200):
            if not kept():
                break
            await asyncio.sleep(0.05)
        assert not [(each, gc.get_referrers(each)) for each in kept()]
    finally:
        gc.enable()
