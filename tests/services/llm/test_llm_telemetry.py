"""What spans say of an answer."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tidegate.chassis import tracing
from tidegate.chassis.errors import ResourceExhausted
from tidegate.serving.llm.requests import ModelFacts
from tidegate.serving.llm.sampling import Sampling
from tidegate.serving.llm.telemetry import inference_span, trace_response

FACTS = ModelFacts("small", "2", 1000, 128)


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.install(provider)
    yield exporter
    tracing.install(None)
    provider.shutdown()


def test_a_span_has_the_attributes_of_generative_ai(spans):
    sampling = Sampling(max_tokens=5, temperature=0.5, top_p=0.9, seed=7, stop=("x",))
    with inference_span(FACTS, "chat", sampling, streams=True):
        trace_response(3, 5, finish_reason="length", time_to_first_token_s=0.25)
    (span,) = spans.get_finished_spans()
    assert span.name == "chat small"
    assert span.kind is SpanKind.INTERNAL
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "small",
        "gen_ai.response.model": "small:2",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 0.0,
        "gen_ai.request.stream": True,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": 0.25,
    }


def test_nothing_is_said_where_nothing_is_recorded():
    with inference_span(FACTS, "embeddings"):
        trace_response(3, 0)


def test_a_request_that_fails_has_the_type_of_its_error(spans):
    with pytest.raises(ResourceExhausted), inference_span(FACTS, "chat"):
        raise ResourceExhausted("the queue is full")
    with pytest.raises(ValueError, match="broken"), inference_span(FACTS, "chat"):
        raise ValueError("broken")
    types = [span.attributes["error.type"] for span in spans.get_finished_spans()]
    assert types == ["RESOURCE_EXHAUSTED", "ValueError"]
