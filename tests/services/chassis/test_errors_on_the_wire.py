"""Errors as a real client receives them from a real server."""

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_status import rpc_status

KINDS = ["echo", "repeat", "collect", "chat"]


def details_of(error):
    """Unpacks the details of the rich status by their type."""
    status = rpc_status.from_call(error)
    found = {}
    for packed in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
        ):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    return found


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_of_every_kind_are_answered(serving, kind):
    async with serving() as (_, _, client):
        assert set(await client.call(kind, "ok")) == {"ok"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("invalid", "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("not-found", "NOT_FOUND", "MODEL_UNKNOWN"),
        ("exhausted", "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        ("deadline", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
        ("unavailable", "UNAVAILABLE", "UNAVAILABLE"),
        ("precondition", "FAILED_PRECONDITION", "FAILED_PRECONDITION"),
        ("unimplemented", "UNIMPLEMENTED", "UNIMPLEMENTED"),
        ("internal", "INTERNAL", "INTERNAL"),
    ],
)
async def test_raised_errors_become_rich_statuses(serving, kind, text, code, reason):
    async with serving() as (_, _, client):
        error = await client.failure(kind, text)
    assert error.code() is grpc.StatusCode[code]
    info = details_of(error)["ErrorInfo"]
    assert (info.domain, info.reason) == ("tidegate", reason)


async def test_field_violations_and_retry_delay_reach_the_client(serving):
    async with serving() as (_, _, client):
        invalid = details_of(await client.failure("echo", "invalid"))["BadRequest"]
        rejection = await client.failure("echo", "exhausted")
        not_found = details_of(await client.failure("echo", "not-found"))["ErrorInfo"]
    assert [(each.field, each.description) for each in invalid.field_violations] == [
        ("value", "is wrong"),
        ("other", "is missing"),
    ]
    assert details_of(rejection)["RetryInfo"].retry_delay.ToMilliseconds() == 1250
    assert dict(rejection.trailing_metadata())["grpc-retry-pushback-ms"] == "1250"
    assert dict(not_found.metadata) == {"model": "x"}


@pytest.mark.parametrize("kind", KINDS)
async def test_unexpected_exceptions_tell_the_client_only_an_id(serving, kind, caplog):
    async with serving() as (_, _, client):
        error = await client.failure(kind, "crash")
    info = details_of(error)["ErrorInfo"]
    assert error.code() is grpc.StatusCode.INTERNAL
    assert info.reason == "INTERNAL"
    assert "secret" not in error.details()
    assert info.metadata["error_id"] in error.details()


async def test_error_that_is_very_long_still_arrives(serving):
    async with serving() as (_, _, client):
        error = await client.failure("echo", "verbose")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(error).keys() == {"ErrorInfo", "BadRequest"}


async def test_error_raised_inside_a_task_group_is_the_error_of_the_call(serving):
    async with serving() as (_, _, client):
        error = await client.failure("echo", "group")
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert details_of(error)["ErrorInfo"].reason == "MODEL_UNKNOWN"


async def test_handlers_may_still_abort_by_hand(serving):
    async with serving() as (_, _, client):
        error = await client.failure("echo", "abort")
    assert (error.code(), error.details()) == (grpc.StatusCode.ALREADY_EXISTS, "by hand")


@pytest.mark.parametrize("kind", KINDS)
async def test_trailers_are_sent_with_answers_and_with_errors(serving, kind):
    async with serving() as (_, _, client):
        call = getattr(client, kind)("trailers ok")
        if kind in {"echo", "collect"}:
            await call
        else:
            assert [message async for message in call]
        answered = dict(await call.trailing_metadata())
        error = await client.failure(kind, "trailers not-found")
    assert answered == {"tidegate-model-version": "v7"}
    assert dict(error.trailing_metadata())["tidegate-model-version"] == "v7"
    assert details_of(error)["ErrorInfo"].reason == "MODEL_UNKNOWN"


async def test_unknown_method_is_a_rich_unimplemented(serving, echo):
    async with serving() as (_, _, client):
        call = client.channel.unary_unary(f"/{echo.SERVICE}/Nonsense")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert details_of(caught.value)["ErrorInfo"].reason == "METHOD_UNKNOWN"


@pytest.mark.parametrize(
    ("kind", "name", "streaming"),
    [("unary_unary", "Echo", False), ("stream_unary", "Collect", True)],
)
async def test_request_that_cannot_be_parsed_is_the_clients_fault(
    serving, echo, kind, name, streaming
):
    async with serving() as (_, _, client):
        call = getattr(client.channel, kind)(f"/{echo.SERVICE}/{name}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(iter([b"\xff"]) if streaming else b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)["ErrorInfo"].reason == "MALFORMED_REQUEST"


async def test_calls_beyond_the_limit_are_refused_but_health_is_not(serving):
    async with serving(max_concurrent_rpcs=1) as (application, _, client):
        running = client.echo("wait")
        await application.waiting.acquire()
        error = await client.failure("echo", "ok")
        health = client.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await health(b"") == b"\x08\x01"
        application.go_on.set()
        await running
        assert await client.call("echo", "ok") == ["ok"]
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error).keys() == {"ErrorInfo", "RetryInfo"}


@pytest.mark.parametrize("kind", KINDS)
async def test_handler_ends_when_its_client_leaves(serving, kind):
    async with serving() as (application, _, client):
        call = getattr(client, kind)("wait")
        await application.waiting.acquire()
        call.cancel()
        await application.closed.acquire()
        assert await client.call("echo", "ok") == ["ok"]


@pytest.mark.parametrize("kind", KINDS)
async def test_error_after_the_client_left_is_not_logged_as_an_error(serving, kind, caplog):
    async with serving() as (application, _, client):
        call = getattr(client, kind)("stubborn")
        await application.waiting.acquire()
        call.cancel()
        await application.closed.acquire()
        assert await client.call("echo", "ok") == ["ok"]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_message_beyond_the_limit_is_refused(serving):
    async with serving(max_message_bytes=4096) as (_, _, client):
        error = await client.failure("echo", "x" * 5000)
        assert await client.call("echo", "x" * 3000) == ["x" * 3000]
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_message_larger_than_grpcs_own_limit_is_accepted(serving, echo):
    async with serving() as (_, server, _):
        unlimited = [("grpc.max_receive_message_length", -1)]
        address = f"127.0.0.1:{server.grpc_port}"
        async with grpc.aio.insecure_channel(address, options=unlimited) as channel:
            call = channel.unary_unary(f"/{echo.SERVICE}/Echo")
            large = StringValue(value="x" * 5_000_000).SerializeToString()
            assert await call(large) == large
