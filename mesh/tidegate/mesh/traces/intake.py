"""Validates received spans, and extracts the fields that queries search.

A span is stored in its OTLP bytes, beside the few fields that queries need. It is converted to
Jaeger's JSON only when it is read. Refused spans are counted by reason, and the sender learns of
them in OTLP's ``partial_success``. A sender's mistake never raises an exception.
"""

import enum
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

__all__ = [
    "SERVICE_NAME_ATTRIBUTE",
    "Batch",
    "Process",
    "ReceivedSpan",
    "Refusal",
    "TraceLimits",
    "read_batch",
    "service_name",
]

SERVICE_NAME_ATTRIBUTE = "service.name"
"""The resource attribute that names the service."""

# OpenTelemetry's name for a resource without that attribute.
_UNKNOWN_SERVICE = "unknown_service"
# The largest integer of SQLite, in the year 2262.
_LATEST_NS = 2**63 - 1
_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLimits:
    """Limits of the trace store.

    Attributes:
        max_traces: Most traces to keep. The store evicts the oldest trace first, as a whole.
        max_bytes: Most bytes of spans to keep in all traces together. Eviction as above.
        max_spans_per_trace: Most spans to keep of one trace. Further ones are refused.
        max_span_bytes: Largest span on the wire, and largest resource of a span.
        max_attributes: Most attributes of a span.
        max_batch_spans: Most spans in one request. Further ones are refused.
        max_waiting: Most requests and queries that wait for the file. Further ones are refused.
    """

    max_traces: int = 1_000
    max_bytes: int = 256 * 1024 * 1024
    max_spans_per_trace: int = 10_000
    max_span_bytes: int = 64 * 1024
    max_attributes: int = 256
    max_batch_spans: int = 20_000
    max_waiting: int = 64


class Refusal(enum.StrEnum):
    """Why a span was not stored."""

    BAD_ID = "bad id"
    BAD_TIME = "bad time"
    TOO_LARGE = "too large"
    TOO_MANY_ATTRIBUTES = "too many attributes"
    BATCH_TOO_LARGE = "batch too large"
    TRACE_FULL = "trace full"


@dataclass(frozen=True, slots=True)
class Process:
    """The origin of spans: OpenTelemetry's resource, Jaeger's process.

    Attributes:
        digest: A digest of the body, which identifies the process.
        service: The ``service.name``.
        body: The serialized resource.
    """

    digest: bytes
    service: str
    body: bytes

    @classmethod
    def of(cls, resource: Resource) -> "Process":
        """Creates a process from a resource."""
        body = resource.SerializeToString(deterministic=True)
        digest = hashlib.blake2b(body, digest_size=8).digest()
        return cls(digest, service_name(resource), body)


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span with the fields that queries search.

    Attributes:
        trace_id: Sixteen bytes.
        span_id: Eight bytes.
        parent_id: Eight bytes, empty for a root.
        process: The process that sent the span.
        operation: The name of the span.
        kind: The span kind, as OTLP's number.
        start_ns: Start time, in nanoseconds since 1970.
        duration_ns: Duration in nanoseconds, 0 if the span ends before it starts.
        is_error: Whether its status is an error.
        body: A serialized ``ScopeSpans`` with this one span.
    """

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    process: Process
    operation: str
    kind: int
    start_ns: int
    duration_ns: int
    is_error: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """The spans of one export request.

    Attributes:
        spans: The valid spans.
        refused: Number of refused spans, by reason.
    """

    spans: tuple[ReceivedSpan, ...]
    refused: Counter[Refusal] = field(default_factory=Counter)


def read_batch(request: ExportTraceServiceRequest, limits: TraceLimits) -> Batch:
    """Validates the spans of a request. It counts invalid spans, and never raises.

    Args:
        request: The request.
        limits: The limits of spans.
    """
    refused: Counter[Refusal] = Counter()
    spans: list[ReceivedSpan] = []
    room = limits.max_batch_spans
    for resource, scope_spans in _scopes(request):
        fitting = scope_spans.spans[: max(room, 0)]
        room -= len(scope_spans.spans)
        if len(fitting) < len(scope_spans.spans):
            refused[Refusal.BATCH_TOO_LARGE] += len(scope_spans.spans) - len(fitting)
        scope_bytes = scope_spans.scope.ByteSize()
        if max(resource.ByteSize(), scope_bytes) > limits.max_span_bytes:
            refused[Refusal.TOO_LARGE] += len(fitting)
            continue
        process = Process.of(resource)
        for span in fitting:
            reason = _refusal(span, limits)
            if reason is None:
                spans.append(_received(span, scope_spans, process))
            else:
                refused[reason] += 1
    return Batch(tuple(spans), refused)


def service_name(resource: Resource) -> str:
    """Returns the service name of a resource."""
    for attribute in resource.attributes:
        if attribute.key == SERVICE_NAME_ATTRIBUTE and attribute.value.string_value:
            return attribute.value.string_value
    return _UNKNOWN_SERVICE


def _scopes(request: ExportTraceServiceRequest) -> Iterator[tuple[Resource, ScopeSpans]]:
    for resource_spans in request.resource_spans:
        for scope_spans in resource_spans.scope_spans:
            yield resource_spans.resource, scope_spans


def _refusal(span: Span, limits: TraceLimits) -> Refusal | None:
    if not _is_id(span.trace_id, _TRACE_ID_BYTES) or not _is_id(span.span_id, _SPAN_ID_BYTES):
        return Refusal.BAD_ID
    if span.parent_span_id and len(span.parent_span_id) != _SPAN_ID_BYTES:
        return Refusal.BAD_ID
    if not 0 < span.start_time_unix_nano <= _LATEST_NS or span.end_time_unix_nano > _LATEST_NS:
        return Refusal.BAD_TIME
    if len(span.attributes) > limits.max_attributes:
        return Refusal.TOO_MANY_ATTRIBUTES
    if span.ByteSize() > limits.max_span_bytes:
        return Refusal.TOO_LARGE
    return None


def _is_id(value: bytes, length: int) -> bool:
    return len(value) == length and any(value)


def _received(span: Span, scope_spans: ScopeSpans, process: Process) -> ReceivedSpan:
    single = ScopeSpans(scope=scope_spans.scope, spans=[span])
    return ReceivedSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_id=span.parent_span_id if any(span.parent_span_id) else b"",
        process=process,
        operation=span.name,
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        duration_ns=max(0, span.end_time_unix_nano - span.start_time_unix_nano),
        is_error=span.status.code == Status.STATUS_CODE_ERROR,
        body=single.SerializeToString(),
    )
