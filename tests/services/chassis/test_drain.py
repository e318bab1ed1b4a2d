"""The drain: a real process, a real signal, and clients that do not stop calling."""

import asyncio
import json
import signal
from collections import Counter

import grpc
import pytest

from tidegate.chassis import serve

CLIENTS = 48


async def logged(process):
    """Waits for the process to end and gives the lines that it logged after listening."""
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    return [json.loads(line) for line in stderr.splitlines()]


async def call_until_rejected(client, kind, text, codes, in_full_swing):
    """Calls in a loop, as fast as responses come, until a call fails."""
    while True:
        try:
            answers = await client.call(kind, text)
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1
            return
        assert answers == [text] * (3 if kind == "repeat" else 1)
        codes[grpc.StatusCode.OK] += 1
        if codes[grpc.StatusCode.OK] >= 20 * CLIENTS:
            in_full_swing.set()


@pytest.mark.parametrize(("kind", "text"), [("echo", "sleep 4"), ("repeat", "sleep 4")])
async def test_sigterm_under_load_loses_no_accepted_call(start_process, echo_client, kind, text):
    process, ports = await start_process("--drain-hold-s=0.2")
    codes = Counter()
    in_full_swing = asyncio.Event()
    channels = [
        grpc.aio.insecure_channel(
            f"127.0.0.1:{ports['grpc']}",
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
        )
        for _ in range(4)
    ]
    async with asyncio.TaskGroup() as callers:
        for number in range(CLIENTS):
            client = echo_client(channels[number % len(channels)])
            callers.create_task(call_until_rejected(client, kind, text, codes, in_full_swing))
        await in_full_swing.wait()
        process.send_signal(signal.SIGTERM)
    for channel in channels:
        await channel.close()

    lines = await logged(process)
    assert process.returncode == 0
    # Each caller fails once, in its last call, and only with UNAVAILABLE.
    assert codes.keys() == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert codes[grpc.StatusCode.UNAVAILABLE] == CLIENTS
    assert [line["cancelled"] for line in lines if line["event"] == "drained"] == [0]
    assert not [line for line in lines if line["event"] == "rpc failed"]


async def test_calls_after_the_end_are_unavailable(start_process, echo_client):
    process, ports = await start_process()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        client = echo_client(channel)
        assert await client.call("echo", "ok") == ["ok"]
        process.send_signal(signal.SIGTERM)
        await logged(process)
        error = await client.failure("echo", "ok")
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", ["echo", "repeat", "collect", "chat"])
async def test_long_call_finishes_after_the_port_is_closed(serving, kind):
    async with serving() as (application, server, client):
        call = asyncio.create_task(client.call(kind, "wait"))
        await application.waiting.acquire()
        draining = asyncio.create_task(server.drain())
        await refuses(server.grpc_port)
        assert not draining.done()
        application.go_on.set()
        assert set(await call) == {"wait"}
        await draining


async def refuses(port):
    """Waits until no server listens on the port."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except (ConnectionRefusedError, ConnectionResetError):
            # Reset: the connection was in the backlog of the socket that was closed.
            return
        writer.close()
        await writer.wait_closed()


async def test_calls_are_answered_during_the_drain_delay(serving, echo):
    async with serving(drain_delay_s=60) as (_, server, client):
        watch = server.health.watch(echo.SERVICE)
        assert await anext(watch) is True
        draining = asyncio.create_task(server.drain())
        assert await anext(watch) is False
        assert await client.call("echo", "ok") == ["ok"]
        server.request_shutdown()  # the second request, which skips the rest of the delay
        await draining


@pytest.mark.parametrize("kind", ["echo", "repeat", "collect", "chat"])
async def test_calls_that_miss_the_drain_deadline_end_with_unavailable(serving, kind, capfd):
    async with serving(drain_deadline_s=0.05) as (application, server, client):
        call = asyncio.create_task(client.failure(kind, "wait"))
        await application.waiting.acquire()
        await server.drain()
        error = await call
        await application.closed.acquire()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in error.details()
    name = {"echo": "Echo", "repeat": "Repeat", "collect": "Collect", "chat": "Chat"}[kind]
    cancelled = [line for line in capfd.readouterr().out.splitlines() if "calls cancelled" in line]
    assert len(cancelled) == 1
    assert f"/tidegate.test.EchoService/{name}': 1" in cancelled[0]


async def test_second_signal_cancels_calls_at_once(start_process, echo_client):
    process, ports = await start_process("--drain-deadline-s=3600")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        call = echo_client(channel).repeat("wait")
        assert (await call.read()).value == "wait"
        process.send_signal(signal.SIGTERM)
        await refuses(ports["grpc"])
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    lines = await logged(process)
    assert process.returncode == 0
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert [line["by_method"] for line in lines if line["event"] == "calls cancelled"] == [
        {"/tidegate.test.EchoService/Repeat": 1}
    ]


async def test_signal_while_loading_ends_the_load(start_process):
    process, _ = await start_process("--load-s=60")
    process.send_signal(signal.SIGINT)
    lines = await logged(process)
    assert process.returncode == 0
    assert "loaded" not in {line["event"] for line in lines}


async def test_failed_load_is_logged_and_ends_the_process(run_to_end):
    code, lines = await run_to_end("--grpc-port=0", "--metrics-port=0", "--fail-load")
    assert code == 1
    failure = next(line for line in lines if line["event"] == "the server failed")
    assert "the weights are missing" in failure["exception"]


async def test_engine_that_dies_ends_the_server(echo, make_settings):
    application = echo.EchoApplication()

    async def serve_until_it_dies():
        serving = asyncio.create_task(serve(application, make_settings()))
        await application.loaded.wait()
        application.engine_dies.set()
        await serving

    with pytest.raises(ExceptionGroup) as caught:
        await serve_until_it_dies()
    assert "the engine died" in str(caught.value.exceptions[0])


async def test_port_file_is_there_while_the_server_is(start_process, tmp_path):
    process, ports = await start_process()
    assert ports["pid"] == process.pid
    assert (tmp_path / "ports-0.json").exists()
    process.send_signal(signal.SIGTERM)
    await logged(process)
    assert not (tmp_path / "ports-0.json").exists()
