"""What can be asked of the store, and what it answers, as values."""

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
    """Traces with at least one span that is all of this.

    Attributes:
        service: its service; any unless given.
        operation: its name; any unless given.
        tags: tags that it, its events or its process have, as text.
        start_min_ns: it began then or later, in nanoseconds since 1970.
        start_max_ns: it began then or earlier.
        duration_min_ns: it took so long or longer.
        duration_max_ns: it took so long or less.
        limit: most traces in the answer; the newest are chosen.
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
    """A span as it came.

    Attributes:
        process: digest of the process that it comes from.
        body: a ``ScopeSpans`` of OTLP with this one span, serialized.
    """

    process: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredTrace:
    """Everything that is kept of a trace.

    Attributes:
        trace_id: sixteen bytes.
        spans: in the order in which they began.
        processes: resources of OTLP, serialized, by their digests.
    """

    trace_id: bytes
    spans: tuple[StoredSpan, ...]
    processes: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True, order=True)
class Operation:
    """A name that spans of a service have.

    Attributes:
        name: the name.
        kind: OTLP's number of the spans' kind.
    """

    name: str
    kind: int


@dataclass(frozen=True, slots=True)
class Dependency:
    """Calls from one service to another.

    Attributes:
        parent: who calls.
        child: who is called.
        calls: how often.
    """

    parent: str
    child: str
    calls: int


@dataclass(frozen=True, slots=True)
class SpanFacts:
    """What a summary needs of a span.

    Attributes:
        span_id: its id.
        parent_id: that of its parent; empty for a root.
        service: its service.
        operation: its name.
        start_ns: when it began.
        duration_ns: how long it took.
        is_error: whether it failed.
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
    """A service's part in a trace.

    Attributes:
        name: the service.
        spans: its spans.
        errors: those of them that failed.
    """

    name: str
    spans: int
    errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSummary:
    """A trace in one line.

    Attributes:
        trace_id: sixteen bytes.
        root_service: service of the span that began it.
        root_operation: name of that span.
        start_ns: when its first span began.
        end_ns: when its last span ended.
        spans: how many there are.
        errors: those of them that failed.
        orphans: those whose parent has not come.
        services: who took part, by name.
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
    """Sums up a trace; its root is the first span without a parent, or else the first of all.

    Args:
        trace_id: its id.
        spans: its spans, at least one, in the order in which they began.
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
