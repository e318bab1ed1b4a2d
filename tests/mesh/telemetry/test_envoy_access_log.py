"""Request records from the access log of a real Envoy."""

import asyncio
import time

import grpc
import pytest

HOST = "echo.models.svc.cluster.local"
SERVICE = "tidegate.test.v1.Echo"
TRACE = "0af7651916cd43dd8448eb211c80319c"

pytestmark = pytest.mark.asyncio(loop_scope="module")


def user(name):
    return ("x-user-id", name)


async def failure(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_unary_call_is_logged_in_full(mesh, record_of):
    began_s = time.time()
    await mesh.call("Unary", "v1", user("ann"), ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"))
    record = await record_of("ann")
    assert (record.proxy, record.proxy_role) == ("ingress-1", "ingress")
    assert (record.service, record.method, record.path) == (SERVICE, "Unary", f"/{SERVICE}/Unary")
    assert record.is_grpc
    assert (record.route, record.cluster) == ("to-v1", f"outbound|50051|v1|{HOST}")
    assert (record.host, record.port, record.subset) == (HOST, 50051, "v1")
    assert record.upstream_address == mesh.v1.address
    assert record.listener_address == record.authority == f"127.0.0.1:{mesh.port}"
    assert (record.grpc_status, record.http_status) == (grpc.StatusCode.OK, 200)
    assert (record.response_flags, record.response_details) == ((), "via_upstream")
    assert (record.request_messages, record.response_messages) == (1, 1)
    # Five bytes of "hello" and five of the gRPC frame.
    assert (record.request_bytes, record.response_bytes) == (10, 10)
    assert record.trailers == {"tidegate-model": "echo", "tidegate-model-version": "1-fp32"}
    assert (record.model, record.model_version) == ("echo", "1-fp32")
    assert (record.trace_id, record.attempts) == (TRACE, 1)
    assert began_s <= record.start_time_s <= time.time()
    assert 0 < record.time_to_first_byte_s <= record.time_to_last_byte_s <= record.duration_s


async def test_a_call_without_a_trace_gets_the_trace_that_envoy_starts(mesh, record_of):
    await mesh.call("Unary", "v1", user("bob"))
    record = await record_of("bob")
    version, trace_id, _, _ = mesh.v1.metadata[-1]["traceparent"].split("-")
    assert (version, record.trace_id) == ("00", trace_id)
    spans = await mesh.spans.of_trace(trace_id, 2)
    assert record.span_id in {each.span_id.hex() for each in spans}


async def test_a_failed_call_without_trailers_has_a_status_and_trailers(mesh, record_of):
    await failure(mesh.call("Fail", "v1", user("cid")))
    record = await record_of("cid")
    assert (record.grpc_status, record.grpc_message) == (
        grpc.StatusCode.NOT_FOUND,
        "no such thing",
    )
    assert record.model_version == "1-fp32"
    assert (record.http_status, record.response_flags) == (200, ())
    assert (record.request_messages, record.response_messages) == (1, 0)


async def test_first_byte_of_a_stream_is_its_first_message(mesh, record_of):
    mesh.v1.go_on.clear()
    began_s = time.monotonic()
    call = mesh.call("Stream", "v1", user("dan"), kind="unary_stream")
    assert await call.read() == b"1"
    first_s = time.monotonic() - began_s
    mesh.v1.go_on.set()
    assert [await call.read(), await call.read(), await call.read()] == [b"2", b"3", grpc.aio.EOF]
    record = await record_of("dan")
    assert 0 < record.time_to_first_byte_s < record.duration_s
    assert record.time_to_first_byte_s <= first_s
    assert (record.request_messages, record.response_messages) == (1, 3)
    assert record.trailers["tidegate-tokens-out"] == "3"
    assert record.trailers["tidegate-finish"] == "stop"


async def test_messages_of_both_directions_are_counted(mesh, record_of):
    async def three():
        for each in (b"a", b"b", b"c"):
            yield each

    call = mesh.call("Twice", "v1", user("eva"), kind="stream_stream", request=three())
    assert len([each async for each in call]) == 6
    record = await record_of("eva")
    assert (record.request_messages, record.response_messages) == (3, 6)


@pytest.mark.parametrize(
    ("to", "flag", "status", "subset"),
    [
        ("empty", "UH", grpc.StatusCode.UNAVAILABLE, "empty"),
        ("refused", "UF", grpc.StatusCode.UNAVAILABLE, "refused"),
        # Envoy has no cluster of this name, so it cannot log which one the route meant.
        ("missing", "NC", grpc.StatusCode.UNAVAILABLE, ""),
        ("nowhere", "NR", grpc.StatusCode.UNIMPLEMENTED, ""),
    ],
)
async def test_failures_of_the_mesh_have_their_response_flag(
    mesh, record_of, to, flag, status, subset
):
    error = await failure(mesh.call("Unary", to, user(to)))
    record = await record_of(to)
    assert record.response_flags == (flag,)
    assert record.grpc_status is status is error.code()
    assert (record.subset, record.host) == (subset, HOST if subset else "")
    assert record.time_to_first_byte_s is None
    assert record.upstream_address == (mesh.refusing if to == "refused" else "")


async def test_a_stream_that_its_client_cancels_is_no_failure(mesh, record_of):
    mesh.v1.go_on.clear()
    call = mesh.call("Stream", "v1", user("fay"), kind="unary_stream")
    await call.read()
    call.cancel()
    record = await record_of("fay")
    mesh.v1.go_on.set()
    assert record.response_flags == ("DR",)
    assert record.grpc_status is grpc.StatusCode.CANCELLED
    assert record.response_messages == 1


async def test_stream_whose_client_closes_its_connection_is_cancelled(mesh, record_of):
    mesh.v1.go_on.clear()
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    head = f"POST /{SERVICE}/Stream HTTP/1.1\r\nhost: a\r\nx-to: v1\r\nx-user-id: gus\r\n"
    writer.write(f"{head}te: trailers\r\ncontent-type: application/grpc\r\n".encode())
    writer.write(b"content-length: 5\r\n\r\n" + bytes(5))
    assert b"200" in await reader.readline()
    writer.close()
    record = await record_of("gus")
    mesh.v1.go_on.set()
    assert record.response_flags == ("DC",)
    assert record.grpc_status is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    ("to", "details"),
    [
        ("impatient", {"response_timeout"}),
        # Envoy sends this timeout to the server, so the server may end the call first.
        ("limited", {"max_duration_timeout", "via_upstream"}),
    ],
)
async def test_stream_whose_time_envoy_ends_is_deadline_exceeded(mesh, record_of, to, details):
    mesh.v1.go_on.clear()
    call = mesh.call("Stream", to, user(to), kind="unary_stream")
    await failure(_read_all(call))
    record = await record_of(to)
    mesh.v1.go_on.set()
    assert record.response_details in details
    # The headers have status 200, and Envoy sent no gRPC status after them.
    assert (record.http_status, record.grpc_status) == (200, grpc.StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("to", ["impatient", "bounded"])
async def test_a_timeout_of_envoy_is_told_from_the_callers_deadline(mesh, record_of, to):
    mesh.v1.go_on.clear()
    await failure(mesh.call("Wait", to, user(f"wait-{to}")))
    await failure(mesh.call("Wait", "v1", user("own"), timeout=0.05))
    by_envoy, own = await record_of(f"wait-{to}"), await record_of("own")
    mesh.v1.go_on.set()
    assert by_envoy.proxy_timeout
    assert (by_envoy.by_headers, own.by_headers) == (to == "bounded", False)
    assert (own.grpc_status, own.proxy_timeout) == (grpc.StatusCode.DEADLINE_EXCEEDED, False)
    # Envoy answers a unary call with UNAVAILABLE, unless the server is faster.
    assert by_envoy.grpc_status in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


async def test_streams_whose_deadline_passes_are_deadline_exceeded_every_time(mesh, record_of):
    mesh.v1.go_on.clear()
    for number in range(30):
        name = f"late-{number}"
        call = mesh.call(
            "Stream", "v1", user(name), kind="unary_stream", timeout=0.1 + number / 1000
        )
        assert (await failure(_read_all(call))).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        record = await record_of(name)
        # Whoever ends it, the client or Envoy: it was the caller's deadline.
        assert record.grpc_status is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not record.proxy_timeout
    mesh.v1.go_on.set()


async def _read_all(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_rewritten_path_is_logged_as_the_client_sent_it(mesh, record_of):
    await mesh.call("Alias", "rewritten", user("ian"))
    record = await record_of("ian")
    assert (record.method, record.grpc_status) == ("Alias", grpc.StatusCode.OK)


async def test_plain_http_is_no_grpc_call(mesh, record_of):
    await _http(mesh, b"GET /a/b?c HTTP/1.1\r\nhost: a\r\nx-user-id: jo\r\n\r\n")
    record = await record_of("jo")
    assert not record.is_grpc
    assert record.grpc_status is None
    assert (record.http_status, record.response_flags) == (404, ("NR",))


async def test_invalid_utf8_costs_neither_the_record_nor_the_stream(mesh, record_of):
    streams = await mesh.stat("cluster.tidegate-access-log.upstream_rq_total")
    odd = b"user-agent: \xff\xfe\r\nx-request-id: \xff\r\ntraceparent: 00-\xff\r\n"
    for user_id in ("lea", "leo", "lia"):
        head = f"GET / HTTP/1.1\r\nhost: a\r\nx-user-id: {user_id}\r\n".encode()
        await _http(mesh, head + odd + b"\r\n")
        assert (await record_of(user_id)).http_status == 404
    # Each of Envoy's two workers opens one stream, with its first entry.
    assert await mesh.stat("cluster.tidegate-access-log.upstream_rq_total") - streams <= 1


async def _http(mesh, request):
    reader, writer = await asyncio.open_connection("127.0.0.1", mesh.port)
    writer.write(request)
    await reader.readline()
    writer.close()


async def test_envoy_has_written_all_entries_and_dropped_none(mesh, record_of):
    await mesh.call("Unary", "v1", user("kim"))
    await record_of("kim")
    assert await mesh.stat("access_logs.grpc_access_log.logs_written") > 0
    assert await mesh.stat("access_logs.grpc_access_log.logs_dropped") == 0
