"""The client's part in a trace: a span around each call, for programs that trace.

A program that traces has imported OpenTelemetry and set a tracer provider; nothing has to be said
to the client. One that does not trace pays a look into a dictionary for each call, and the package
need not be there.

The span's context travels to the server as W3C ``traceparent``. Names and attributes are those of
OpenTelemetry's semantic conventions for gRPC, in the version of `SCHEMA_URL`; a client's span fails
with any status but OK. They are written out here, since the package that has them is not needed
otherwise.
"""

import functools
import re
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc
from google.protobuf.message import Message

from tidegate.client._shared.errors import TidegateRpcError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

__all__ = ["SCHEMA_URL", "CallSpan", "call_span", "server_of"]

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that the spans follow."""

_SCHEMES: Final = frozenset({"dns", "ipv4", "ipv6", "xds"})
_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:,]*)(?::(?P<port>\d{1,5}))?")


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
            error: Why the call failed, if it did.
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
            span.set_attribute("error.type", code.name)
        span.set_attribute("rpc.response.status_code", code.name)
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
        request: The type of the message that the call sends; it tells the method.
        target: The address that is called.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _NOTHING
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return _NOTHING
    name = _method(request)
    attributes = {"rpc.system.name": "grpc", "rpc.method": name, **server_of(target)}
    span = _tracer(provider).start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
    return CallSpan(span)


@functools.lru_cache(maxsize=1)
def _tracer(provider: "TracerProvider") -> "Tracer":
    from importlib.metadata import version

    return provider.get_tracer("tidegate.client", version("tidegate"), schema_url=SCHEMA_URL)


@functools.lru_cache(maxsize=64)
def server_of(target: str) -> "Mapping[str, str | int]":
    """The attributes of a server's address and port.

    A target of several addresses has none: which of them answers is not known.

    Args:
        target: As gRPC takes it, such as ``vision:8500``, ``dns:///vision:8500``, ``unix:/path``.
    """
    scheme, colon, rest = target.partition(":")
    if colon and scheme in {"unix", "unix-abstract"}:
        return {"server.address": rest.removeprefix("//")}
    if colon and scheme in _SCHEMES:
        # ``dns://RESOLVER/NAME``: the authority is that of the resolver.
        target = rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest
    found = _HOST_PORT.fullmatch(target)
    if found is None or not found["host"]:
        return {}
    host = found["host"].strip("[]")
    port = found["port"]
    return {"server.address": host} | ({} if port is None else {"server.port": int(port)})


@functools.lru_cache(maxsize=64)
def _method(request: type[Message]) -> str:
    """The full name of the method that takes a message: each method of ours has one of its own."""
    taken = request.DESCRIPTOR
    return next(
        f"{service.full_name}/{method.name}"
        for service in taken.file.services_by_name.values()
        for method in service.methods
        if method.input_type is taken
    )
