"""The status that a caller gets after its own deadline, or after the timeout of its route.

Real clients call a real server of the chassis through a real Envoy. Deadlines are spread over a
range, so that timers of client, Envoy and server expire in every order.
"""

import asyncio
import contextlib
from collections import Counter

import grpc
import pytest
import pytest_asyncio
from endless_server import endless_server
from mesh_objects import DOMAIN, VISION, entry, everywhere, gateway, rule, text, to, virtual

from tidegate.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    ServerFaultError,
    TidegateRpcError,
)
from tidegate.mesh.compiler import EndpointState
from tidegate.mesh.resources import ProxyKind, ResourceType

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLS = 48
AT_ONCE = 8
LONG_S = 20.0
TARGET = f"{VISION}:8500"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def apply(mesh):
    """Puts a server that never ends a call behind Envoy, with a given rule."""
    async with endless_server() as server:
        states = {f"127.0.0.1:{server.grpc_port}": EndpointState.HEALTHY}

        async def apply_(**more):
            where = {"hosts": ["*"], "gateways": ["in"]}
            objects = (entry({"v1": server.grpc_port}), rule(subsets=("v1",)))
            inside = virtual(
                {"route": [to()], **more}, hosts=["vision"], gateways=["mesh"], name="inside"
            )
            outside = everywhere(**more)
            outside["spec"] |= where
            await mesh.apply(text(gateway(mesh.port), *objects, outside, inside), states)

        yield apply_


@pytest_asyncio.fixture(loop_scope="module")
async def caller(mesh):
    async with AsyncClient(f"127.0.0.1:{mesh.port}") as caller:
        yield caller


async def images():
    """Endless images, so that the client still writes to the stream when its deadline passes."""
    while True:
        yield b"jpeg"
        await asyncio.sleep(0.003)


async def chat(client, within_s):
    return await client.llm.chat("go on", timeout_s=within_s).read()


async def silent_chat(client, within_s):
    return await client.llm.chat("silent", timeout_s=within_s).read()


async def generate(client, within_s):
    return await client.llm.generate("go on", timeout_s=within_s).read()


async def complete(client, within_s):
    return await client.llm.complete("go on", timeout_s=within_s)


async def classify(client, within_s):
    return await client.vision.classify(b"jpeg", timeout_s=within_s)


async def classify_stream(client, within_s):
    answers = client.vision.classify_stream(images(), timeout_s=within_s)
    async with contextlib.aclosing(answers):
        async for _ in answers:
            pass


UNARY = (classify, complete)
STREAMS = (chat, silent_chat, generate, classify_stream)


async def outcomes(client, call, deadlines_s):
    """The number of calls by final status."""
    counted = Counter()
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(within_s):
        async with turns:
            try:
                await call(client, within_s)
                counted["answered"] += 1
            except TidegateRpcError as error:
                counted[error.code] += 1

    await asyncio.gather(*(one(each) for each in deadlines_s))
    return counted


def spread(count):
    """Deadlines between 20 and 150 ms."""
    return [0.02 + 0.13 * number / count for number in range(count)]


@pytest.mark.parametrize("call", [*UNARY, *STREAMS])
@pytest.mark.parametrize("more", [{}, {"timeout": "30s"}], ids=["no timeout", "timeout"])
async def test_a_passed_deadline_is_deadline_exceeded_every_time(apply, caller, call, more):
    await apply(**more)
    ended = await outcomes(caller, call, spread(CALLS))
    assert ended == {grpc.StatusCode.DEADLINE_EXCEEDED: CALLS}


async def test_a_blocking_client_gets_the_same_status(mesh, apply):
    await apply()

    def endless():
        while not over.is_set():
            yield b"jpeg"

    def stream(client, within_s):
        for _ in client.vision.classify_stream(endless(), timeout_s=within_s):
            pass

    def call(within_s):
        with Client(f"127.0.0.1:{mesh.port}") as client:
            for each in (
                lambda: client.llm.chat("go on", timeout_s=within_s).read(),
                lambda: stream(client, within_s),
            ):
                try:
                    each()
                except TidegateRpcError as error:
                    counted[error.code] += 1

    over, counted = asyncio.Event(), Counter()
    async with asyncio.TaskGroup() as group:
        for within_s in spread(8):
            group.create_task(asyncio.to_thread(call, within_s))
    over.set()
    assert counted == {grpc.StatusCode.DEADLINE_EXCEEDED: 16}


async def test_the_server_gets_the_clients_deadline_or_else_the_routes_timeout(mesh, vision):
    await mesh.apply(vision(virtual({"route": [to("v1")], "timeout": "5s"})))
    for within_s, told_s in ((2, 2), (60, 60), (None, 5)):
        forged = ("x-tidegate-grpc-timeout", "1S")
        answer = await mesh.call(DOMAIN, forged, within_s=within_s)
        # gRPC rounds up by 1 % at most.
        assert told_s - 1 < answer.remaining_s <= told_s * 1.01
        assert "x-tidegate-grpc-timeout" not in answer.headers


@pytest.mark.parametrize("call", UNARY)
async def test_a_routes_timeout_ends_calls_without_a_response_with_deadline_exceeded(
    apply, caller, call
):
    await apply(timeout="0.1s")
    assert await outcomes(caller, call, [LONG_S] * 8) == {grpc.StatusCode.DEADLINE_EXCEEDED: 8}


async def test_a_routes_timeout_ends_streams_that_have_begun(apply, caller):
    # Envoy cannot send a status after the headers: gRPC turns RST_STREAM into INTERNAL. Envoy sends
    # the timeout to the server too, and the server may be the one that ends the call.
    await apply(timeout="2s")
    streams = [
        caller.llm.chat("go on", timeout_s=LONG_S),
        caller.llm.chat("silent", timeout_s=None),
        caller.llm.generate("go on", timeout_s=LONG_S),
        caller.vision.classify_stream(images(), timeout_s=LONG_S),
    ]
    await asyncio.gather(*(anext(each) for each in streams))
    for stream in streams:
        with pytest.raises((ServerFaultError, DeadlineExceededError)):
            async for _ in stream:
                pass


async def test_a_try_that_takes_too_long_is_unavailable_and_no_stream_is_cut(apply, caller):
    await apply(retries={"attempts": 1, "perTryTimeout": "0.05s", "retryOn": "reset"})
    assert await outcomes(caller, complete, [LONG_S]) == {grpc.StatusCode.UNAVAILABLE: 1}
    ended = await outcomes(caller, chat, [0.3] * 8)
    assert ended == {grpc.StatusCode.DEADLINE_EXCEEDED: 8}


@pytest.mark.parametrize("limit", [None, "0.1s"])
async def test_a_proxyless_client_ends_every_call_itself(mesh, apply, client, limit):
    await apply(**({"timeout": limit} if limit else {}))
    routes = [
        key for key in mesh.compiled.resources[ProxyKind.GRPC] if key.type is ResourceType.ROUTE
    ]
    within_s = LONG_S if limit else 0.1
    for stream in (False, True):
        ended = await client.ends(TARGET, CALLS // 2, stream=stream, within_s=within_s)
        assert ended == {"DEADLINE_EXCEEDED": CALLS // 2}
    report = await mesh.distribution.acknowledged({ProxyKind.GRPC: routes}, LONG_S)
    assert report.done
