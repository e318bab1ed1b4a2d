"""The access log service, with messages of an Envoy and with malformed ones."""

import asyncio
import contextlib

import grpc
import pytest
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage, StreamAccessLogsResponse
from prometheus_client import REGISTRY

from tidegate.mesh.telemetry import AccessLogServicer, RequestLog
from tidegate.mesh.telemetry.access_log import SERVICE_NAME

WAIT_S = 10.0


@pytest.fixture
async def log():
    return RequestLog()


@pytest.fixture
async def stream(log):
    """An open stream that sends any bytes."""
    server = grpc.aio.server()
    AccessLogServicer(log).register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_unary(
            f"/{SERVICE_NAME}/StreamAccessLogs",
            response_deserializer=StreamAccessLogsResponse.FromString,
        )(timeout=WAIT_S)
    await server.stop(None)


def message(*ids, node=None, user_agent=""):
    made = StreamAccessLogsMessage()
    if node is not None:
        made.identifier.node.id = node
        made.identifier.node.metadata["TIDEGATE_PROXY"] = "sidecar"
    for each in ids:
        entry = made.http_logs.log_entry.add()
        entry.request.request_id = str(each)
        entry.request.user_agent = user_agent
    return made


def passed_over(kind):
    name = "tidegate_mesh_access_log_entries_passed_over_total"
    return REGISTRY.get_sample_value(name, {"kind": kind}) or 0


async def test_the_sender_identifies_itself_once(log, stream):
    with log.subscribe("test") as records:
        await stream.write(message(1, node="a").SerializeToString())
        await stream.write(message(2).SerializeToString())
        await stream.write(message(3, node="b").SerializeToString())
        async with asyncio.timeout(WAIT_S):
            got = [await anext(records) for _ in range(3)]
    assert [each.proxy for each in got] == ["a", "a", "b"]
    assert {each.proxy_role for each in got} == {"sidecar"}
    await stream.done_writing()
    assert await stream == StreamAccessLogsResponse()


async def test_entries_that_are_no_request_are_counted_and_skipped(log, stream):
    before = {kind: passed_over(kind) for kind in ("tcp", "intermediate", "malformed")}
    odd = StreamAccessLogsMessage()
    odd.tcp_logs.log_entry.add()
    odd.tcp_logs.log_entry.add()
    intermediate = message(1)
    intermediate.http_logs.log_entry[0].common_properties.intermediate_log_entry = True
    with log.subscribe("test") as records:
        for each in (odd, intermediate):
            await stream.write(each.SerializeToString())
        await stream.write(b"\xff\xff")
        await stream.write(message(2).SerializeToString())
        async with asyncio.timeout(WAIT_S):
            assert (await anext(records)).request_id == "2"
    counted = {kind: passed_over(kind) - count for kind, count in before.items()}
    assert counted == {"tcp": 2, "intermediate": 1, "malformed": 1}


async def test_stream_is_read_no_faster_than_its_subscribers(log, stream):
    # Messages of 1 MiB soon fill the HTTP/2 windows, and the sender has to wait.
    sent = 0

    async def send():
        nonlocal sent
        for number in range(100):
            await stream.write(message(number, user_agent="x" * (1 << 20)).SerializeToString())
            sent += 1

    with log.subscribe("slow", capacity=1, max_wait_s=WAIT_S) as records:
        sending = asyncio.create_task(send())
        # The sender is blocked, because the server reads nothing.
        still = -1
        while still != sent:
            still = sent
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(sending), 0.5)
        assert sent < 100
        got = [int((await anext(records)).request_id) for _ in range(100)]
        await sending
        assert got == list(range(100))
        assert records.lost == 0


async def test_a_vanished_client_leaves_no_open_stream(log, stream):
    name = "tidegate_mesh_access_log_streams"
    with log.subscribe("test") as records:
        await stream.write(message(1).SerializeToString())
        async with asyncio.timeout(WAIT_S):
            await anext(records)
            assert REGISTRY.get_sample_value(name) == 1
            stream.cancel()
            while REGISTRY.get_sample_value(name) != 0:
                await asyncio.sleep(0.01)


@pytest.mark.asyncio(loop_scope="module")
async def test_envoy_counts_exactly_what_it_drops_for_a_slow_reader(mesh):
    async def stat(name):
        return await mesh.stat(f"access_logs.grpc_access_log.logs_{name}")

    async def refused(number):
        # No route matches, so that only Envoy handles the large header.
        large = (("x-user-id", f"{number:05}" + "x" * 40_000),)
        call = mesh.call("Unary", "nowhere", *large)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    sent = 0
    with mesh.log.subscribe("slow", capacity=1, max_wait_s=3600.0) as records:
        async with asyncio.timeout(60):
            while not await stat("dropped"):
                # One by one, so that Envoy waits for the reader and not for its own event loop.
                for _ in range(50):
                    await refused(sent)
                    sent += 1
            written, dropped = await stat("written"), await stat("dropped")
            assert written + dropped == sent
            got = [(await anext(records)).headers["x-user-id"][:5] for _ in range(written)]
        assert len(set(got)) == written
        assert records.lost == 0
        # The subscriber reads again, and Envoy drops nothing more.
        await refused(sent)
        async with asyncio.timeout(WAIT_S):
            assert (await anext(records)).headers["x-user-id"].startswith(f"{sent:05}")
        assert await stat("dropped") == dropped
