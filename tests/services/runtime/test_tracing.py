"""Spans of the stages inside a request."""

import threading
import time

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from tidegate.runtime import tracing
from tidegate.runtime.tracing import record_span, span, traced


def test_failed_stage_marks_its_span(recorded):
    @traced("stage")
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert recorded()["stage"].status.status_code.name == "ERROR"


def test_stage_on_another_thread_is_recorded_with_its_own_times(recorded):
    start_ns = time.time_ns()
    with span("request") as request:
        parent = tracing.current_context()
        attributes = {"batch": 8}
        thread = threading.Thread(
            target=record_span,
            args=("inference", start_ns, start_ns + 1000, parent, attributes),
        )
        thread.start()
        thread.join()
    inference = recorded()["inference"]
    assert (inference.start_time, inference.end_time) == (start_ns, start_ns + 1000)
    assert inference.parent.span_id == request.get_span_context().span_id
    assert dict(inference.attributes) == attributes


def test_stages_of_an_unsampled_request_are_not_recorded():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.install(provider)
    try:
        with span("request"), span("stage"):
            record_span("inference", 1, 2)
    finally:
        tracing.install(None)
    assert exporter.get_finished_spans() == ()


def test_without_a_collector_nothing_is_recorded_and_everything_works():
    @traced("stage")
    def add(one, other):
        return one + other

    with span("request") as request:
        assert add(1, 2) == 3
    record_span("inference", 1, 2)
    assert not request.is_recording()


def test_generators_cannot_be_traced():
    def numbers():
        yield 1

    with pytest.raises(TypeError, match="numbers is a generator"):
        traced("numbers")(numbers)
