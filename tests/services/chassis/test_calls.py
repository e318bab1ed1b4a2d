"""Deadline, client identity and trailers of a call."""

import asyncio
import base64
import math
import re
import shutil
import struct
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.wrappers_pb2 import StringValue

from tidegate.chassis import LoadReport

NGHTTP = shutil.which("nghttp")


async def test_deadline_is_in_monotonic_seconds(serving):
    async with serving() as (application, _, client):
        await client.call("echo", "deadline-of", timeout=1000)
        # gRPC rounds a timeout up to few digits: this one to the next ten seconds.
        assert 990 < application.deadline_s - time.monotonic() <= 1010
        await client.call("echo", "deadline-of")
        assert application.deadline_s is None


async def test_client_identity_is_its_header_then_its_address(serving):
    async with serving() as (application, _, client):
        await client.call("echo", "identity-of", metadata=[("tidegate-client", "team-a")])
        assert application.identity == "team-a"
        await client.call("echo", "identity-of")
        assert application.identity == "ipv4:127.0.0.1"


async def test_stream_that_fails_during_its_first_write_ends_with_its_status(serving):
    async with serving() as (_, _, client), asyncio.timeout(20):
        error = await client.failure("chat", "fail-while-first-write")
    assert error.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.skipif(NGHTTP is None, reason="needs nghttp (Debian: nghttp2-client)")
async def test_load_report_is_a_trailer(serving, tmp_path, echo):
    # A gRPC client keeps this trailer for its load balancer, so the test reads it on the wire.
    message = StringValue(value="load").SerializeToString()
    body = tmp_path / "body"
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    async with serving() as (_, server, _):
        nghttp = await asyncio.create_subprocess_exec(
            *(NGHTTP, "-v", "-n", f"--data={body}"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            f"http://127.0.0.1:{server.grpc_port}/{echo.SERVICE}/Echo",
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await nghttp.communicate()
    expected = LoadReport(cpu_utilization=0.5, named_metrics={"queue": 3.0}).to_bytes()
    sent = base64.b64encode(expected).rstrip(b"=")
    assert b"endpoint-load-metrics-bin: " + sent in output


@pytest.fixture
def orca_load_report():
    """The message class, from its definition in xds/data/orca/v3/orca_load_report.proto."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="orca.proto", package="orca", syntax="proto3")
    message = file.message_type.add(name="OrcaLoadReport")
    doubles = {"cpu_utilization": 1, "mem_utilization": 2, "application_utilization": 9}
    for name, number in (doubles | {"rps_fractional": 6, "eps": 7}).items():
        message.field.add(
            name=name, number=number, type=kind.TYPE_DOUBLE, label=kind.LABEL_OPTIONAL
        )
    maps = {"RequestCost": 4, "Utilization": 5, "NamedMetrics": 8}
    for name, number in maps.items():
        entry = message.nested_type.add(name=f"{name}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=kind.TYPE_DOUBLE, label=kind.LABEL_OPTIONAL)
        message.field.add(
            name=re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(),
            number=number,
            type=kind.TYPE_MESSAGE,
            type_name=f".orca.OrcaLoadReport.{name}Entry",
            label=kind.LABEL_REPEATED,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("orca.OrcaLoadReport"))


def test_load_report_is_read_by_protobuf(orca_load_report):
    report = LoadReport(
        cpu_utilization=0.5,
        mem_utilization=0.25,
        application_utilization=1.5,
        rps_fractional=17.5,
        eps=0.125,
        request_cost={"tokens": 12.0},
        utilization={"kv_cache": 0.75, "é" * 200: 0.0},
        named_metrics={"queue": -math.pi},
    )
    read = orca_load_report.FromString(report.to_bytes())
    assert (read.cpu_utilization, read.mem_utilization) == (0.5, 0.25)
    assert (read.application_utilization, read.rps_fractional, read.eps) == (1.5, 17.5, 0.125)
    assert dict(read.request_cost) == report.request_cost
    assert dict(read.utilization) == report.utilization
    assert dict(read.named_metrics) == report.named_metrics
