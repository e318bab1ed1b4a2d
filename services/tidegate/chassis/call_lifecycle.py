"""The lifecycle of one call, from its begin to the status that ends it.

Around each handler a `CallLifecycle` counts and times the call, opens its span, sets the fields of
its log lines, keeps it known to the drain, and turns what the handler raises into a rich status.
"""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast
from urllib.parse import unquote

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.semconv._incubating.attributes.rpc_attributes import (
    RPC_METHOD,
    RPC_METHOD_ORIGINAL,
    RPC_RESPONSE_STATUS_CODE,
)
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.network_attributes import (
    NETWORK_PEER_ADDRESS,
    NETWORK_PEER_PORT,
)

from tidegate.chassis.calls import (
    CurrentCall,
    ServicerContext,
    current_call,
    deadline_has_passed,
    details_of_call,
    set_trailers,
)
from tidegate.chassis.errors import (
    Internal,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    status_code,
    to_status,
)
from tidegate.chassis.in_flight import InFlightCall, InFlightCalls
from tidegate.chassis.metrics import MethodMetrics, RequestCounters
from tidegate.runtime import tracing
from tidegate.runtime.logging import call_fields, get_logger

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = ["CallLifecycle", "Method", "peer_attributes"]

_log = get_logger(__name__)
_stdlib_log = logging.getLogger(__name__)

# Codes of server faults: they are logged as warnings and marked as errors on the server's span
# (OpenTelemetry semantic conventions for gRPC). Other codes are faults of the client.
_SERVER_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
# Codes of streams that were ended from outside; the open requests on a stream end with its code.
_INTERRUPTIONS: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
)
_RETRY_AFTER_LIMIT_S: Final = 0.1
_DETAILS_TRAILER: Final = "grpc-status-details-bin"
_PUSHBACK_TRAILER: Final = "grpc-retry-pushback-ms"


@dataclass(frozen=True, slots=True)
class Method:
    """A method, with everything about it that is known before a call.

    Attributes:
        path: ``/service/method``, or ``other``.
        span_name: Name of its spans.
        is_application: Whether the application answers it, not a built-in service.
        is_one_request: Whether a call is one request. A client's stream may carry many, which the
            application counts one by one.
        limit: Calls of the application that may run at once; None for no limit.
        requests: Counts its requests that no model answers; None for the built-in services.
        metrics: Its collectors.
        attributes: Attributes of its spans.
        log_fields: Fields of the log lines that its calls write.
    """

    path: str
    span_name: str
    is_application: bool
    is_one_request: bool
    limit: int | None
    requests: RequestCounters | None
    metrics: MethodMetrics
    attributes: "Mapping[str, AttributeValue]"
    log_fields: Mapping[str, object]


class CallLifecycle(InFlightCall):
    """Context in which a handler runs; an error that leaves it ends the call with a rich status.

    The context swallows the error. gRPC keeps the error that ended a call, the error keeps its
    frames, and the frames keep the request. This cycle would hold megabytes until the garbage
    collector runs, which counts objects, not bytes.

    Args:
        method: The called method.
        context: The gRPC context of the call.
        in_flight: The running calls of the server.
    """

    __slots__ = (
        "_began_s",
        "_cancelled_as",
        "_context",
        "_current",
        "_in_flight",
        "_method",
        "_span",
    )

    def __init__(self, method: Method, context: ServicerContext, in_flight: InFlightCalls) -> None:
        # gRPC makes one task for each call, so the context variables live as long as the call.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - handlers are coroutines
        super().__init__(method.path, is_application=method.is_application, task=task)
        self._method = method
        self._current = CurrentCall(method.path, self, method.requests)
        self._context = context
        self._in_flight = in_flight
        self._span: trace.Span | None = None
        self._began_s = 0.0
        self._cancelled_as: grpc.StatusCode | None = None

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        del kind, traceback
        try:
            if self._in_flight.held is not None and not self.is_cancelled_by_drain:
                await self._in_flight.held.wait()
        except asyncio.CancelledError:
            if not self.is_cancelled_by_drain:
                self._end(self.code_of_cancellation())
                raise
            error = asyncio.CancelledError()
        if error is None:
            self._end(_code_set_by_handler(self._context))
            return False
        if isinstance(error, grpc.aio.AbortError):
            self._end(self._context.code())
            _forget_frames(error)
            return True
        if isinstance(error, asyncio.CancelledError) and not self.is_cancelled_by_drain:
            self._end(self.code_of_cancellation())
            return False
        await self._abort(self._as_service_error(error))
        return True

    async def admit(self) -> None:
        """Waits while calls are held. Call it in the context, before the handler.

        Raises:
            Unavailable: The server is draining.
            ResourceExhausted: `Method.limit` calls run already.
        """
        if self._in_flight.held is not None:
            await self._in_flight.held.wait()
        if self._in_flight.is_refusing_built_in and not self.is_application:
            raise _draining()
        limit = self._method.limit
        if limit is not None and self._in_flight.application_calls > limit:
            raise ResourceExhausted(
                f"{limit} calls run already, which is this server's limit (max_concurrent_rpcs)",
                reason="TOO_MANY_RPCS",
                retry_after_s=_RETRY_AFTER_LIMIT_S,
            )

    def message_sent(self) -> None:
        """Counts a message that the server has sent."""
        self._method.metrics.sent.inc()

    def code_of_cancellation(self) -> grpc.StatusCode:
        """Gives the code of a cancellation; once the call is being cancelled, always the same."""
        if self.is_cancelled_by_drain:
            return grpc.StatusCode.UNAVAILABLE
        if self._cancelled_as is not None:
            return self._cancelled_as
        code = self._why_cancelled()
        if self.task.cancelling():
            # Only then: a subtask may be cancelled and ask for the code while the call goes on.
            self._cancelled_as = code
        return code

    def _why_cancelled(self) -> grpc.StatusCode:
        """Returns whether the deadline passed or the client left; gRPC cancels for both."""
        remaining_s = self._context.time_remaining()
        if remaining_s is not None:
            elapsed_s = time.perf_counter() - self._began_s
            if deadline_has_passed(remaining_s + elapsed_s, elapsed_s):
                return grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.CANCELLED

    def _begin(self) -> None:
        method = self._method
        self._began_s = time.perf_counter()
        # The call goes first, as the response does in `_end`: nobody waits for the metrics.
        self.task.get_loop().call_soon(method.metrics.began)
        self._in_flight.begin(self)
        current_call.set(self._current)
        call_fields.set(method.log_fields)
        parent = tracing.extract(details_of_call.get().invocation_metadata)
        # Supervisors and load balancers check the health all the time. Such a call joins its
        # caller's trace and begins none.
        if method.is_application or parent is not None:
            self._span = tracing.server_span(method.span_name, method.attributes, parent)
        if self._span is not None:
            if self._span.is_recording():
                # Asking gRPC for the peer is slow, so only recorded spans do it.
                self._span.set_attributes(peer_attributes(self._context.peer()))
            if method.attributes[RPC_METHOD] == "_OTHER":
                original = details_of_call.get().method.removeprefix("/")
                self._span.set_attribute(RPC_METHOD_ORIGINAL, original)
            otel_context.attach(trace.set_span_in_context(self._span, parent))
        elif parent is not None:
            otel_context.attach(parent)

    def _end(self, code: grpc.StatusCode, error: ServiceError | None = None) -> None:
        seconds = time.perf_counter() - self._began_s
        self._in_flight.end(self)
        # The task holds its context, and this call holds the task: break the cycle here.
        self._current.lifecycle = None
        # The response goes first: nobody waits for the metrics.
        self.task.get_loop().call_soon(
            self._method.metrics.handled, code, seconds, self._ended_requests(code)
        )
        fault = code in _SERVER_FAULTS
        # An overloaded server has no time to log each refusal; the metric counts them.
        quiet = code in {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        if not quiet or (error and _logs_debug()):
            log = _log.warning if fault else _log.info
            log(
                "rpc failed",
                code=code.name,
                reason=error.reason if error else None,
                message=str(error) if error else self._context.details() or None,
                seconds=round(seconds, 6),
                peer=self._context.peer(),
            )
        elif _logs_debug():
            _log.debug("rpc answered", seconds=round(seconds, 6), peer=self._context.peer())
        if self._span is not None:
            if self._current.model is not None:
                self._span.set_attributes(self._current.model.attributes)
            self._span.set_attribute(RPC_RESPONSE_STATUS_CODE, code.name)
            if fault:
                self._span.set_attribute(ERROR_TYPE, code.name)
                self._span.set_status(trace.StatusCode.ERROR, str(error) if error else code.name)
            self._span.end()

    def _ended_requests(self, code: grpc.StatusCode) -> Sequence[RequestCounters]:
        """Gives the counters of the requests that end with the call and with its code."""
        call, method = self._current, self._method
        if method.requests is None:
            return ()
        if method.is_one_request:
            model = call.model
            counters = None if model is None else model.requests(method.path)
            return (counters or method.requests,)
        if code in _INTERRUPTIONS:
            return call.interrupted
        # The stream ended for another reason, before the server answered these requests.
        for each in call.interrupted:
            each.count(grpc.StatusCode.CANCELLED)
        return ()

    def _as_service_error(self, error: BaseException) -> ServiceError:
        if isinstance(error, asyncio.CancelledError):
            # The drain, not the client, cancelled the task, which goes on to send the status.
            self.task.uncancel()
            return _draining()
        if known := _service_error_in(error):
            return known
        error_id = uuid.uuid4().hex
        _log.error("handler failed unexpectedly", error_id=error_id, exc_info=error)
        return Internal(
            f"internal error {error_id}; the server's log has the cause",
            metadata={"error_id": error_id},
        )

    async def _abort(self, error: ServiceError) -> None:
        status = to_status(error)
        code = status_code(error)
        self._end(code, error)
        trailers: dict[str, str | bytes] = {_DETAILS_TRAILER: status.SerializeToString()}
        if isinstance(error, ResourceExhausted | Unavailable) and error.retry_after_s is not None:
            # Programs read RetryInfo; gRPC's own retries wait as this trailer says (gRFC A6).
            trailers[_PUSHBACK_TRAILER] = str(math.ceil(error.retry_after_s * 1000))
        set_trailers(self._context, trailers)
        try:
            await self._context.abort(
                code, status.message, tuple(self._context.trailing_metadata())
            )
        except grpc.aio.AbortError as aborted:
            # gRPC raises the error again when the handler has ended.
            _forget_frames(aborted)
        except grpc.aio.InternalError:
            # The client has gone meanwhile, so there is no one to send the status to. gRPC frees a
            # cancelled call only when its handler ends as cancelled.
            raise asyncio.CancelledError from error


def peer_attributes(peer: str) -> "dict[str, AttributeValue]":
    """Gives the span attributes of a call's peer.

    Args:
        peer: Peer as gRPC writes it: ``ipv4:10.0.0.1:50051``, ``ipv6:%5B::1%5D:50051``,
            ``unix:/path``.
    """
    kind, _, address = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return {NETWORK_PEER_ADDRESS: address} if address else {}
    host, _, port = address.rpartition(":")
    found: dict[str, AttributeValue] = {NETWORK_PEER_ADDRESS: host.strip("[]")}
    if port.isdecimal():
        found[NETWORK_PEER_PORT] = int(port)
    return found


def _forget_frames(error: BaseException) -> None:
    error.__traceback__ = error.__context__ = None


def _logs_debug() -> bool:
    return _stdlib_log.isEnabledFor(logging.DEBUG)


def _code_set_by_handler(context: ServicerContext) -> grpc.StatusCode:
    return cast("grpc.StatusCode | None", context.code()) or grpc.StatusCode.OK


def _draining() -> Unavailable:
    return Unavailable("the server is shutting down", reason="SERVER_DRAINING")


def _service_error_in(error: BaseException) -> ServiceError | None:
    """Finds the error that a handler raised: task groups wrap the errors of their tasks."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [_service_error_in(each) for each in error.exceptions]
        return found[0] if all(found) else None
    return None
