"""The load generators of `make bench-gateway`: what they count, and which answers they refuse."""

import asyncio
import os
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gateway")


@asynccontextmanager
async def http_server(*chunks, status=200):
    """Answers every request with these chunks, 5 ms apart."""

    async def answer(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            await reader.readexactly(length)
            writer.write(b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n" % status)
            for chunk in chunks:
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                await writer.drain()
                await asyncio.sleep(0.005)
            writer.write(b"0\r\n\r\n")

    async def serve(reader, writer):
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def frame(text):
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text


USAGE = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\ndata: [DONE]\n\n'


async def run(address, kind, tokens):
    from gateway_clients import HttpClient, Load, run_load

    client = HttpClient(address)
    try:
        return await run_load(client, Load(kind, 2, tokens, 0.1, "salt", address, os.getpid()))
    finally:
        client.close()


async def test_burst_counts_the_tokens_of_its_window_also_of_merged_frames():
    chunks = [frame(b""), frame(b"a"), frame(b"b") + frame(b"c"), frame(b"d"), USAGE % 8]
    async with http_server(*chunks) as address:
        found = await run(address, "burst", 8)
    # Two streams; of each, the window has at most the three frames after the first, of two tokens.
    assert 8 <= found.tokens <= 12
    assert found.requests == 2
    assert len(found.ttft_s) == 2
    assert 0 < found.seconds < 1
    assert found.front_cpu_s > 0


async def test_loop_counts_the_requests_of_its_window():
    async with http_server(frame(b"a"), USAGE % 2) as address:
        found = await run(address, "unary", 1)
    assert found.seconds == 0.1
    assert 0 < found.requests <= 20 + 2
    assert all(0.005 < each < 1 for each in found.ttft_s)


async def test_answer_of_the_wrong_length_ends_the_run():
    async with http_server(frame(b"a"), frame(b"b"), USAGE % 2) as address:
        with pytest.raises(RuntimeError, match="2 tokens instead of 8"):
            await run(address, "burst", 8)


async def test_error_ends_the_run_with_its_text():
    async with http_server(b'{"error":"no such model"}', status=404) as address:
        with pytest.raises(RuntimeError, match=r"HTTP 404: .*no such model"):
            await run(address, "unary", 1)


def test_cpu_clock_is_that_of_the_process():
    from gateway_clients import cpu_clock_s

    assert cpu_clock_s(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)
    assert cpu_clock_s(0) == pytest.approx(time.process_time(), abs=0.05)
