"""What each call is sent with, and how its failure is told: deadline, metadata, size, error."""

import math
import sys
from dataclasses import dataclass
from enum import StrEnum

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from tidegate.client._shared.channel import ClientOptions
from tidegate.client._shared.errors import (
    InvalidInputError,
    TidegateRpcError,
    error_of,
    failure_of_call,
)
from tidegate.client._shared.spans import CallSpan, call_span

__all__ = ["HEALTH_CHECK", "CallContext", "HealthStatus", "health_status"]

HEALTH_CHECK = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True, slots=True)
class CallContext:
    """A client's address and options, as its calls need them.

    Attributes:
        target: The address, for error messages.
        options: The client's options.
    """

    target: str
    options: ClientOptions

    def unary_deadline_s(self, timeout_s: float | None) -> float | None:
        """The deadline of a unary call, in seconds; ``None`` for no deadline."""
        return _finite(self.options.timeout_s if timeout_s is None else timeout_s)

    def stream_deadline_s(self, timeout_s: float | None) -> float | None:
        """The deadline of a whole stream, in seconds; ``None`` for no deadline."""
        return _finite(self.options.stream_timeout_s if timeout_s is None else timeout_s)

    def span(self, request: type[Message]) -> CallSpan:
        """Begins the span of a call, in a program that traces.

        Args:
            request: The type of the message that the call sends.
        """
        return call_span(request, self.target)

    def metadata(self, span: CallSpan) -> tuple[tuple[str, str | bytes], ...]:
        """The client's metadata, and the trace context of the call's span or of the running one.

        Args:
            span: Of the call.
        """
        metadata = self.options.metadata
        # A program that traces has imported OpenTelemetry; one that has not is spared its cost.
        if "opentelemetry.context" in sys.modules:
            from opentelemetry import propagate

            carrier: dict[str, str] = {}
            propagate.inject(carrier, span.context)
            metadata += tuple((key.lower(), value) for key, value in carrier.items())
        return metadata

    def checked(self, request: Message) -> None:
        """Makes sure that a request is not too large to send.

        Raises:
            InvalidInputError: It is; gRPC would try it again as if the server were busy.
        """
        size = request.ByteSize()
        limit = self.options.max_message_bytes
        if size > limit:
            raise InvalidInputError(
                f"the request has {size:,} bytes and max_message_bytes is {limit:,}; send fewer or "
                "smaller images, or raise the limit on client and server"
            )

    def error(self, error: grpc.RpcError, timeout_s: float | None) -> TidegateRpcError:
        """The exception to raise for what a stub raised."""
        return error_of(failure_of_call(error, self.target, timeout_s))


class HealthStatus(StrEnum):
    """What a server says of itself or of one of its services."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


def health_status(response: health_pb2.HealthCheckResponse) -> HealthStatus:
    """The status of an answer."""
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return HealthStatus(status.lower())


def _finite(timeout_s: float) -> float | None:
    if not timeout_s > 0:
        raise InvalidInputError(f"timeout_s is {timeout_s}; it must be above 0")
    return None if math.isinf(timeout_s) else timeout_s
