"""The OTLP receiver: spans of the usual exporter, of many senders at once, and garbage."""

import asyncio

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otlp_spans import request, span, trace_id
from prometheus_client import REGISTRY

from tidegate.mesh.traces.errors import StoreBusyError, StoreError
from tidegate.mesh.traces.intake import TraceLimits
from tidegate.mesh.traces.query import TraceQuery
from tidegate.mesh.traces.store import TraceStore


def exported(address, service, work):
    """Runs work with a tracer that exports to an address, and flushes the spans."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    exporter = OTLPSpanExporter(endpoint=f"http://{address}", insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    work(provider.get_tracer("test"))
    provider.shutdown()


def counter(name, **labels):
    return REGISTRY.get_sample_value(f"{name}_total", labels) or 0


async def test_spans_of_a_real_exporter_are_kept(collector):
    traces = await collector()

    def work(tracer):
        with tracer.start_as_current_span("outer"):
            for index in range(3):
                with tracer.start_as_current_span("inner", attributes={"index": index}):
                    pass

    await asyncio.to_thread(exported, traces.otlp_address, "real", work)
    (summary,) = await traces.store.summaries(TraceQuery(service="real"))
    assert (summary.root_operation, summary.spans, summary.orphans) == ("outer", 4, 0)
    (found,) = await traces.store.find(TraceQuery(tags={"index": "2"}))
    assert found.trace_id == summary.trace_id


async def test_refused_spans_are_reported_and_counted_and_the_others_stored(collector):
    traces = await collector(TraceLimits(max_span_bytes=500, max_spans_per_trace=2))
    sizes = counter("tidegate_traces_spans_refused", reason="too large")
    taken = counter("tidegate_traces_spans_taken")
    bad = span(1, 9)
    bad.trace_id = b"short"
    sent = request(span(1, 1), span(1, 2), span(1, 3), span(1, 4, text="x" * 600), bad)
    response = await traces.stub.Export(sent)
    assert response.partial_success.rejected_spans == 3
    assert response.partial_success.error_message == (
        "spans not stored: bad id (1), too large (1), trace full (1)"
    )
    assert counter("tidegate_traces_spans_refused", reason="too large") == sizes + 1
    assert counter("tidegate_traces_spans_taken") == taken + 2
    assert not (await traces.stub.Export(request(span(2, 1)))).HasField("partial_success")


async def test_evicted_and_stored_traces_are_counted(collector):
    traces = await collector(TraceLimits(max_traces=5))
    evicted = counter("tidegate_traces_evicted")
    await traces.stub.Export(
        request(*(span(number, 1, start_ms=number) for number in range(1, 13)))
    )
    assert counter("tidegate_traces_evicted") == evicted + 7
    assert REGISTRY.get_sample_value("tidegate_traces_kept") == 5


async def test_many_senders_at_once_lose_nothing(collector):
    traces = await collector()
    senders, each = 6, 10
    await asyncio.gather(
        *(
            traces.stub.Export(request(span(number, sender + 1), service=f"s{sender}"))
            for sender in range(senders)
            for number in range(1, each + 1)
        )
    )
    summaries = await traces.store.summaries(TraceQuery(limit=100))
    assert [summary.spans for summary in summaries] == [senders] * each


async def test_garbage_is_refused_and_the_server_goes_on(collector):
    traces = await collector()
    async with grpc.aio.insecure_channel(traces.otlp_address) as channel:
        raw = channel.unary_unary(
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        for garbage in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x03\x12\x01\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw(garbage)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not (await traces.stub.Export(request(span(1, 1)))).HasField("partial_success")


async def test_requests_beyond_the_queue_are_asked_to_retry(collector):
    traces = await collector(TraceLimits(max_waiting=0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await traces.stub.Export(request(span(1, 1)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "TRACES_BUSY" in str(caught.value.trailing_metadata())
    with pytest.raises(StoreBusyError):
        await traces.store.services()


async def test_a_cancelled_caller_frees_its_place(tmp_path):
    async with TraceStore(tmp_path / "traces.sqlite") as store:
        tasks = [asyncio.create_task(store.add(request(span(1, 1)))) for _ in range(60)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert store._waiting == 0
        assert await store.add(request(span(2, 1))) == {}
        assert await store.services() == ("vision",)


async def test_spans_before_the_store_opens_and_after_it_closes_are_refused(tmp_path):
    store = TraceStore(tmp_path / "traces.sqlite")
    with pytest.raises(StoreError, match="not open"):
        await store.add(request(span(1, 1)))
    async with store:
        await store.add(request(span(1, 1)))
    with pytest.raises(StoreError, match="not open"):
        await store.trace(trace_id(1))
