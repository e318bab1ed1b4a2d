"""Failed calls as exceptions: one class for each way in which a caller may react.

A server explains an error with ``google.rpc`` details in the trailers: ``ErrorInfo`` (the reason),
``BadRequest`` (the invalid fields) and ``RetryInfo`` (when to retry). This module reads them for
unary calls, streams and the responses of a ``ClassifyStream``, and turns them into a message that a
person can act on.
"""

from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from tidegate.errors import TidegateError

__all__ = [
    "DeadlineExceededError",
    "FieldViolation",
    "InvalidInputError",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "RequestCancelledError",
    "RpcFailure",
    "ServerFaultError",
    "TidegateRpcError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
    "error_of",
    "failure_of_call",
    "failure_of_status",
]

_DETAILS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# gRPC's messages when no server answers; the load balancer that failed determines which.
_UNREACHABLE = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "empty address list",
)


class InvalidInputError(TidegateError, ValueError):
    """An argument is invalid; the client sent nothing. The message says what to pass instead."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that the server refused.

    Attributes:
        field: Path of the field, for example ``images[0].encoded``.
        description: What is wrong with the field, and which value would be right.
    """

    field: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcFailure:
    """The facts about a failed call.

    Attributes:
        code: The gRPC status code.
        message: The server's message, or gRPC's own when no server answered.
        reason: The reason in ``ErrorInfo``, for example ``QUEUE_FULL``; empty when there is none.
        field_violations: The fields that the server refused.
        retry_after_s: Seconds until a retry makes sense; ``None`` when the server does not say.
        target: The called address.
        timeout_s: The deadline of the call in seconds; ``None`` when it had none.
    """

    code: grpc.StatusCode
    message: str
    reason: str = ""
    field_violations: tuple[FieldViolation, ...] = ()
    retry_after_s: float | None = None
    target: str = ""
    timeout_s: float | None = None


class TidegateRpcError(TidegateError):
    """A call failed.

    Args:
        failure: Facts about the call; this exception has the same attributes.
    """

    lead: ClassVar[str] = "The call failed"

    def __init__(self, failure: RpcFailure) -> None:
        super().__init__(failure)
        self.failure = failure

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status code."""
        return self.failure.code

    @property
    def reason(self) -> str:
        """The server's reason in capitals, for programs; empty when there is none."""
        return self.failure.reason

    @property
    def field_violations(self) -> tuple[FieldViolation, ...]:
        """The fields that the server refused."""
        return self.failure.field_violations

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until a retry makes sense; ``None`` when the server does not say."""
        return self.failure.retry_after_s

    def __str__(self) -> str:
        return f"{self._at(self.lead)}: {self._what()} [{self._tag()}]"

    def _at(self, lead: str) -> str:
        return f"{lead} ({self.failure.target})" if self.failure.target else lead

    def _what(self) -> str:
        violations = "; ".join(_violation(item) for item in self.field_violations)
        return violations or self.failure.message.strip() or "the server gave no message"

    def _tag(self) -> str:
        return f"{self.code.name}, {self.reason}" if self.reason else self.code.name


class InvalidRequestError(TidegateRpcError):
    """The request is invalid, and a retry cannot help. ``field_violations`` names the fields."""

    lead = "The server refused the request"


class NotFoundError(TidegateRpcError):
    """The server has no such model, version or adapter."""

    lead = "Not found on the server"


class OverloadedError(TidegateRpcError):
    """The server is overloaded; ``retry_after_s`` says when to retry."""

    lead = "The server is overloaded"

    def __str__(self) -> str:
        text = super().__str__()
        if self.retry_after_s is None:
            return text
        return f"{text} Try again in {self.retry_after_s:g} s."


class DeadlineExceededError(TidegateRpcError):
    """The deadline passed before the response; the server has dropped the request."""

    lead = "No answer in time"

    def _what(self) -> str:
        if self.failure.timeout_s is None:
            return super()._what()
        return f"{super()._what()}; the deadline was {self.failure.timeout_s:g} s (timeout_s)"


class UnavailableError(TidegateRpcError):
    """No server answers at the address, or its model is loading or draining."""

    lead = "The server is not ready"

    @property
    def unreachable(self) -> bool:
        """Whether no server answered; False when a server answered that it is not ready."""
        return not self.reason and any(text in self.failure.message for text in _UNREACHABLE)

    def __str__(self) -> str:
        if not self.unreachable:
            return super().__str__()
        return (
            f"Nothing answers at {self.failure.target}: check the address and that the server "
            f"runs ({_last_cause(self.failure.message)}) [{self._tag()}]"
        )


class UnauthenticatedError(TidegateRpcError):
    """The call has no valid credentials; pass some."""

    lead = "The call has no valid credentials"


class PermissionDeniedError(TidegateRpcError):
    """The server knows the caller and does not allow the call."""

    lead = "The server does not allow the call"


class UnsupportedError(TidegateRpcError):
    """The server, or its model, does not support the request."""

    lead = "The server does not support the request"


class RequestCancelledError(TidegateRpcError):
    """The call was cancelled."""

    lead = "The call was cancelled"


class ServerFaultError(TidegateRpcError):
    """The server failed; its log has the cause."""

    lead = "The server failed"


_CLASSES: dict[grpc.StatusCode, type[TidegateRpcError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.INTERNAL: ServerFaultError,
    grpc.StatusCode.UNKNOWN: ServerFaultError,
    grpc.StatusCode.DATA_LOSS: ServerFaultError,
}


def error_of(failure: RpcFailure) -> TidegateRpcError:
    """Makes the exception for a failure, of the class that fits its code."""
    return _CLASSES.get(failure.code, TidegateRpcError)(failure)


def failure_of_call(error: grpc.RpcError, target: str, timeout_s: float | None) -> RpcFailure:
    """Reads an error of gRPC, with the ``google.rpc`` details of its trailers if it has any.

    Args:
        error: The error of a stub, which is also a :class:`grpc.Call` or its asyncio counterpart.
        target: The called address.
        timeout_s: The deadline of the call in seconds; ``None`` when it had none.
    """
    code = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    message = getattr(error, "details", lambda: None)() or ""
    for key, value in getattr(error, "trailing_metadata", lambda: None)() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            return _failure(code, message, status, target, timeout_s)
    return RpcFailure(code=code, message=message, target=target, timeout_s=timeout_s)


def failure_of_status(status: status_pb2.Status, target: str) -> RpcFailure:
    """Reads a status inside a response."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return _failure(code, status.message, status, target, None)


def _failure(
    code: grpc.StatusCode,
    message: str,
    status: status_pb2.Status,
    target: str,
    timeout_s: float | None,
) -> RpcFailure:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in status.details:
        if not detail.Unpack(info) and not detail.Unpack(bad_request) and detail.Unpack(retry):
            retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return RpcFailure(
        code=code,
        message=message,
        reason=info.reason,
        field_violations=tuple(
            FieldViolation(item.field, item.description) for item in bad_request.field_violations
        ),
        retry_after_s=retry_after_s,
        target=target,
        timeout_s=timeout_s,
    )


def _violation(violation: FieldViolation) -> str:
    return f"{violation.field}: {violation.description}"


def _last_cause(message: str) -> str:
    """Gives the last part of gRPC's chained message, which is the operating system's message."""
    return message.rstrip(" )").rsplit(": ", 1)[-1].lower() or "no connection"
