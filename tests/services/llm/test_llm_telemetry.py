"""What spans say of an answer."""

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tidegate.serving.llm.requests import ModelFacts
from tidegate.serving.llm.sampling import Sampling
from tidegate.serving.llm.telemetry import trace_request, trace_response


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("rpc"):
        yield exporter
    provider.shutdown()


def test_a_span_has_the_attributes_of_generative_ai(spans):
    sampling = Sampling(max_tokens=5, temperature=0.5, top_p=0.9, seed=7, stop=("x",))
    trace_request(ModelFacts("small", "2", 1000, 128), "chat", sampling)
    trace_response(3, 5, finish_reason="length", time_to_first_token_s=0.25)
    trace.get_current_span().end()
    (span,) = spans.get_finished_spans()
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "small",
        "gen_ai.response.model": "small:2",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.server.time_to_first_token": 0.25,
    }


def test_nothing_is_said_where_nothing_is_recorded():
    trace_request(ModelFacts("small", "2", 1000, 128), "embeddings")
    trace_response(3, 0)
