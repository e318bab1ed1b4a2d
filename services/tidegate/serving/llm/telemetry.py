"""What the server counts and traces about answers, beside vLLM's own ``vllm:*`` metrics.

A process serves one model version, so its name and version are no labels that each call looks up:
they are added to every series when Prometheus reads them. Before the model is loaded there are no
series, and then there are all of them, at 0.

A request has a span of its own inside that of the RPC, with the name and the attributes of
OpenTelemetry's semantic conventions for generative AI. These have moved to a repository of their
own and are in no package, so they are written out here.
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

# Those of gen_ai.server.time_to_first_token, and what a long queue adds.
_FIRST_TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
# Those of gen_ai.server.time_per_output_token.
_INTER_TOKEN_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)

_SERVICE: Final = llm_pb2.DESCRIPTOR.services_by_name["LlmService"]
_METRICS: Final = CollectorRegistry(auto_describe=True)

TIME_TO_FIRST_TOKEN: Final = Histogram(
    "tidegate_llm_time_to_first_token_seconds",
    "From the receipt of a request to its first token, observed when that is there.",
    buckets=_FIRST_TOKEN_BUCKETS_S,
    registry=_METRICS,
)
INTER_TOKEN: Final = Histogram(
    "tidegate_llm_inter_token_seconds",
    "Mean time between the tokens of an answer, cut or not, observed once an answer.",
    buckets=_INTER_TOKEN_BUCKETS_S,
    registry=_METRICS,
)
QUEUE: Final = Histogram(
    "tidegate_llm_queue_seconds",
    "Waiting in the engine before the first token was worked on.",
    buckets=_FIRST_TOKEN_BUCKETS_S,
    registry=_METRICS,
)
TOKENS: Final = Counter(
    "tidegate_llm_tokens_total", "Tokens, prompt and completion.", ("kind",), registry=_METRICS
)
IN_FLIGHT: Final = Gauge(
    "tidegate_llm_in_flight_requests", "Requests held, running or waiting.", registry=_METRICS
)
REFUSED: Final = Counter(
    "tidegate_llm_refused_total", "Requests refused for a full queue.", registry=_METRICS
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
    """Why an answer was cut off."""

    CLIENT = "client"
    DEADLINE = "deadline"
    STALLED = "stalled"
    DRAIN = "drain"
    ENGINE = "engine"
    ERROR = "error"


# From 0 on: a series that appears with its first value hides that from `rate()`.
for _kind in ("prompt", "completion"):
    TOKENS.labels(_kind)
for _reason in ("stop", "length", "abort", "repetition"):
    FINISHED.labels(_reason)
for _cause in CancelCause:
    CANCELLED.labels(_cause)


class _OfTheModel(Collector):
    """The metrics of this module with the labels of the model that is served, if one is.

    Attributes:
        labels: ``model`` and ``model_version``; None gives no series.
    """

    def __init__(self) -> None:
        self.labels: dict[str, str] | None = None

    def collect(self) -> Iterable[Metric]:
        """Gives every series, with the labels."""
        labels = self.labels
        if labels is None:
            return
        for metric in _METRICS.collect():
            metric.samples = [
                sample._replace(labels=labels | sample.labels) for sample in metric.samples
            ]
            yield metric


_of_the_model: Final = _OfTheModel()
REGISTRY.register(_of_the_model)


@contextmanager
def served_model(facts: ModelFacts, precision: str, engine: str) -> Iterator[ServedModel]:
    """Shows the metrics of a model while it is served.

    Args:
        facts: Of the model.
        precision: The type that it computes in.
        engine: What computes it, with its version.
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
    _of_the_model.labels = {"model": facts.name, "model_version": facts.version}
    try:
        yield model
    finally:
        _of_the_model.labels = None
        model.withdraw()


@contextmanager
def inference_span(
    facts: ModelFacts, operation: str, sampling: Sampling | None = None, *, streams: bool = False
) -> Iterator[None]:
    """Opens the span of a model's work on one request, inside the span of the RPC.

    Args:
        facts: Of the model.
        operation: ``chat``, ``text_completion`` or ``embeddings``.
        sampling: How tokens are chosen, for those that generate.
        streams: Whether the answer comes piece by piece.
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
    if sampling.seed is not None:
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes


def trace_response(
    input_tokens: int,
    output_tokens: int,
    *,
    finish_reason: str | None = None,
    time_to_first_token_s: float | None = None,
) -> None:
    """Says on the current span what came of it.

    Args:
        input_tokens: Of the prompt.
        output_tokens: Of the answer.
        finish_reason: Why the answer ended.
        time_to_first_token_s: From receipt to the first token.
    """
    span = trace.get_current_span()
    if not span.is_recording():
        return
    attributes: dict[str, AttributeValue] = {
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
    }
    if finish_reason is not None:
        attributes["gen_ai.response.finish_reasons"] = (finish_reason,)
    if time_to_first_token_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = time_to_first_token_s
    span.set_attributes(attributes)
