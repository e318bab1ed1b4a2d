"""The metrics and spans of answers, beside vLLM's own ``vllm:*`` metrics.

A process serves one model version. So no call looks up labels for its name and version: the
collector adds them to every series when Prometheus reads the metrics. There are no series before
the model is loaded. After that there are all of them, starting at 0.

Each request has a span inside the RPC's span, with the name and attributes of OpenTelemetry's
semantic conventions for generative AI. These conventions have moved to a separate repository and
are in no package, so this module spells them out.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tidegate.chassis.errors import ServiceError, status_code
from tidegate.chassis.served_models import ServedModel
from tidegate.llm.v1 import llm_pb2
from tidegate.runtime import tracing
from tidegate.serving.llm.requests.parser import ModelFacts
from tidegate.serving.llm.requests.sampling import Sampling

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = [
    "CANCELLED",
    "FINISHED",
    "INTER_TOKEN",
    "IN_FLIGHT",
    "QUEUE",
    "REFUSED",
    "TIME_TO_FIRST_TOKEN",
    "TOKENS",
    "CancelCause",
    "inference_span",
    "served_model",
    "trace_response",
]

# The buckets of gen_ai.server.time_to_first_token, and larger ones for a long queue.
_FIRST_TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
# The buckets of gen_ai.server.time_per_output_token.
_INTER_TOKEN_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)

_SERVICE: Final = llm_pb2.DESCRIPTOR.services_by_name["LlmService"]
_METRICS: Final = CollectorRegistry(auto_describe=True)

TIME_TO_FIRST_TOKEN: Final = Histogram(
    "tidegate_llm_time_to_first_token_seconds",
    "Time from the receipt of a request to its first token, observed at the first token.",
    buckets=_FIRST_TOKEN_BUCKETS_S,
    registry=_METRICS,
)
INTER_TOKEN: Final = Histogram(
    "tidegate_llm_inter_token_seconds",
    "Mean time between the tokens of an answer, complete or not, observed once an answer.",
    buckets=_INTER_TOKEN_BUCKETS_S,
    registry=_METRICS,
)
QUEUE: Final = Histogram(
    "tidegate_llm_queue_seconds",
    "Time that a request waited in the engine before it was scheduled.",
    buckets=_FIRST_TOKEN_BUCKETS_S,
    registry=_METRICS,
)
TOKENS: Final = Counter(
    "tidegate_llm_tokens_total", "Tokens, prompt and completion.", ("kind",), registry=_METRICS
)
IN_FLIGHT: Final = Gauge(
    "tidegate_llm_in_flight_requests",
    "Requests in the server, running or waiting; each answer of a request counts.",
    registry=_METRICS,
)
REFUSED: Final = Counter(
    "tidegate_llm_refused_total", "Requests refused because the queue was full.", registry=_METRICS
)
FINISHED: Final = Counter(
    "tidegate_llm_finished_total", "Answers that ended, by reason.", ("reason",), registry=_METRICS
)
CANCELLED: Final = Counter(
    "tidegate_llm_cancelled_total",
    "Answers cut off before their end, by cause.",
    ("cause",),
    registry=_METRICS,
)


class CancelCause(StrEnum):
    """The cause of an answer that was cut off."""

    CLIENT = "client"
    DEADLINE = "deadline"
    STALLED = "stalled"
    DRAIN = "drain"
    ENGINE = "engine"
    ERROR = "error"


# Series start at 0: `rate()` cannot see the first value of a new series.
for _kind in ("prompt", "completion"):
    TOKENS.labels(_kind)
for _reason in ("stop", "length", "abort", "repetition", "tool_calls"):
    FINISHED.labels(_reason)
for _cause in CancelCause:
    CANCELLED.labels(_cause)


class _ModelLabelCollector(Collector):
    """Adds the labels of the served model to the metrics of this module.

    Attributes:
        labels: ``model`` and ``model_version``; None while no model is served, then there are no
            series.
    """

    def __init__(self) -> None:
        self.labels: dict[str, str] | None = None

    def collect(self) -> Iterable[Metric]:
        """Yields every metric with the labels."""
        labels = self.labels
        if labels is None:
            return
        for metric in _METRICS.collect():
            metric.samples = [
                sample._replace(labels=labels | sample.labels) for sample in metric.samples
            ]
            yield metric


_collector: Final = _ModelLabelCollector()
REGISTRY.register(_collector)


@contextmanager
def served_model(facts: ModelFacts, precision: str, engine: str) -> Iterator[ServedModel]:
    """Exports the metrics of a model while the context is open.

    Args:
        facts: The facts about the model.
        precision: The data type of the computation.
        engine: The engine and its version.
    """
    methods = (method.name for method in _SERVICE.methods if method.name != "ListModels")
    model = ServedModel(
        facts.name,
        facts.version,
        precision=precision,
        engine=engine,
        methods=[f"/{_SERVICE.full_name}/{name}" for name in methods],
    )
    model.publish()
    _collector.labels = {"model": facts.name, "model_version": facts.version}
    try:
        yield model
    finally:
        _collector.labels = None
        model.withdraw()


@contextmanager
def inference_span(
    facts: ModelFacts, operation: str, sampling: Sampling | None = None, *, streams: bool = False
) -> Iterator[None]:
    """Opens the span of a model's work on one request, inside the span of the RPC.

    Args:
        facts: The facts about the model.
        operation: ``chat``, ``text_completion`` or ``embeddings``.
        sampling: The sampling parameters of a generating request.
        streams: Whether the answer is streamed.
    """
    with tracing.span(f"{operation} {facts.name}") as span:
        if not span.is_recording():
            yield
            return
        span.set_attributes(_request_attributes(facts, operation, sampling, streams=streams))
        try:
            yield
        except ServiceError as error:
            span.set_attribute("error.type", status_code(error).name)
            raise
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            raise


def _request_attributes(
    facts: ModelFacts, operation: str, sampling: Sampling | None, *, streams: bool
) -> "dict[str, AttributeValue]":
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": facts.name,
        "gen_ai.response.model": f"{facts.name}:{facts.version}",
    }
    if streams:
        attributes["gen_ai.request.stream"] = True
    if sampling is None:
        return attributes
    attributes |= {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": float(sampling.top_k),
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.stop_sequences": sampling.stop,
    }
    if sampling.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = sampling.max_tokens
    if sampling.answers > 1:
        attributes["gen_ai.request.choice.count"] = sampling.answers
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes


def trace_response(
    input_tokens: int,
    output_tokens: int,
    *,
    finish_reasons: tuple[str, ...] = (),
    time_to_first_token_s: float | None = None,
    queue_s: float | None = None,
) -> None:
    """Sets the attributes of the response on the current span.

    Args:
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answers.
        finish_reasons: Why each answer ended.
        time_to_first_token_s: Time from receipt to the first token.
        queue_s: Time in the engine's queue.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return
    attributes: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
    }
    if finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = finish_reasons
    if time_to_first_token_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = time_to_first_token_s
    if queue_s is not None:
        attributes["tidegate.queue_s"] = queue_s
    span.set_attributes(attributes)
