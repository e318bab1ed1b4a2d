"""The span of a request, and the trace context that goes on to the servers.

Names and attributes are OpenTelemetry's for HTTP servers and for generative AI. The times of the
first and of the last token become events of the span. No span and no event is made for the tokens
between them.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.network_attributes import NETWORK_PROTOCOL_VERSION
from opentelemetry.semconv.attributes.url_attributes import URL_PATH, URL_SCHEME
from opentelemetry.trace import Span, Status, StatusCode

from tidegate.gateway.context import RequestContext
from tidegate.runtime import tracing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

__all__ = ["begin_span", "end_span", "trace_metadata"]

_Pairs = Sequence[tuple[str, str]]

_SERVER_FAULT: Final = 500
_MAX_PATH: Final = 256


def begin_span(scope: "Mapping[str, Any]", parent: "Context | None") -> Span | None:
    """Starts the span of a request; None when nothing is recorded.

    Args:
        scope: The ASGI scope of the request.
        parent: The trace context that the client sent; None without one.
    """
    return tracing.server_span(
        scope["method"],
        {
            HTTP_REQUEST_METHOD: scope["method"],
            URL_PATH: scope["path"][:_MAX_PATH],
            URL_SCHEME: scope["scheme"],
            NETWORK_PROTOCOL_VERSION: scope["http_version"],
        },
        parent,
    )


def trace_metadata(span: Span | None, received: _Pairs) -> _Pairs:
    """Gives the metadata that continues the trace in the calls of a request.

    Args:
        span: The span of the request; None when nothing is recorded.
        received: Trace context and baggage that the client sent.
    """
    if span is None:
        return received
    context = span.get_span_context()
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    pairs = [("traceparent", parent), *(each for each in received if each[0] == "baggage")]
    if state := context.trace_state.to_header():
        pairs.append(("tracestate", state))
    return pairs


def end_span(span: Span, route: str, status: int, context: RequestContext) -> None:
    """Ends the span of a request.

    Args:
        span: The span.
        route: The template of the request's route; empty if there is none.
        status: The status of the response.
        context: What the handler found out.
    """
    if span.is_recording():
        _describe(span, route, status, context)
    span.end()


def _describe(span: Span, route: str, status: int, context: RequestContext) -> None:
    attributes: dict[str, AttributeValue] = {HTTP_RESPONSE_STATUS_CODE: status}
    if route:
        attributes[HTTP_ROUTE] = route
        method = getattr(span, "name", "")
        span.update_name(f"{method} {route}")
    if context.operation:
        attributes |= {
            "gen_ai.operation.name": context.operation,
            "gen_ai.request.model": context.model,
            "gen_ai.request.stream": context.streams,
            "gen_ai.usage.input_tokens": context.prompt_tokens,
            "gen_ai.usage.output_tokens": context.completion_tokens,
        }
        if context.finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = context.finish_reasons
    if status >= _SERVER_FAULT:
        attributes[ERROR_TYPE] = str(status)
        span.set_status(Status(StatusCode.ERROR))
    elif context.was_cut_off:
        attributes[ERROR_TYPE] = "cut_off"
    span.set_attributes(attributes)
    to_epoch_ns = time.time_ns() - time.monotonic_ns()
    for name, at_s in (
        ("first token", context.first_token_s),
        ("last token", context.last_token_s),
    ):
        if at_s is not None:
            span.add_event(name, timestamp=round(at_s * 1e9) + to_epoch_ns)
