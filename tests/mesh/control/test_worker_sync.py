"""Which proxies prove that their workers use what they acknowledged, and which need an estimate."""

import asyncio
import contextlib
import json

import pytest

from tidegate.mesh.control.transitions import worker_sync
from tidegate.mesh.control.transitions.worker_sync import WorkerSync


@contextlib.asynccontextmanager
async def admin_interface(file, stats):
    """The admin interface of an Envoy ``ingress`` that returns given statistics."""

    async def answer(reader, writer):
        path = (await reader.readline()).split()[1]
        body = json.dumps({"node": {"id": "ingress"}}) if path == b"/server_info" else stats
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        file.write_text(f"{host}:{port}")
        yield


@pytest.fixture
def estimates(monkeypatch):
    """The times of acknowledgements that were used for an estimate."""
    seen = []

    def estimate(acknowledged_s):
        seen.append(acknowledged_s)
        return 0

    monkeypatch.setattr(worker_sync, "estimated_s", estimate)
    return seen


def counted(flushes):
    return json.dumps({"stats": [{"name": "server.dropped_stat_flushes", "value": flushes}]})


async def test_an_envoy_that_gives_proof_needs_no_estimate(tmp_path, estimates):
    file = tmp_path / "admin"
    async with admin_interface(file, counted(3)):
        assert await WorkerSync([file], lambda: ["ingress"]).wait(0.5, 10) == ()
    assert estimates == []


async def test_other_proxies_need_an_estimate(tmp_path, estimates):
    file = tmp_path / "admin"
    async with admin_interface(file, counted(3)):
        assert await WorkerSync([file], lambda: ["ingress", "a client"]).wait(0.5, 10) == ()
    assert estimates == [0.5]


@pytest.mark.parametrize("stats", ["{}", "not json"])
async def test_an_envoy_without_the_statistic_gives_no_proof(tmp_path, estimates, stats):
    file = tmp_path / "admin"
    async with admin_interface(file, stats):
        assert await WorkerSync([file], lambda: ["ingress"]).wait(0.5, 10) == ()
    assert estimates == [0.5]


async def test_an_envoy_that_has_not_written_its_address_needs_an_estimate(tmp_path, estimates):
    assert await WorkerSync([tmp_path / "none"], lambda: ["ingress"]).wait(0.5, 10) == ()
    assert estimates == [0.5]


async def test_a_disconnected_proxy_is_not_waited_for(tmp_path, estimates):
    assert await WorkerSync([tmp_path / "none"], list).wait(0.5, 10) == ()
    assert estimates == []
