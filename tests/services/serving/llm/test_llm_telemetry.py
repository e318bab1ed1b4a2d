"""The attributes of spans, and the model for which a request counts."""

from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tidegate.chassis.calls import CurrentCall, current_call
from tidegate.chassis.errors import NotFound, ResourceExhausted, ServiceError
from tidegate.llm.v1 import llm_pb2
from tidegate.runtime import tracing
from tidegate.serving.llm.api.service import LlmServicer, ModelCard
from tidegate.serving.llm.postprocessing.parsers import ParserNames
from tidegate.serving.llm.requests.parser import ModelFacts
from tidegate.serving.llm.requests.sampling import Sampling
from tidegate.serving.llm.telemetry import inference_span, served_model, trace_response

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
        trace_response(3, 5, finish_reasons=("length",), time_to_first_token_s=0.25, queue_s=0.125)
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
        "tidegate.queue_s": 0.125,
    }


def test_a_span_of_several_answers_has_the_reason_of_each(spans):
    with inference_span(FACTS, "chat", Sampling(answers=2)):
        trace_response(3, 9, finish_reasons=("tool_calls", "length"))
    (span,) = spans.get_finished_spans()
    assert span.attributes["gen_ai.request.choice.count"] == 2
    assert span.attributes["gen_ai.response.finish_reasons"] == ("tool_calls", "length")


def test_a_span_that_is_not_recorded_gets_no_attributes():
    with inference_span(FACTS, "embeddings"):
        trace_response(3, 0)


def test_a_request_that_fails_has_the_type_of_its_error(spans):
    with pytest.raises(ResourceExhausted), inference_span(FACTS, "chat"):
        raise ResourceExhausted("the queue is full")
    with pytest.raises(ValueError, match="broken"), inference_span(FACTS, "chat"):
        raise ValueError("broken")
    types = [span.attributes["error.type"] for span in spans.get_finished_spans()]
    assert types == ["RESOURCE_EXHAUSTED", "ValueError"]


def request_of(method, model):
    """Returns the smallest request that names a model; the served model refuses it."""
    options = llm_pb2.GenerationOptions(model=model)
    match method:
        case "Generate":
            return llm_pb2.GenerateRequest(options=options)
        case "Chat":
            return llm_pb2.ChatRequest(options=options)
        case "Complete":
            return llm_pb2.CompleteRequest(chat=llm_pb2.ChatRequest(options=options))
        case "Tokenize":
            return llm_pb2.TokenizeRequest(model=model)
        case "Detokenize":
            return llm_pb2.DetokenizeRequest(model=model, token_ids=[FACTS.vocabulary_size])
        case _:
            return llm_pb2.EmbedRequest(model=model)


@pytest.mark.parametrize(
    "method", ["Generate", "Chat", "Complete", "Tokenize", "Detokenize", "Embed"]
)
async def test_a_request_for_an_unknown_model_counts_for_no_model(method):
    servicer = LlmServicer(ModelCard("small", "2", method == "Embed", "A model.", ParserNames()))
    # The engine needs vLLM; these requests never reach it.
    engine = SimpleNamespace(facts=FACTS, embeds=method == "Embed")
    servicer.pipeline = SimpleNamespace(engine=engine)
    with served_model(FACTS, "float32", "vllm") as model:
        servicer.model = model
        for asked, counted in (("other", None), ("small", model), ("", model)):
            call = CurrentCall(method, None)
            token = current_call.set(call)
            try:
                with pytest.raises(ServiceError) as caught:
                    await getattr(servicer, method)(request_of(method, asked), None)
            finally:
                current_call.reset(token)
            assert isinstance(caught.value, NotFound) == (counted is None)
            assert call.model is counted
