"""What every call shares: its deadline, metadata, span, size limit and error, and health checks."""

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
    """The address and the options of a client, and what its calls derive from them.

    Attributes:
        target: The address, for error messages.
        options: The client's options.
    """

    target: str
    options: ClientOptions

    def unary_deadline_s(self, timeout_s: float | None) -> float | None:
        """Gives the deadline of a unary call, in seconds; ``None`` for no deadline."""
        return _finite(self.options.timeout_s if timeout_s is None else timeout_s)

    def stream_deadline_s(self, timeout_s: float | None) -> float | None:
        """Gives the deadline of a whole stream, in seconds; ``None`` for no deadline."""
        return _finite(self.options.stream_timeout_s if timeout_s is None else timeout_s)

    def span(self, request: type[Message]) -> CallSpan:
        """Begins the span of a call, if the program traces.

        Args:
            request: Type of the request message.
        """
        return call_span(request, self.target)

    def metadata(self, span: CallSpan) -> tuple[tuple[str, str | bytes], ...]:
        """Gives the client's metadata with the trace context of the call's span.

        Without a span of its own, the call carries the context of the current span.

        Args:
            span: Span of the call.
        """
        metadata = self.options.metadata
        # A program that traces has imported OpenTelemetry; others do not pay for the import.
        if "opentelemetry.context" in sys.modules:
            from opentelemetry import propagate

            carrier: dict[str, str] = {}
            propagate.inject(carrier, span.context)
            metadata += tuple((key.lower(), value) for key, value in carrier.items())
        return metadata

    def checked(self, request: Message) -> None:
        """Checks that a request is not larger than max_message_bytes.

        Raises:
            InvalidInputError: The request is larger; gRPC would retry it as if the server were
                overloaded.
        """
        size = request.ByteSize()
        limit = self.options.max_message_bytes
        if size > limit:
            raise InvalidInputError(
                f"the request has {size:,} bytes and max_message_bytes is {limit:,}; send fewer or "
                "smaller images, or raise the limit on client and server"
            )

    def error(self, error: grpc.RpcError, timeout_s: float | None) -> TidegateRpcError:
        """Gives the exception to raise for an error of a stub."""
        return error_of(failure_of_call(error, self.target, timeout_s))


class HealthStatus(StrEnum):
    """Health of a server or of one of its services, as ``grpc.health.v1`` names it."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


def health_status(response: health_pb2.HealthCheckResponse) -> HealthStatus:
    """Reads the status of a response."""
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    return HealthStatus(status.lower())


def _finite(timeout_s: float) -> float | None:
    if not timeout_s > 0:
        raise InvalidInputError(f"timeout_s is {timeout_s}; it must be above 0")
    return None if math.isinf(timeout_s) else timeout_s
