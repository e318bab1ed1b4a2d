"""The client's spans: one for each call of a program that traces, whose trace the server joins."""

import subprocess
import sys
from contextlib import suppress

import pytest
from conventions import LATEST_SCHEMA, current_attributes
from double_server import double_server, unavailable
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidegate.client import (
    AsyncClient,
    Client,
    ClientOptions,
    InvalidRequestError,
    Retry,
    TidegateRpcError,
    UnavailableError,
)
from tidegate.client._shared.spans import server_of

ONCE = ClientOptions(retry=Retry(attempts=1))


@pytest.fixture
def server():
    with double_server() as double:
        yield double


@pytest.fixture
def recorded(monkeypatch):
    """Turns tracing on, as a program does; gives a function that returns the finished spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process can set its provider only once, so a test must not set it.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter.get_finished_spans


def test_unary_call_has_a_client_span_that_the_server_continues(server, recorded):
    with Client(server.address) as client:
        client.vision.classify(b"jpeg")
    (span,) = recorded()
    assert span.name == "tidegate.vision.v1.VisionService/Classify"
    assert span.kind is trace.SpanKind.CLIENT
    assert span.parent is None
    assert span.status.status_code is trace.StatusCode.UNSET
    assert dict(span.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "tidegate.vision.v1.VisionService/Classify",
        "server.address": "127.0.0.1",
        "server.port": int(server.address.rpartition(":")[2]),
        "rpc.response.status_code": "OK",
    }
    _, trace_id, span_id, _ = server.script.metadata[0]["traceparent"].split("-")
    assert (trace_id, span_id) == (
        trace.format_trace_id(span.context.trace_id),
        trace.format_span_id(span.context.span_id),
    )


def test_spans_follow_the_latest_conventions_that_are_pinned(server, recorded):
    with Client(server.address, ONCE) as client, pytest.raises(InvalidRequestError):
        client.vision.classify(b"not an image")
    (span,) = recorded()
    assert span.instrumentation_scope.schema_url == LATEST_SCHEMA
    assert set(span.attributes) <= current_attributes()


@pytest.mark.parametrize(
    ("target", "attributes"),
    [
        ("127.0.0.1:8500", {"server.address": "127.0.0.1", "server.port": 8500}),
        ("vision", {"server.address": "vision"}),
        ("[::1]:8500", {"server.address": "::1", "server.port": 8500}),
        ("dns:///vision.models:8500", {"server.address": "vision.models", "server.port": 8500}),
        ("dns://8.8.8.8/vision:8500", {"server.address": "vision", "server.port": 8500}),
        ("dns:vision:8500", {"server.address": "vision", "server.port": 8500}),
        ("ipv6:[::1]:8500", {"server.address": "::1", "server.port": 8500}),
        ("xds:///vision.models", {"server.address": "vision.models"}),
        ("unix:/run/vision.sock", {"server.address": "/run/vision.sock"}),
        ("unix:///run/vision.sock", {"server.address": "/run/vision.sock"}),
        ("ipv4:10.0.0.1:8500,10.0.0.2:8500", {}),
        ("ipv4:10.0.0.1,10.0.0.2", {}),
        ("ipv4:10.0.0.1,10.0.0.2:8500", {}),
    ],
)
def test_target_becomes_address_and_port(target, attributes):
    assert server_of(target) == attributes


def test_span_of_a_call_is_a_child_of_the_current_span(server, recorded):
    with (
        Client(server.address) as client,
        trace.get_tracer("program").start_as_current_span("outer") as outer,
    ):
        client.vision.models()
    call = next(span for span in recorded() if span.name.endswith("ListModels"))
    assert call.parent.span_id == outer.get_span_context().span_id


def test_failed_call_has_its_code_and_message(server, recorded):
    with Client(server.address, ONCE) as client, pytest.raises(InvalidRequestError):
        client.vision.classify(b"not an image")
    (span,) = recorded()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "is not a JPEG" in span.status.description
    assert span.attributes["error.type"] == "INVALID_ARGUMENT"
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"


def test_span_of_a_stream_lasts_until_it_has_been_read(server, recorded):
    with Client(server.address) as client:
        stream = client.llm.chat("hello")
        assert recorded() == ()
        stream.read()
    (span,) = recorded()
    assert span.name == "tidegate.llm.v1.LlmService/Chat"
    assert span.attributes["rpc.response.status_code"] == "OK"


def test_stream_that_fails_has_its_code(server, recorded):
    server.script.deltas = ("Par", unavailable())
    with Client(server.address, ONCE) as client, pytest.raises(UnavailableError):
        client.llm.generate("hello").read()
    (span,) = recorded()
    assert span.attributes["rpc.response.status_code"] == "UNAVAILABLE"


def test_stream_that_is_left_early_is_cancelled(server, recorded):
    with Client(server.address) as client, client.llm.chat("hello") as stream:
        next(stream)
    (span,) = recorded()
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"


def test_leaving_a_finished_stream_does_not_cancel_it(server, recorded):
    with Client(server.address) as client, client.llm.chat("hello") as stream:
        while stream.finish is None:
            next(stream)
    (span,) = recorded()
    assert span.attributes["rpc.response.status_code"] == "OK"


def test_image_stream_has_one_span(server, recorded):
    with Client(server.address) as client:
        assert len(list(client.vision.classify_stream([b"jpeg", b"jpeg"]))) == 2
        left = client.vision.classify_stream([b"jpeg", b"jpeg"])
        next(left)
        left.close()
    whole, cancelled = recorded()
    assert whole.name == "tidegate.vision.v1.VisionService/ClassifyStream"
    assert whole.attributes["rpc.response.status_code"] == "OK"
    assert cancelled.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_async_calls_have_the_same_spans(server, recorded):
    async with AsyncClient(server.address, ONCE) as client:
        await client.vision.classify(b"jpeg")
        await client.llm.chat("hello").read()
        assert len([each async for each in client.vision.classify_stream([b"jpeg"])]) == 1
        with suppress(TidegateRpcError):
            await client.vision.classify(b"not an image")
        await client.health()
    codes = [(span.name, span.attributes["rpc.response.status_code"]) for span in recorded()]
    assert codes == [
        ("tidegate.vision.v1.VisionService/Classify", "OK"),
        ("tidegate.llm.v1.LlmService/Chat", "OK"),
        ("tidegate.vision.v1.VisionService/ClassifyStream", "OK"),
        ("tidegate.vision.v1.VisionService/Classify", "INVALID_ARGUMENT"),
        ("grpc.health.v1.Health/Check", "OK"),
    ]
    sent = [each["traceparent"] for each in server.script.metadata]
    assert len(set(sent)) == len(sent)


def test_program_that_does_not_trace_does_not_import_opentelemetry(server):
    code = (
        "import sys\nfrom tidegate.client import Client\n"
        f"with Client({server.address!r}) as client: client.vision.classify(b'jpeg')\n"
        "sys.exit('opentelemetry.trace' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert "traceparent" not in server.script.metadata[0]
