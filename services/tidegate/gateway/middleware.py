"""What happens around every request, as plain ASGI.

From the outside in:

1. `RequestMiddleware` makes the request's context and its span, adds ``x-request-id`` to the
   response, turns what nobody expected into an error of the API, and observes the end.
2. CORS, if web pages of other origins may call the gateway.
3. `KeyMiddleware`, if API keys are required.

None wraps the tokens of a stream in a task, a queue or a span; a `BaseHTTPMiddleware` would, and a
client's leaving would no longer reach the handler.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from tidegate.gateway.callers import Caller
from tidegate.gateway.context import RequestContext
from tidegate.gateway.errors import ApiError, internal_error
from tidegate.gateway.observing.metrics import IN_FLIGHT, observe_request
from tidegate.gateway.observing.spans import begin_span, end_span, trace_metadata
from tidegate.gateway.request_headers import HeaderReader, ReadHeaders
from tidegate.gateway.responses import error_response
from tidegate.gateway.settings import GatewaySettings
from tidegate.runtime import tracing
from tidegate.runtime.logging import call_fields, get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

__all__ = ["Authenticator", "with_middleware"]

_log = get_logger(__name__)

_Scope = MutableMapping[str, Any]
_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Application = Callable[[_Scope, Any, _Send], Awaitable[None]]

# The status of requests whose client has left, as nginx has it; nobody reads it.
_CLIENT_GONE: Final = 499
_EXPOSED: Final = (
    "x-request-id",
    *("retry-after", "retry-after-ms", "x-should-retry"),
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)
# Probes carry no key, and the description of the API is the same for every installation.
_OPEN_PATHS: Final = frozenset(
    {
        *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
        *("/docs", "/openapi.json"),
    }
)


class Authenticator(Protocol):
    """Finds out who sent a request."""

    def caller_of(self, headers: ReadHeaders) -> Caller:
        """Returns who sent a request.

        Raises:
            ApiError: Its API key is missing, wrong, or no longer valid.
        """


def with_middleware(
    app: _Application, settings: GatewaySettings, keys: Authenticator | None
) -> _Application:
    """Puts the middleware around an application.

    Args:
        app: The application.
        settings: Which headers go on, and which origins may call.
        keys: Knows the API keys; None lets everybody in.
    """
    inner = app if keys is None else KeyMiddleware(app, keys)
    if settings.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    return RequestMiddleware(inner, HeaderReader(settings.forward_headers))


class RequestMiddleware:
    """Makes the context of each request, and observes its end."""

    def __init__(self, app: _Application, reader: HeaderReader) -> None:
        self._app = app
        self._reader = reader

    async def __call__(self, scope: _Scope, receive: Any, send: _Send) -> None:
        """Answers a request."""
        headers = self._reader.read(scope["headers"])
        context = RequestContext(headers.request_id)
        state = scope["state"]
        state["context"], state["headers"] = context, headers
        method = scope["method"]
        if method == "HEAD":
            # The connection leaves the body out; it needs the method as it was.
            scope = {**scope, "method": "GET"}
        response = _Response(send, headers.request_id.encode())
        IN_FLIGHT.inc()
        with _traced(scope, headers, context) as span:
            try:
                if headers.error is None:
                    await self._app(scope, receive, response.send)
                else:
                    await _refuse(scope, receive, response.send, headers.error)
            except Exception:  # noqa: BLE001 - the edge of a request, which reports it
                _log.exception("a request failed", path=scope["path"][:256])
                if not response.status:
                    await _refuse(scope, receive, response.send, internal_error())
            finally:
                self._end(scope, method, context, response, span)

    def _end(
        self,
        scope: _Scope,
        method: str,
        context: RequestContext,
        response: "_Response",
        span: "Span | None",
    ) -> None:
        IN_FLIGHT.dec()
        route = getattr(scope.get("route"), "path", "")
        status = response.status or _CLIENT_GONE
        if status == _CLIENT_GONE:
            context.was_cut_off = True
        # The exchange has the scope, too: a cycle that only the garbage collector would find.
        exchange = scope["state"].pop("exchange", None)
        if not response.is_complete and exchange is not None:
            exchange.abort()
        if context.was_cut_off:
            _log.info(
                "a request was cut off",
                route=route,
                model=context.model,
                completion_tokens=context.completion_tokens,
                caller=context.caller.name,
            )
        observe_request(route, method, status, time.monotonic() - context.received_s, context)
        if span is not None:
            end_span(span, route, status, context)


class KeyMiddleware:
    """Lets in whoever has an API key, and anybody to what needs none."""

    def __init__(self, app: _Application, keys: Authenticator) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: _Scope, receive: Any, send: _Send) -> None:
        """Answers a request."""
        if scope["method"] != "OPTIONS" and scope["path"] not in _OPEN_PATHS:
            state = scope["state"]
            try:
                state["context"].caller = self._keys.caller_of(state["headers"])
            except ApiError as error:
                await _refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)


class _Response:
    """The response of a request, as the middleware sees it pass."""

    __slots__ = ("_request_id", "_send", "is_complete", "status")

    def __init__(self, send: _Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.is_complete = False

    def send(self, message: _Message) -> Awaitable[None]:
        """Sends a part of it."""
        if not self.status:
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self._request_id)]
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self.is_complete = True
        return self._send(message)


@contextmanager
def _traced(
    scope: _Scope, headers: ReadHeaders, context: RequestContext
) -> "Iterator[Span | None]":
    """Makes the request's span the current one, and gives its trace context to the calls."""
    parent = tracing.extract(headers.trace) if headers.trace else None
    span = begin_span(scope, parent)
    context.metadata = (
        *trace_metadata(span, headers.trace),
        ("x-request-id", headers.request_id),
        *headers.forwarded,
    )
    fields = call_fields.set({"request_id": headers.request_id})
    token = None
    if current := _current(span, parent):
        token = otel_context.attach(current)
    try:
        yield span
    finally:
        if token is not None:
            otel_context.detach(token)
        call_fields.reset(fields)


def _current(span: "Span | None", parent: "Context | None") -> "Context | None":
    return parent if span is None else trace.set_span_in_context(span, parent)


async def _refuse(scope: _Scope, receive: Any, send: _Send, error: ApiError) -> None:
    await error_response(Request(scope), error)(scope, receive, send)
