"""Spans: one for each RPC, and one for each stage inside it.

`start` turns tracing on for the process when a collector is configured. Without one, every function
here costs one comparison. A server reads its caller's W3C ``traceparent`` either way, so that log
lines carry the trace id. Inside a request:

    @traced("decode")
    def decode(data: bytes) -> Image: ...

    with span("batch", size=8): ...

`record_span` records a stage that ran on a worker thread, afterwards and with its own times.

Each span's resource names the service, its instance and the host. Only `describe_model` and the
attribute ``tidegate.stage`` are ours: `tidegate trace analyse` reads them.

The interceptor of `opentelemetry-instrumentation-grpc` is not used. For each call it wraps the
context in a proxy. It runs a server stream inside an asynchronous generator, whose span leaks when
the client leaves between two messages. And it marks refusals such as NOT_FOUND as exceptions.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidegate.runtime.span_ids import SpanIds, choosing
from tidegate.runtime.span_provider import span_provider

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.util.types import AttributeValue

    from tidegate.runtime.settings import RuntimeSettings

__all__ = [
    "LinkedSpan",
    "current_context",
    "describe_model",
    "extract",
    "install",
    "is_on",
    "is_recording",
    "no_parent",
    "parent_of",
    "record_span",
    "request_span",
    "server_span",
    "span",
    "start",
    "stop",
    "traced",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_TRACE_CONTEXT: Final = TraceContextTextMapPropagator()
_BAGGAGE: Final = W3CBaggagePropagator()
_CARRIED: Final = frozenset({"traceparent", "tracestate", "baggage"})
_NO_SPAN: Final[AbstractContextManager[Span]] = nullcontext(INVALID_SPAN)
_NO_CHOICE: Final[AbstractContextManager[None]] = nullcontext()

# The version of OpenTelemetry's semantic conventions that names and attributes here follow.
_CONVENTIONS: Final = Schemas.V1_44_0

_tracer: Tracer | None = None
_sampler_in_use: "Sampler | None" = None


@dataclass(frozen=True, slots=True)
class LinkedSpan:
    """A span of another trace, to link a span to.

    Attributes:
        ids: The span.
        attributes: What the link says about it.
    """

    ids: SpanIds
    attributes: "Mapping[str, AttributeValue]" = field(default_factory=dict)


def start(settings: "RuntimeSettings") -> TracerProvider | None:
    """Starts to record and export spans, if the settings name an exporter.

    Args:
        settings: Exporters, sampler and resource attributes.

    Returns:
        The provider to pass to `stop`; None when there is no exporter.
    """
    provider = span_provider(settings)
    if provider is not None:
        trace.set_tracer_provider(provider)
        install(provider)
    return provider


def install(provider: TracerProvider | None) -> None:
    """Makes this module record with a provider; None turns recording off."""
    global _tracer, _sampler_in_use
    _tracer = _sampler_in_use = None
    if provider is not None:
        _sampler_in_use = provider.sampler
        _tracer = provider.get_tracer(
            "tidegate.chassis", version("tidegate"), schema_url=_CONVENTIONS.value
        )


def stop(provider: TracerProvider, timeout_s: float) -> bool:
    """Exports the recorded spans and turns tracing off. It blocks: call it off the event loop.

    Args:
        provider: The provider that `start` returned.
        timeout_s: How long to wait for a slow or absent collector.

    Returns:
        Whether the collector took every span in time.
    """
    install(None)
    # `shutdown` exports the last spans and retries beyond any timeout; a daemon thread bounds it.
    closing = threading.Thread(target=provider.shutdown, name="tracing-stop", daemon=True)
    closing.start()
    closing.join(timeout_s)
    return not closing.is_alive()


def extract(metadata: Iterable[tuple[str, str | bytes]]) -> "Context | None":
    """Reads the caller's W3C trace context and baggage from metadata; None when there is none."""
    carrier = {key: value for key, value in metadata if key in _CARRIED and isinstance(value, str)}
    if not carrier:
        return None
    context = _TRACE_CONTEXT.extract(carrier, otel_context.Context())
    return _BAGGAGE.extract(carrier, context) if "baggage" in carrier else context


def server_span(
    name: str, attributes: Mapping[str, "AttributeValue"], parent: "Context | None"
) -> Span | None:
    """Starts the span of an RPC; None when nothing is recorded."""
    if _tracer is None:
        return None
    return _tracer.start_span(
        name,
        context=parent or otel_context.Context(),
        kind=SpanKind.SERVER,
        attributes=attributes,
    )


@contextmanager
def request_span(
    name: str,
    metadata: Iterable[tuple[str, str | bytes]] | None = None,
    **attributes: "AttributeValue",
) -> Iterator[Span]:
    """Opens the span of a request around the code that serves it; an exception marks it as failed.

    A server on `tidegate.chassis` needs no such call: the chassis makes these spans.

    Args:
        name: Name of the span: ``package.Service/Method``, or ``POST /path``.
        metadata: The request's metadata or headers, with lower-case names. The span joins the trace
            of the caller's ``traceparent``; without one, it begins a trace.
        attributes: Attributes of the span.
    """
    parent = extract(metadata or ())
    started = server_span(name, attributes, parent)
    if started is None:
        token = None if parent is None else otel_context.attach(parent)
        try:
            yield INVALID_SPAN
        finally:
            if token is not None:
                otel_context.detach(token)
        return
    with trace.use_span(started, end_on_exit=True):
        yield started


def is_on() -> bool:
    """Tells whether the process records spans at all."""
    return _tracer is not None


def describe_model(name: str, version: str) -> None:
    """Says in the current span which model serves the request, and which version of it.

    Args:
        name: The model.
        version: Its version.
    """
    current = trace.get_current_span()
    if current.is_recording():
        current.set_attributes({"tidegate.model": name, "tidegate.model.version": version})


def is_recording() -> bool:
    """Tells whether the spans of the current request are recorded."""
    return _tracer is not None and trace.get_current_span().is_recording()


def current_context() -> "Context":
    """Gives the current context, as the parent of spans recorded later or on other threads."""
    return otel_context.get_current()


def no_parent() -> "Context":
    """Gives the parent of the root of a trace."""
    return otel_context.Context()


def parent_of(root: SpanIds, name: str) -> "Context":
    """Gives a span with chosen ids as the parent of spans, which are sampled as it is.

    Args:
        root: The span, which is the root of its trace.
        name: Its name.
    """
    sampled = False
    if _sampler_in_use is not None:
        decided = _sampler_in_use.should_sample(otel_context.Context(), root.trace_id, name)
        sampled = decided.decision is Decision.RECORD_AND_SAMPLE
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    context = SpanContext(root.trace_id, root.span_id, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(context), otel_context.Context())


def span(name: str, **attributes: "AttributeValue") -> AbstractContextManager[Span]:
    """Opens a span around a block; an exception marks it as failed.

    Args:
        name: Name of the stage, such as ``decode``.
        attributes: Attributes of the span.
    """
    if _tracer is None or _is_unsampled(trace.get_current_span()):
        return _NO_SPAN
    return _tracer.start_as_current_span(name, attributes=attributes)


def traced(
    name: str, **attributes: "AttributeValue"
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Opens a span around every call of a function, plain or ``async``.

    Args:
        name: Name of the spans.
        attributes: Attributes that every span has.

    Raises:
        TypeError: The function is a generator, whose body runs after the call has returned.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator; use span() inside it")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def traced_async(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                if _tracer is None:
                    return await function(*args, **kwargs)
                with span(name, **attributes):
                    return await function(*args, **kwargs)

            return cast("Callable[_P, _R]", traced_async)

        @functools.wraps(function)
        def traced_sync(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if _tracer is None:
                return function(*args, **kwargs)
            with span(name, **attributes):
                return function(*args, **kwargs)

        return traced_sync

    return decorate


def record_span(
    name: str,
    start_ns: int,
    end_ns: int,
    parent_context: "Context | None" = None,
    attributes: Mapping[str, "AttributeValue"] | None = None,
    *,
    links: Sequence[LinkedSpan] = (),
    error: str = "",
    ids: SpanIds | None = None,
) -> None:
    """Records a stage that has ended, from any thread.

    Args:
        name: Name of the stage.
        start_ns: Start of the stage, from `time.time_ns`.
        end_ns: End of the stage, from `time.time_ns`.
        parent_context: Context of the request, from `current_context`; the current one unless
            given.
        attributes: Attributes of the span.
        links: Spans of other traces that it has to do with.
        error: Why it failed; empty if it did not.
        ids: Its ids; by chance unless given.
    """
    if _tracer is None:
        return
    parent = otel_context.get_current() if parent_context is None else parent_context
    if _is_unsampled(trace.get_current_span(parent)):
        return
    with _NO_CHOICE if ids is None else choosing(ids):
        recorded = _tracer.start_span(
            name,
            context=parent,
            attributes=attributes,
            links=[_link(each) for each in links],
            start_time=start_ns,
        )
    if error:
        recorded.set_status(StatusCode.ERROR, error)
    recorded.end(end_ns)


def _link(linked: LinkedSpan) -> Link:
    context = SpanContext(linked.ids.trace_id, linked.ids.span_id, is_remote=True)
    return Link(context, linked.attributes)


def _is_unsampled(parent: Span) -> bool:
    context = parent.get_span_context()
    return context.is_valid and not context.trace_flags.sampled
