"""What is on stderr of a server."""

import asyncio
import json
import logging

import grpc

from tidegate.runtime.logging import adopt_library_loggers

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = [("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01")]


async def lines_of(start_process, echo_client, calls, *flags):
    """Starts a server, makes calls, ends it, and gives what it logged."""
    process, ports = await start_process(*flags)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        client = echo_client(channel)
        for text in calls:
            try:
                await client.call("echo", text, metadata=TRACEPARENT)
            except grpc.aio.AioRpcError as error:
                assert text not in {"ok", "log"}, error  # noqa: PT017
    process.terminate()
    async with asyncio.timeout(30):
        _, stderr = await process.communicate()
    return [json.loads(line) for line in stderr.splitlines()]


async def test_lines_inside_a_call_carry_its_method_and_trace(start_process, echo_client):
    lines = await lines_of(start_process, echo_client, ["log"])
    (line,) = [each for each in lines if each["event"] == "working"]
    assert line["step"] == 1
    assert line["level"] == "info"
    assert line["logger"] == "test"
    assert line["rpc_method"] == "/tidegate.test.EchoService/Echo"
    assert line["trace_id"] == TRACE_ID
    assert len(line["span_id"]) == 16
    assert line["timestamp"].endswith("Z")


async def test_failed_calls_have_one_line_each_and_others_none(start_process, echo_client):
    lines = await lines_of(start_process, echo_client, ["ok", "not-found", "internal"])
    failed = [each for each in lines if each["event"] == "rpc failed"]
    assert [(each["code"], each["reason"], each["level"]) for each in failed] == [
        ("NOT_FOUND", "MODEL_UNKNOWN", "info"),
        ("INTERNAL", "INTERNAL", "warning"),
    ]
    assert all(each["trace_id"] == TRACE_ID for each in failed)
    assert not [each for each in lines if each["event"] == "rpc answered"]


async def test_debug_level_has_a_line_for_every_call(start_process, echo_client):
    lines = await lines_of(start_process, echo_client, ["ok"], "--log-level=debug")
    (line,) = [each for each in lines if each["event"] == "rpc answered"]
    assert line["rpc_method"] == "/tidegate.test.EchoService/Echo"


async def test_unexpected_exception_is_logged_with_traceback_and_id(start_process, echo_client):
    lines = await lines_of(start_process, echo_client, ["crash"])
    (line,) = [each for each in lines if each["event"] == "handler failed unexpectedly"]
    assert "RuntimeError: secret detail" in line["exception"]
    assert line["error_id"]
    (access,) = [each for each in lines if each["event"] == "rpc failed"]
    assert line["error_id"] in access["message"]


def test_loggers_of_libraries_lose_their_own_handlers():
    library = logging.getLogger("library_of_a_test")
    library.addHandler(logging.NullHandler())
    library.propagate = False
    adopt_library_loggers()
    assert library.handlers == []
    assert library.propagate
