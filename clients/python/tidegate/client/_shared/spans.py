"""The client's spans: one around each call, for programs that trace.

A program that traces has imported OpenTelemetry and set a tracer provider; the client needs no
option for it. In other programs the client pays one dictionary lookup for each call, and
OpenTelemetry need not be installed.

The span's context travels to the server as W3C ``traceparent``. Names and attributes follow
OpenTelemetry's semantic conventions for gRPC, in the version of `SCHEMA_URL`. A client's span fails
with any status but OK. This module spells the names out, because the client does not otherwise need
the package that has them.
"""

import functools
import re
import sys
import threading
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
    """The span of one call; without tracing, its methods do nothing.

    As a context manager it ends with its block, with the error that leaves the block if there is
    one.
    """

    __slots__ = ("_lock", "_span")

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span
        # A stream may be closed by one thread while another reads it.
        self._lock = threading.Lock()

    @property
    def context(self) -> "Context | None":
        """Context that the server continues; ``None`` for the current context."""
        if self._span is None:
            return None
        from opentelemetry import trace

        return trace.set_span_in_context(self._span)

    def end(self, error: TidegateRpcError | None = None) -> None:
        """Ends the span; does nothing the second time.

        Args:
            error: Error of the call, if it failed.
        """
        if error is None:
            self._end(grpc.StatusCode.OK, "")
        else:
            self._end(error.code, str(error))

    def abandon(self) -> None:
        """Ends the span of a call that the caller cancelled; does nothing the second time."""
        self._end(grpc.StatusCode.CANCELLED, "the caller cancelled the call")

    def _end(self, code: grpc.StatusCode, problem: str) -> None:
        with self._lock:
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
    """Begins the span of a call, as a child of the current span if there is one.

    Args:
        request: Type of the request message, which determines the method.
        target: The called address.
    """
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return _NOTHING
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        return _NOTHING
    name = _method(request)  # type: ignore[arg-type]  # a class can be hashed
    attributes = {"rpc.system.name": "grpc", "rpc.method": name, **server_of(target)}
    span = _tracer(provider).start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
    return CallSpan(span)


@functools.lru_cache(maxsize=1)
def _tracer(provider: "TracerProvider") -> "Tracer":
    from importlib.metadata import version

    return provider.get_tracer("tidegate.client", version("tidegate"), schema_url=SCHEMA_URL)


@functools.lru_cache(maxsize=64)
def server_of(target: str) -> "Mapping[str, str | int]":
    """Gives the span attributes of a server's address and port.

    A target with several addresses gives none, because the client does not know which one answers.

    Args:
        target: Target as gRPC takes it, such as ``vision:8500``, ``dns:///vision:8500`` or
            ``unix:/path``.
    """
    scheme, colon, rest = target.partition(":")
    if colon and scheme in {"unix", "unix-abstract"}:
        return {"server.address": rest.removeprefix("//")}
    if colon and scheme in _SCHEMES:
        # In ``dns://RESOLVER/NAME`` the authority names the resolver.
        target = rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest
    found = _HOST_PORT.fullmatch(target)
    if found is None or not found["host"]:
        return {}
    host = found["host"].strip("[]")
    port = found["port"]
    return {"server.address": host} | ({} if port is None else {"server.port": int(port)})


@functools.lru_cache(maxsize=64)
def _method(request: type[Message]) -> str:
    """Gives the full name of the method that takes a message; each method has its own message."""
    taken = request.DESCRIPTOR
    return next(
        f"{service.full_name}/{method.name}"
        for service in taken.file.services_by_name.values()
        for method in service.methods
        if method.input_type is taken
    )
