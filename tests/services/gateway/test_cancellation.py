"""A client that leaves ends the call to the model within 50 ms, on every path."""

import asyncio
import json
import time

import pytest
from gateway_server import gateway
from held_llm import MODEL, held_llm
from prometheus_client import REGISTRY
from raw_http import connected

WITHIN_S = 0.05
TRIES = 5


@pytest.fixture
async def llm():
    async with held_llm() as double:
        yield double


@pytest.fixture
async def served(llm):
    async with gateway(llm=[llm.address], keep_alive_s=0.1) as running:
        yield running


def chat(**more):
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **more})
    head = "POST /v1/chat/completions HTTP/1.1\nHost: a\nContent-Type: application/json\n"
    return f"{head}Content-Length: {len(body)}\n\n{body}"


@pytest.mark.parametrize(
    ("sent", "tokens"),
    [
        pytest.param(chat(), 0, id="unary"),
        pytest.param(chat(stream=True), 0, id="before the first token"),
        pytest.param(chat(stream=True), 3, id="in the stream"),
        pytest.param(chat(stream=True) + chat(), 3, id="with a request behind it"),
    ],
)
@pytest.mark.parametrize("keeps_alive", [False, True])
async def test_the_call_ends_with_the_connection(served, llm, sent, tokens, keeps_alive):
    llm.tokens = tokens
    took_s = []
    # A busy machine may stop the whole test for longer than the limit, but not every time.
    while len(took_s) < TRIES and (not took_s or min(took_s) >= WITHIN_S):
        number = len(took_s) + 1
        async with connected(served.port) as connection:
            await connection.send(sent)
            await llm.until(begun=number)
            if tokens:
                await connection.reader.readuntil(b'"content":"x"')
            if keeps_alive:
                # After the first comment too, where the response has begun without a token.
                await asyncio.sleep(0.15)
            left_s = time.monotonic()
            connection.writer.close()
            await llm.until(cancelled=number)
            took_s.append(time.monotonic() - left_s)
        assert llm.begun == number
        async with asyncio.timeout(1):
            while len(served.gateway.parts.in_flight):
                await asyncio.sleep(0.001)
    assert min(took_s) < WITHIN_S


async def test_a_request_whose_client_left_counts_as_cancelled(served, llm):
    def count():
        labels = {"route": "/v1/chat/completions", "model": MODEL}
        return REGISTRY.get_sample_value("tidegate_gateway_cancelled_total", labels) or 0

    before = count()
    async with connected(served.port) as connection:
        await connection.send(chat())
        await llm.until(begun=1)
    await llm.until(cancelled=1)
    async with asyncio.timeout(1):
        while count() != before + 1:
            await asyncio.sleep(0.001)


async def test_a_client_that_stays_is_not_disturbed(served, llm):
    async with connected(served.port) as connection:
        await connection.send(chat())
        await llm.until(begun=1)
        await asyncio.sleep(0.1)
        llm.go_on.set()
        assert (await connection.response()).status == 200
        await connection.send(chat(stream=True))
        answer = await connection.response()
        assert answer.body.endswith(b"data: [DONE]\n\n")
    assert (llm.begun, llm.cancelled) == (2, 0)
