"""Spans: one for each RPC, and one for each stage inside it.

`start` turns tracing on for the process when a collector is configured. Without one, every function
here costs one comparison. A server reads its caller's W3C ``traceparent`` either way, so that log
lines carry the trace id. Inside a request:

    @traced("decode")
    def decode(data: bytes) -> Image: ...

    with span("batch", size=8): ...

`record_span` records a stage that ran on a worker thread, afterwards and with its own times.

The interceptor of `opentelemetry-instrumentation-grpc` is not used. For each call it wraps the
context in a proxy. It runs a server stream inside an asynchronous generator, whose span leaks when
the client leaves between two messages. And it marks refusals such as NOT_FOUND as exceptions.
"""

import functools
import inspect
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidegate.runtime.otlp.exporters import otlp_exporter

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

    from tidegate.runtime.settings import RuntimeSettings

__all__ = [
    "current_context",
    "extract",
    "install",
    "is_recording",
    "record_span",
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

# The version of OpenTelemetry's semantic conventions that names and attributes here follow.
_CONVENTIONS: Final = Schemas.V1_44_0

_tracer: Tracer | None = None


def start(settings: "RuntimeSettings") -> TracerProvider | None:
    """Starts to record and export spans, if the settings name an exporter.

    Args:
        settings: Exporters, sampler and resource attributes.

    Returns:
        The provider to pass to `stop`; None when there is no exporter.
    """
    exporters = _exporters(settings)
    if not exporters:
        return None
    attributes: dict[str, AttributeValue] = {
        "service.name": settings.service_name,
        "service.version": settings.service_version,
        "deployment.environment.name": settings.deployment_environment,
    }
    if "service.instance.id" not in OTELResourceDetector().detect().attributes:
        attributes["service.instance.id"] = str(uuid.uuid4())
    provider = TracerProvider(
        # `create` adds the other attributes of OTEL_RESOURCE_ATTRIBUTES.
        resource=Resource.create(attributes),
        sampler=_sampler(settings),
        shutdown_on_exit=False,
    )
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    install(provider)
    return provider


def _exporters(settings: "RuntimeSettings") -> list[SpanExporter]:
    named = settings.traces_exporter or ("none" if settings.otlp_endpoint is None else "otlp")
    wanted = {each.strip() for each in named.split(",")}
    exporters: list[SpanExporter] = []
    if "otlp" in wanted:
        exporters.append(otlp_exporter(settings.otlp_endpoint, settings.otlp_protocol))
    if "console" in wanted:
        exporters.append(ConsoleSpanExporter())
    return exporters


def _sampler(settings: "RuntimeSettings") -> Sampler:
    kind, ratio = str(settings.trace_sampler), settings.trace_sample_ratio
    roots: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(ratio),
    }
    root = roots[kind.removeprefix("parentbased_")]
    return ParentBased(root) if kind.startswith("parentbased_") else root


def install(provider: TracerProvider | None) -> None:
    """Makes this module record with a provider; None turns recording off."""
    global _tracer
    _tracer = None
    if provider is not None:
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


def is_recording() -> bool:
    """Tells whether the spans of the current request are recorded."""
    return _tracer is not None and trace.get_current_span().is_recording()


def current_context() -> "Context":
    """Gives the current context, as the parent of spans recorded later or on other threads."""
    return otel_context.get_current()


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
) -> None:
    """Records a stage that has ended, from any thread.

    Args:
        name: Name of the stage.
        start_ns: Start of the stage, from `time.time_ns`.
        end_ns: End of the stage, from `time.time_ns`.
        parent_context: Context of the request, from `current_context`; the current one unless
            given.
        attributes: Attributes of the span.
    """
    if _tracer is None:
        return
    parent = otel_context.get_current() if parent_context is None else parent_context
    if _is_unsampled(trace.get_current_span(parent)):
        return
    _tracer.start_span(name, context=parent, attributes=attributes, start_time=start_ns).end(end_ns)


def _is_unsampled(parent: Span) -> bool:
    context = parent.get_span_context()
    return context.is_valid and not context.trace_flags.sampled
