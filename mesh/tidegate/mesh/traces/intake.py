"""The one look that each span gets when it comes: is it sound, and what is it found by?

A span is kept as it came, in OTLP's own bytes, beside the few facts that queries ask for; it is
turned into Jaeger's JSON only when somebody wants to see it. What is refused is counted by reason
and told to the sender in OTLP's ``partial_success``: a sender's mistake never raises.
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
"""The attribute of a resource that names it."""

# OpenTelemetry's name for a resource that does not say it.
_UNKNOWN_SERVICE = "unknown_service"
# SQLite's integers; beyond them lies the year 2262.
_LATEST_NS = 2**63 - 1
_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLimits:
    """Bounds of the store of traces.

    Attributes:
        max_traces: traces that are kept; the one that began longest ago goes first, whole.
        max_bytes: bytes of spans that are kept, in all traces together; likewise.
        max_spans_per_trace: spans that are kept of one trace; further ones are refused.
        max_span_bytes: size of a span on the wire, and of the resource that it comes from.
        max_attributes: attributes of a span.
        max_batch_spans: spans in one request; those after them are refused.
        max_waiting: requests and queries that wait for the file; further ones are refused.
    """

    max_traces: int = 1_000
    max_bytes: int = 256 * 1024 * 1024
    max_spans_per_trace: int = 10_000
    max_span_bytes: int = 64 * 1024
    max_attributes: int = 256
    max_batch_spans: int = 20_000
    max_waiting: int = 64


class Refusal(enum.StrEnum):
    """Why a span is not kept."""

    BAD_ID = "bad id"
    BAD_TIME = "bad time"
    TOO_LARGE = "too large"
    TOO_MANY_ATTRIBUTES = "too many attributes"
    BATCH_TOO_LARGE = "batch too large"
    TRACE_FULL = "trace full"


@dataclass(frozen=True, slots=True)
class Process:
    """Where spans come from: a resource of OpenTelemetry, a process of Jaeger.

    Attributes:
        digest: of the body; tells processes apart.
        service: its ``service.name``.
        body: the resource, serialized.
    """

    digest: bytes
    service: str
    body: bytes

    @classmethod
    def of(cls, resource: Resource) -> "Process":
        """Reads a resource."""
        body = resource.SerializeToString(deterministic=True)
        digest = hashlib.blake2b(body, digest_size=8).digest()
        return cls(digest, service_name(resource), body)


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span, and what it is found by.

    Attributes:
        trace_id: sixteen bytes.
        span_id: eight bytes.
        parent_id: eight bytes; empty for a root.
        process: where it comes from.
        operation: its name.
        kind: OTLP's number of its kind.
        start_ns: when it began, in nanoseconds since 1970.
        duration_ns: how long it took; 0 when its end lies before its start.
        is_error: whether its status is an error.
        body: a ``ScopeSpans`` with this one span, serialized.
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
    """What one request brought.

    Attributes:
        spans: those to keep.
        refused: how many are not kept, by reason.
    """

    spans: tuple[ReceivedSpan, ...]
    refused: Counter[Refusal] = field(default_factory=Counter)


def read_batch(request: ExportTraceServiceRequest, limits: TraceLimits) -> Batch:
    """Reads a request; what cannot be kept is counted, and never raises.

    Args:
        request: as it came.
        limits: what is refused.
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
    """The service that a resource is."""
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
