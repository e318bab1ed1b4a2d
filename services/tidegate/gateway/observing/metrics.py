"""Metrics of requests.

Labels come from bounded sets only: the template of a route, a known method, the class of a status,
and a model that a server has listed. Nothing that a client makes up becomes a series.
"""

from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from tidegate.gateway.context import RequestContext

__all__ = ["CONNECTIONS", "IN_FLIGHT", "KEY_RELOADS", "count_refusal", "observe_request"]

# From a list of models to a long generation.
_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
# Those of the LLM server, so that the two compare.
_FIRST_TOKEN_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5),
    *(0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
_INTER_TOKEN_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
)
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

_REQUESTS = Counter(
    "tidegate_gateway_requests_total",
    "Requests answered, by route, method, class of the status, and model.",
    ("route", "method", "status", "model"),
)
_REQUEST_SECONDS = Histogram(
    "tidegate_gateway_request_seconds",
    "Time from the receipt of a request's header block to the end of its response.",
    ("route", "method", "status"),
    buckets=_SECONDS,
)
_FIRST_TOKEN = Histogram(
    "tidegate_gateway_time_to_first_token_seconds",
    "Time from the receipt of a request's header block to the first token from the server.",
    ("model",),
    buckets=_FIRST_TOKEN_S,
)
_INTER_TOKEN = Histogram(
    "tidegate_gateway_inter_token_seconds",
    "Mean time between the tokens of an answer, complete or not, observed once an answer.",
    ("model",),
    buckets=_INTER_TOKEN_S,
)
_TOKENS = Counter(
    "tidegate_gateway_tokens_total", "Tokens, prompt and completion.", ("model", "kind")
)
_CUT_OFF = Counter(
    "tidegate_gateway_cancelled_total",
    "Requests whose client left before the end of the response, and answers that broke off.",
    ("route", "model"),
)
IN_FLIGHT: Final = Gauge("tidegate_gateway_in_flight_requests", "Requests being answered.")
CONNECTIONS: Final = Gauge("tidegate_gateway_connections", "Open connections of the HTTP port.")
KEY_RELOADS: Final = Counter(
    "tidegate_gateway_key_reloads_total",
    "Edits of the file of API keys, taken or refused.",
    ("result",),
)


@dataclass(frozen=True, slots=True)
class _RouteMetrics:
    requests: Counter
    seconds: Histogram


@dataclass(frozen=True, slots=True)
class _ModelMetrics:
    first_token: Histogram
    inter_token: Histogram
    prompt_tokens: Counter
    completion_tokens: Counter


# Looking up children by their labels costs more than counting.
_by_route: Final[dict[tuple[str, str, int, str], _RouteMetrics]] = {}
_by_model: Final[dict[str, _ModelMetrics]] = {}


def observe_request(
    route: str, method: str, status: int, seconds: float, context: RequestContext
) -> None:
    """Counts and times a request that has ended.

    Args:
        route: The template of its route; empty if there is none.
        method: Its method.
        status: The status of its response.
        seconds: From its receipt to the end of the response.
        context: What the handler found out.
    """
    key = (route, method, status // 100, context.model)
    metrics = _by_route.get(key)
    if metrics is None:
        method = method if method in _METHODS else "other"
        labels = (route, method, f"{status // 100}xx")
        metrics = _RouteMetrics(
            _REQUESTS.labels(*labels, context.model), _REQUEST_SECONDS.labels(*labels)
        )
        if method != "other":
            _by_route[key] = metrics
    metrics.requests.inc()
    metrics.seconds.observe(seconds)
    if context.was_cut_off:
        _CUT_OFF.labels(route, context.model).inc()
    if context.prompt_tokens or context.completion_tokens:
        _observe_tokens(context)


def count_refusal(status: int) -> None:
    """Counts what a connection refused: no request that a route could answer."""
    _REQUESTS.labels("", "other", f"{status // 100}xx", "").inc()


def _observe_tokens(context: RequestContext) -> None:
    model = context.model
    metrics = _by_model.get(model)
    if metrics is None:
        metrics = _by_model[model] = _ModelMetrics(
            _FIRST_TOKEN.labels(model),
            _INTER_TOKEN.labels(model),
            _TOKENS.labels(model, "prompt"),
            _TOKENS.labels(model, "completion"),
        )
    metrics.prompt_tokens.inc(context.prompt_tokens)
    metrics.completion_tokens.inc(context.completion_tokens)
    first_s, last_s = context.first_token_s, context.last_token_s
    if first_s is None or last_s is None:
        return
    metrics.first_token.observe(first_s - context.received_s)
    if context.streams and context.completion_tokens > 1:
        metrics.inter_token.observe((last_s - first_s) / (context.completion_tokens - 1))
