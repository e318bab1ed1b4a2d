"""Spans, as a collector receives them."""

import asyncio

import grpc
import pytest
from conventions import LATEST_SCHEMA, current_attributes
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp_collectors import grpc_collector

from tidegate.chassis.call_lifecycle import peer_attributes

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
SAMPLED = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"), ("baggage", "tenant=a")]
UNSAMPLED = [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00")]


@pytest.mark.parametrize(
    ("kind", "method"),
    [("echo", "Echo"), ("repeat", "Repeat"), ("collect", "Collect"), ("chat", "Chat")],
)
async def test_every_call_has_a_server_span_in_the_callers_trace(serving, recorded, kind, method):
    async with serving() as (_, server, client):
        await client.call(kind, "stage", metadata=SAMPLED)
    spans = recorded()
    rpc = spans[f"tidegate.test.EchoService/{method}"]
    assert f"{rpc.context.trace_id:032x}" == TRACE_ID
    assert f"{rpc.parent.span_id:016x}" == PARENT_ID
    assert rpc.kind.name == "SERVER"
    attributes = dict(rpc.attributes)
    assert attributes.pop("network.peer.port") > 0
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": f"tidegate.test.EchoService/{method}",
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "server.port": server.grpc_port,
        "network.peer.address": "127.0.0.1",
    }
    assert spans["decode"].parent.span_id == rpc.context.span_id
    assert spans["infer"].parent.span_id == rpc.context.span_id
    assert spans["decode"].attributes["codec"] == "jpeg"


async def test_health_check_joins_a_trace_and_begins_none(serving, recorded):
    async with serving() as (_, _, client):
        health = health_pb2_grpc.HealthStub(client.channel)
        await health.Check(health_pb2.HealthCheckRequest())
        assert not recorded()
        await health.Check(health_pb2.HealthCheckRequest(), metadata=SAMPLED)
    (check,) = recorded().values()
    assert f"{check.context.trace_id:032x}" == TRACE_ID


@pytest.mark.parametrize(
    ("text", "code", "failed"),
    [
        ("not-found", "NOT_FOUND", False),
        ("crash", "INTERNAL", True),
        ("unavailable", "UNAVAILABLE", True),
    ],
)
async def test_span_is_marked_only_for_the_servers_faults(serving, recorded, text, code, failed):
    async with serving() as (_, _, client):
        await client.failure("echo", text)
    rpc = recorded()["tidegate.test.EchoService/Echo"]
    assert rpc.attributes["rpc.response.status_code"] == code
    assert rpc.attributes.get("error.type") == (code if failed else None)
    assert (rpc.status.status_code.name == "ERROR") is failed


async def test_span_follows_the_latest_conventions_that_are_pinned(serving, recorded):
    async with serving() as (_, _, client):
        await client.failure("echo", "model v1 crash")
    rpc = recorded()["tidegate.test.EchoService/Echo"]
    assert rpc.instrumentation_scope.schema_url == LATEST_SCHEMA
    ours = {"tidegate.model", "tidegate.model.version"}
    assert set(rpc.attributes) - ours <= current_attributes()
    assert rpc.attributes["tidegate.model.version"] == "v1"


async def test_unknown_method_does_not_name_a_span(serving, recorded):
    async with serving() as (_, _, client):
        call = client.channel.unary_unary("/made.Up/Name123")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"", metadata=SAMPLED)
    (rpc,) = recorded().values()
    assert rpc.name == "grpc"
    assert rpc.attributes["rpc.method"] == "_OTHER"
    assert rpc.attributes["rpc.method_original"] == "made.Up/Name123"
    assert rpc.attributes["error.type"] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("peer", "attributes"),
    [
        ("ipv4:10.0.0.1:80", {"network.peer.address": "10.0.0.1", "network.peer.port": 80}),
        ("ipv6:%5B::1%5D:80", {"network.peer.address": "::1", "network.peer.port": 80}),
        ("unix:/run/x.sock", {"network.peer.address": "/run/x.sock"}),
        ("unknown", {}),
    ],
)
def test_peer_becomes_address_and_port(peer, attributes):
    assert peer_attributes(peer) == attributes


async def test_span_ends_when_the_client_leaves(serving, recorded):
    async with serving() as (application, _, client):
        call = client.repeat("wait")
        await application.waiting.acquire()
        call.cancel()
        await application.closed.acquire()
    rpc = recorded()["tidegate.test.EchoService/Repeat"]
    assert rpc.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_unsampled_call_records_nothing(serving, recorded):
    async with serving() as (_, _, client):
        await client.call("echo", "stage", metadata=UNSAMPLED)
    assert recorded() == {}


async def test_consecutive_calls_do_not_inherit_the_trace(serving, recorded):
    async with serving() as (_, _, client):
        await client.call("echo", "ok", metadata=SAMPLED)
        await client.call("collect", "ok")
    spans = recorded()
    assert spans["tidegate.test.EchoService/Collect"].parent is None


async def test_spans_are_exported_before_the_process_ends(start_process, echo_client):
    async with grpc_collector() as (received, address):
        process, ports = await start_process(
            f"--otlp-endpoint=http://{address}",
            "--service-name=echo",
            "--service-version=1.2",
            "--deployment-environment=test",
        )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
            await echo_client(channel).failure("echo", "internal", metadata=SAMPLED)
        process.terminate()
        await process.communicate()
        assert process.returncode == 0

    (resource,) = received.resources
    assert resource["service.name"] == "echo"
    assert resource["service.version"] == "1.2"
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.instance.id"]
    (rpc,) = received.spans
    assert rpc.trace_id.hex() == TRACE_ID
    assert rpc.kind == Span.SPAN_KIND_SERVER
    assert rpc.status.code == Status.STATUS_CODE_ERROR


async def test_absent_collector_does_not_keep_the_process_running(start_process, echo_client):
    process, ports = await start_process("--otlp-endpoint=http://127.0.0.1:9")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        await echo_client(channel).call("echo", "ok", metadata=SAMPLED)
    process.terminate()
    async with asyncio.timeout(60):
        await process.communicate()
    assert process.returncode == 0
