"""Errors that a server returns to its clients.

Handlers raise a `ServiceError`, and the chassis turns it into a rich gRPC status, so no handler
calls `context.abort`. The table `STATUS_CODES` maps each class to its status code, and `to_status`
is a pure function of the error. Every status carries `google.rpc.ErrorInfo` with the domain
``tidegate`` and a reason for programs to match on. Invalid fields add `BadRequest`, and a known
retry delay adds `RetryInfo`. The details travel in the trailer ``grpc-status-details-bin``.

    raise InvalidArgument.of("image.data", "must not be empty")
    raise ResourceExhausted("the queue is full", retry_after_s=0.25, reason="QUEUE_FULL")
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Final, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from tidegate.errors import TidegateError

__all__ = [
    "DOMAIN",
    "STATUS_CODES",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "ResourceExhausted",
    "ServiceError",
    "Unavailable",
    "Unimplemented",
    "status_code",
    "to_status",
]

DOMAIN: Final = "tidegate"

# All trailers share one header block, and the details travel in base64. gRPC rejects some blocks
# above 8 KiB and all above 16 KiB, and replaces an error that is too long by another one.
_MAX_MESSAGE_BYTES: Final = 512
_MAX_ENTRIES: Final = 8
_MAX_NAME_BYTES: Final = 80
_MAX_ENTRY_BYTES: Final = 200

_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,61}[A-Z0-9]")


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field of a request.

    Attributes:
        field: Path of the field in the request message, such as ``images[2].data``.
        description: What is wrong with the field, and which value would be right.
    """

    field: str
    description: str


class ServiceError(TidegateError):
    """An error that the server returns to the client. Raise one of its subclasses.

    Args:
        message: What happened and what the caller can do; clients see it.
        reason: UPPER_SNAKE word for programs to match on; each class has a default.
        metadata: Further facts for programs, such as ``{"model": "efficientnet"}``.

    Raises:
        ValueError: `reason` is not 2 to 63 characters of UPPER_SNAKE.
    """

    default_reason: ClassVar[str]

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        if not _REASON.fullmatch(self.reason):
            raise ValueError(f"reason {self.reason!r} is not UPPER_SNAKE of 2 to 63 characters")
        self.metadata: Mapping[str, str] = dict(metadata or {})


class InvalidArgument(ServiceError):
    """The request itself is invalid; sending it again cannot help.

    Args:
        violations: The invalid fields, at least one.
        message: Summary; made from the violations unless given.
        reason: See `ServiceError`.
        metadata: See `ServiceError`.
    """

    default_reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        violations: Iterable[FieldViolation],
        *,
        message: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.violations = tuple(violations)
        summary = "; ".join(f"{each.field}: {each.description}" for each in self.violations)
        super().__init__(message or summary, reason=reason, metadata=metadata)

    @classmethod
    def of(
        cls,
        field: str,
        description: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Self:
        """Makes the error for a single field."""
        return cls([FieldViolation(field, description)], reason=reason, metadata=metadata)


class NotFound(ServiceError):
    """The server does not have what the request names, such as a model."""

    default_reason = "NOT_FOUND"


class FailedPrecondition(ServiceError):
    """The request is valid, but the server's state forbids it until somebody changes that state."""

    default_reason = "FAILED_PRECONDITION"


class DeadlineExceeded(ServiceError):
    """The request's deadline passed, in the queue or while it ran."""

    default_reason = "DEADLINE_EXCEEDED"


class Unimplemented(ServiceError):
    """This server does not support the request."""

    default_reason = "UNIMPLEMENTED"


class Internal(ServiceError):
    """The server failed. Unexpected exceptions become this error, without their text."""

    default_reason = "INTERNAL"


class _Retryable(ServiceError):
    """An error that may pass by itself.

    Args:
        message: See `ServiceError`.
        retry_after_s: Seconds after which a retry makes sense, when known.
        reason: See `ServiceError`.
        metadata: See `ServiceError`.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_s = retry_after_s


class ResourceExhausted(_Retryable):
    """The server has no room for the request now: a queue is full, or a limit is reached."""

    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(_Retryable):
    """The server is loading or draining; another replica may answer."""

    default_reason = "UNAVAILABLE"


STATUS_CODES: Final[Mapping[type[ServiceError], grpc.StatusCode]] = {
    InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    Internal: grpc.StatusCode.INTERNAL,
}


def status_code(error: ServiceError) -> grpc.StatusCode:
    """Gives the code of an error: that of its nearest ancestor in `STATUS_CODES`."""
    for ancestor in type(error).__mro__:
        if code := STATUS_CODES.get(ancestor):
            return code
    return grpc.StatusCode.INTERNAL


def to_status(error: ServiceError) -> status_pb2.Status:
    """Renders an error as `google.rpc.Status` with its details, shortened to fit a trailer."""
    status = status_pb2.Status(
        code=status_code(error).value[0],
        message=_shortened(error.message, _MAX_MESSAGE_BYTES),
    )
    metadata = {
        _shortened(name, _MAX_NAME_BYTES): _shortened(value, _MAX_ENTRY_BYTES)
        for name, value in islice(error.metadata.items(), _MAX_ENTRIES)
    }
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )
    if isinstance(error, InvalidArgument) and error.violations:
        status.details.add().Pack(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=_shortened(each.field, _MAX_NAME_BYTES),
                        description=_shortened(each.description, _MAX_ENTRY_BYTES),
                    )
                    for each in error.violations[:_MAX_ENTRIES]
                ]
            )
        )
    if isinstance(error, _Retryable) and error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def _shortened(text: str, limit_bytes: int) -> str:
    # gRPC cannot send lone surrogates, which undecodable file names contain.
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
