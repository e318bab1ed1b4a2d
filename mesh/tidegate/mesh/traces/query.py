"""Queries of the trace store and their results, as values."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Dependency",
    "Operation",
    "ServiceSpans",
    "SpanFacts",
    "StoredSpan",
    "StoredTrace",
    "TraceQuery",
    "TraceSummary",
    "summarise",
]

_FOREVER_NS = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuery:
    """A query for traces with at least one span that meets all conditions.

    Attributes:
        service: Service of the span. Empty for any.
        operation: Name of the span. Empty for any.
        tags: Tags that the span, its events or its process have, as text.
        start_min_ns: Earliest start time, in nanoseconds since 1970.
        start_max_ns: Latest start time.
        duration_min_ns: Shortest duration.
        duration_max_ns: Longest duration.
        limit: Most traces to return. The newest are returned.
    """

    service: str = ""
    operation: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    start_min_ns: int = 0
    start_max_ns: int = _FOREVER_NS
    duration_min_ns: int = 0
    duration_max_ns: int = _FOREVER_NS
    limit: int = 100


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A stored span, in its OTLP form.

    Attributes:
        process: Digest of the process that sent it.
        body: A serialized ``ScopeSpans`` of OTLP with this one span.
    """

    process: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """A stored trace.

    Attributes:
        trace_id: Sixteen bytes.
        spans: The spans, in the order of their start times.
        processes: Serialized OTLP resources, by digest.
    """

    trace_id: bytes
    spans: tuple[StoredSpan, ...]
    processes: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True, order=True)
class Operation:
    """An operation of a service: the name of some of its spans.

    Attributes:
        name: The name.
        kind: The span kind, as OTLP's number.
    """

    name: str
    kind: int


@dataclass(frozen=True, slots=True)
class Dependency:
    """Calls from one service to another.

    Attributes:
        parent: The calling service.
        child: The called service.
        calls: Number of calls.
    """

    parent: str
    child: str
    calls: int


@dataclass(frozen=True, slots=True)
class SpanFacts:
    """The fields of a span that a summary needs.

    Attributes:
        span_id: The span's id.
        parent_id: The id of its parent, empty for a root.
        service: The service.
        operation: The name of the span.
        start_ns: Start time, in nanoseconds since 1970.
        duration_ns: Duration, in nanoseconds.
        is_error: Whether the span failed.
    """

    span_id: bytes
    parent_id: bytes
    service: str
    operation: str
    start_ns: int
    duration_ns: int
    is_error: bool


@dataclass(frozen=True, slots=True)
class ServiceSpans:
    """The spans of one service in a trace.

    Attributes:
        name: The service.
        spans: Number of its spans.
        errors: Number of its spans that failed.
    """

    name: str
    spans: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """The summary of a trace.

    Attributes:
        trace_id: Sixteen bytes.
        root_service: Service of the root span.
        root_operation: Name of the root span.
        start_ns: When its first span began.
        end_ns: When its last span ended.
        spans: Number of spans.
        errors: Number of spans that failed.
        orphans: Number of spans whose parent is missing.
        services: The services in the trace, sorted by name.
    """

    trace_id: bytes
    root_service: str
    root_operation: str
    start_ns: int
    end_ns: int
    spans: int
    errors: int
    orphans: int
    services: tuple[ServiceSpans, ...]


def summarise(trace_id: bytes, spans: Sequence[SpanFacts]) -> TraceSummary:
    """Summarises a trace. Its root is the first span without a parent, or else the first span.

    Args:
        trace_id: The trace's id.
        spans: Its spans, at least one, in the order of their start times.
    """
    known = {span.span_id for span in spans}
    root = next((span for span in spans if not span.parent_id), spans[0])
    parts = Counter(span.service for span in spans)
    failed = Counter(span.service for span in spans if span.is_error)
    return TraceSummary(
        trace_id=trace_id,
        root_service=root.service,
        root_operation=root.operation,
        start_ns=min(span.start_ns for span in spans),
        end_ns=max(span.start_ns + span.duration_ns for span in spans),
        spans=len(spans),
        errors=sum(span.is_error for span in spans),
        orphans=sum(bool(span.parent_id) and span.parent_id not in known for span in spans),
        services=tuple(ServiceSpans(name, parts[name], failed[name]) for name in sorted(parts)),
    )
