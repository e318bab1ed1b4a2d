"""The drain, over real connections: nothing ends without a word."""

import asyncio
import json
import os
import signal
import sys

import pytest
from gateway_routes import add_test_routes
from gateway_server import gateway
from raw_http import ask, connected

GET = "GET /test/echo HTTP/1.1\nHost: a\n\n"
HOLD = "POST /test/hold HTTP/1.1\nHost: a\nContent-Length: 0\n\n"
STREAM = "POST /test/stream?frames=2 HTTP/1.1\nHost: a\nContent-Length: 0\n\n"


@pytest.fixture
async def draining():
    """Gives a function that starts a gateway, and begins its drain on demand."""
    async with asyncio.TaskGroup() as tasks:

        class Draining:
            async def begin(self, served):
                self.task = tasks.create_task(served.gateway.drain())
                await asyncio.sleep(0)

        yield Draining()


async def test_it_is_not_ready_at_once_and_answers_with_close_during_the_delay(draining):
    async with gateway(drain_delay_s=0.3) as served:
        add_test_routes(served.gateway.app)
        async with connected(served.port) as used, connected(served.port) as new:
            await used.send(GET)
            assert "connection" not in (await used.response()).headers
            await draining.begin(served)
            ready = await ask(served.port, "GET /readyz HTTP/1.1\nHost: a\n\n")
            assert (ready.status, ready.headers["connection"]) == (503, "close")
            alive = await ask(served.port, "GET /healthz HTTP/1.1\nHost: a\n\n")
            assert alive.status == 200
            for connection in (used, new):
                await connection.send(GET)
                answer = await connection.response()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await connection.is_closed()
            await draining.task
        with pytest.raises(ConnectionRefusedError):
            await ask(served.port, GET)


async def test_idle_connections_close_and_running_requests_finish(draining):
    async with gateway(drain_deadline_s=5) as served:
        held = add_test_routes(served.gateway.app)
        async with (
            connected(served.port) as idle,
            connected(served.port) as unary,
            connected(served.port) as stream,
        ):
            await idle.send(GET)
            await idle.response()
            await unary.send(HOLD)
            await stream.send(STREAM)
            await held.until(begun=2)
            await draining.begin(served)
            assert await idle.is_closed(within_s=0.5)
            held.go_on.set()
            answer = await unary.response()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            answer = await stream.response()
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert b"error" not in answer.body
            assert await stream.is_closed()


async def test_what_outlasts_the_deadline_ends_with_an_error(draining):
    async with gateway(drain_deadline_s=0.1) as served:
        held = add_test_routes(served.gateway.app)
        async with (
            connected(served.port) as unary,
            connected(served.port) as stream,
            connected(served.port) as in_body,
            connected(served.port) as in_head,
        ):
            await unary.send(HOLD)
            await stream.send(STREAM)
            await held.until(begun=2)
            await in_body.send("POST /test/echo HTTP/1.1\nHost: a\nContent-Length: 9\n\nabc")
            await in_head.send("POST /test/echo HTTP/1.1\nHost")
            await asyncio.sleep(0.05)
            await draining.begin(served)
            for connection in (unary, in_body, in_head):
                answer = await connection.response()
                assert (answer.status, answer.error["code"]) == (503, "shutting_down")
                assert answer.headers["retry-after"] == "1"
                assert await connection.is_closed()
            *_, error, done, rest = (await stream.response()).body.split(b"\n\n")
            assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "shutting_down"
            assert (done, rest) == (b"data: [DONE]", b"")
            assert held.cancelled == 2
        await draining.task


async def test_a_client_that_does_not_read_does_not_stop_the_drain(draining):
    async with gateway(drain_deadline_s=0.1) as served:
        held = add_test_routes(served.gateway.app)
        async with connected(served.port, limit=1024) as stream:
            await stream.send(STREAM.replace("frames=2", "frames=100&size=1000000"))
            await asyncio.sleep(0.2)
            async with asyncio.timeout(3):
                await served.gateway.drain()
            assert held.begun == 0


async def started(tmp_path, *arguments):
    """Starts the gateway as a process; returns it and its HTTP port."""
    ports = tmp_path / "ports.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidegate.gateway", "--http-port=0", "--metrics-port=0"),
        *("--llm=", "--vision=", f"--port-file={ports}", *arguments),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        while not ports.exists():
            assert process.returncode is None, await process.stderr.read()
            await asyncio.sleep(0.02)
    return process, json.loads(ports.read_text())


async def test_the_process_ends_with_0_after_sigterm(tmp_path):
    process, ports = await started(tmp_path)
    assert ports.keys() == {"http", "metrics", "pid"}
    answer = await ask(ports["http"], "GET /readyz HTTP/1.1\nHost: a\n\n")
    assert answer.status == 200
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        _, log = await process.communicate()
    assert process.returncode == 0, log
    assert not (tmp_path / "ports.json").exists()
    assert b"Traceback" not in log


async def test_a_second_signal_ends_the_drain(tmp_path):
    process, ports = await started(tmp_path, "--drain-delay-s=60", "--drain-deadline-s=60")
    async with connected(ports["http"]) as connection:
        await connection.send("GET /healthz HTTP/1.1\nHost")
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        answer = await connection.response()
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        async with asyncio.timeout(10):
            _, log = await process.communicate()
    assert process.returncode == 0, log


async def test_a_port_that_is_taken_is_told(tmp_path):
    async with gateway() as served:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tidegate.gateway", f"--http-port={served.port}"),
            *("--metrics-port=0", "--llm=", "--vision="),
            stderr=asyncio.subprocess.PIPE,
        )
        _, log = await process.communicate()
    assert process.returncode == 1
    assert f"http_port: cannot listen on 127.0.0.1:{served.port}".encode() in log
