"""Client, Envoy and server form one trace."""

import grpc
import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

SERVICE = "tidegate.test.v1.Echo"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"

pytestmark = pytest.mark.asyncio(loop_scope="module")


def attributes(span):
    return {each.key: each.value.string_value for each in span.attributes}


async def test_spans_lie_between_those_of_client_and_server(mesh):
    await mesh.call("Unary", "v1", ("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=b"))
    spans = {span.kind: span for span in await mesh.spans.of_trace(TRACE, 2)}
    ours = spans[trace_pb2.Span.SPAN_KIND_SERVER]
    upstream = spans[trace_pb2.Span.SPAN_KIND_CLIENT]
    assert ours.parent_span_id.hex() == SPAN
    assert ours.name == f"/{SERVICE}/Unary"
    assert upstream.parent_span_id == ours.span_id
    # The server's span is the child of the attempt that reached it.
    seen = mesh.v1.metadata[-1]
    assert seen["traceparent"] == f"00-{TRACE}-{upstream.span_id.hex()}-01"
    assert seen["tracestate"] == "a=b"
    assert attributes(upstream)["upstream_cluster.name"].startswith("outbound|50051|v1|")
    assert attributes(upstream)["upstream_address"] == mesh.v1.address


async def test_a_failure_is_shown_in_the_span(mesh):
    trace = TRACE[::-1]
    with pytest.raises(grpc.aio.AioRpcError):
        await mesh.call("Unary", "empty", ("traceparent", f"00-{trace}-{SPAN}-01"))
    (span,) = await mesh.spans.of_trace(trace, 1)
    assert attributes(span)["response_flags"] == "UH"
    assert attributes(span)["grpc.status_code"] == "14"


async def test_an_unsampled_trace_stays_unsampled(mesh):
    kept, unwanted = "1" * 32, "2" * 32
    await mesh.call("Unary", "v1", ("traceparent", f"00-{unwanted}-{SPAN}-00"))
    assert mesh.v1.metadata[-1]["traceparent"].startswith(f"00-{unwanted}-")
    assert mesh.v1.metadata[-1]["traceparent"].endswith("-00")
    # Each worker exports spans in order, and one connection stays on one worker.
    await mesh.call("Unary", "v1", ("traceparent", f"00-{kept}-{SPAN}-01"))
    await mesh.spans.of_trace(kept, 2)
    assert [span for span in mesh.spans.kept if span.trace_id.hex() == unwanted] == []
