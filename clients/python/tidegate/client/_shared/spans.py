"""The client's part in a trace: a span around each call, for programs that trace.

A program that traces has imported OpenTelemetry and set a tracer provider; nothing has to be said
to the client. One that does not trace pays a look into a dictionary for each call, and the package
need not be there.

The span's context travels to the server as W3C ``traceparent``. Names and attributes are those of
OpenTelemetry's semantic conventions for gRPC; a client's span fails with any status but OK.
"""

import functools
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc
from google.protobuf.message import Message

from tidegate.client._shared.errors import TidegateRpcError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["CallSpan", "call_span"]


class CallSpan:
    """The span of one call, or nothing where nothing is recorded.

    As a context manager it ends with the block, by the error that leaves it if there is one.
    """

    __slots__ = ("_span",)

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span

    @property
    def context(self) -> "Context | None":
        """What the server continues; ``None`` for what runs already."""
        if self._span is None:
            return None
        from opentelemetry import trace

        return trace.set_span_in_context(self._span)

    def end(self, error: TidegateRpcError | None = None) -> None:
        """Ends the span; does nothing the second time.

        Args:
            error: why the call failed, if it did.
        """
        if error is None:
            self._end(grpc.StatusCode.OK, "")
        else:
            self._end(error.code, str(error))

    def abandon(self) -> None:
        """Ends the span of a call that its caller gave up; does nothing the second time."""
        self._end(grpc.StatusCode.CANCELLED, "the caller gave it up")

    def _end(self, code: grpc.StatusCode, problem: str) -> None:
        span, self._span = self._span, None
        if span is None:
            return
        if problem:
            from opentelemetry import trace

            span.set_status(trace.StatusCode.ERROR, problem)
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, TidegateRpcError):
            self.end(error)
        else:
            self.abandon()


_NOTHING: Final = CallSpan()


def call_span(request: type[Message], target: str) -> CallSpan:
    """Begins the span of a call, inside the span that runs if there is one.

    Args:
        request: the type of the message that the call sends; it tells the method.
        target: the address that is called.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _NOTHING
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return _NOTHING
    service, method = _method(request)
    attributes = {
        "rpc.system": "grpc",
        "rpc.service": service,
        "rpc.method": method,
        "server.address": target,
    }
    name = f"{service}/{method}"
    span = _tracer(provider).start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
    return CallSpan(span)


@functools.lru_cache(maxsize=1)
def _tracer(provider: "TracerProvider") -> "Tracer":
    return provider.get_tracer("tidegate.client")


def _method(request: type[Message]) -> tuple[str, str]:
    """The service and the method that take a message: each method of ours has one of its own."""
    taken = request.DESCRIPTOR
    return next(
        (service.full_name, method.name)
        for service in taken.file.services_by_name.values()
        for method in service.methods
        if method.input_type is taken
    )
