"""Arranges a trace as a tree of spans, read from the JSON of Jaeger's query API.

The JSON may come from any Jaeger, and a trace may lack spans or contradict itself. A span whose
parent is missing stands beside the root. A cycle of parents starts at its earliest span. Every span
is shown exactly once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Row", "SpanView", "TraceView", "read_trace", "rows"]

_MAX_DEPTH: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanView:
    """A span.

    Attributes:
        span_id: The span's id, in hexadecimal digits.
        parent_id: The id of its parent, empty for a root.
        service: The service.
        operation: The name of the span.
        start_us: Start time, in microseconds since 1970.
        duration_us: Duration, in microseconds.
        tags: Tag values, by key.
    """

    span_id: str
    parent_id: str
    service: str
    operation: str
    start_us: int
    duration_us: int
    tags: Mapping[str, object]

    @property
    def is_error(self) -> bool:
        """Whether the span failed."""
        return self.tags.get("error") in (True, "true")


@dataclass(frozen=True, slots=True)
class TraceView:
    """A trace.

    Attributes:
        trace_id: The trace's id, in hexadecimal digits.
        spans: All spans, in the order of their start times.
    """

    trace_id: str
    spans: tuple[SpanView, ...]

    @property
    def start_us(self) -> int:
        """Start of the first span, in microseconds since 1970."""
        return min((span.start_us for span in self.spans), default=0)

    @property
    def duration_us(self) -> int:
        """Time from the start of the first span to the end of the last, in microseconds."""
        ends = (span.start_us + span.duration_us for span in self.spans)
        return max(ends, default=0) - self.start_us


@dataclass(frozen=True, slots=True)
class Row:
    """A span and its place in the tree.

    Attributes:
        span: The span.
        last: For the span and each of its ancestors except the root, outermost first: whether it is
            the last child of its parent. Only the first eight levels are kept: nobody can follow
            more lines, and a trace of a thousand levels would need a million.
        parent: The parent, or None if it is missing.
        has_children: Whether rows of its children follow.
    """

    span: SpanView
    last: tuple[bool, ...]
    parent: SpanView | None
    has_children: bool


def read_trace(trace: Mapping[str, Any]) -> TraceView:
    """Parses an element of ``data`` in a response of Jaeger's API.

    Args:
        trace: The element.

    Raises:
        KeyError: A required field is missing.
        TypeError: A field has another type.
        ValueError: A number is malformed.
    """
    services = {
        name: str(process.get("serviceName", "")) for name, process in trace["processes"].items()
    }
    spans = [_read_span(span, services) for span in trace["spans"]]
    spans.sort(key=lambda span: span.start_us)
    return TraceView(str(trace["traceID"]), tuple(spans))


def rows(trace: TraceView) -> tuple[Row, ...]:
    """Returns the rows of the tree: each parent before its children, these by start time."""
    # Spans of different processes may share an id, as in Zipkin. The first one is the parent.
    by_id: dict[str, SpanView] = {}
    for span in trace.spans:
        by_id.setdefault(span.span_id, span)
    children: dict[str, list[SpanView]] = {}
    roots = []
    for span in trace.spans:
        if span.parent_id in by_id and by_id[span.parent_id] is not span:
            children.setdefault(span.parent_id, []).append(span)
        else:
            roots.append(span)
    tree_rows: list[Row] = []
    seen: set[int] = set()
    # Spans that no root reaches form cycles, which start at their earliest span.
    for root in (*roots, *trace.spans):
        _append_rows(root, children, by_id, seen, tree_rows)
    return tuple(tree_rows)


def _append_rows(
    root: SpanView,
    children: Mapping[str, Sequence[SpanView]],
    by_id: Mapping[str, SpanView],
    seen: set[int],
    tree_rows: list[Row],
) -> None:
    # Not recursive: a trace may be deeper than Python's stack.
    stack: list[tuple[SpanView, tuple[bool, ...], SpanView | None]] = [(root, (), None)]
    while stack:
        span, last, parent = stack.pop()
        if id(span) in seen:
            continue
        seen.add(id(span))
        unseen_children = [
            child
            for child in children.get(span.span_id, ())
            if by_id[span.span_id] is span and id(child) not in seen
        ]
        tree_rows.append(Row(span, last, parent, bool(unseen_children)))
        for place, child in reversed(tuple(enumerate(unseen_children, start=1))):
            lines = last if len(last) == _MAX_DEPTH else (*last, place == len(unseen_children))
            stack.append((child, lines, span))


def _read_span(span: Mapping[str, Any], services: Mapping[str, str]) -> SpanView:
    parent = next(
        (each["spanID"] for each in span["references"] if each.get("refType") == "CHILD_OF"), ""
    )
    return SpanView(
        span_id=str(span["spanID"]),
        parent_id=str(parent),
        service=services.get(span["processID"], ""),
        operation=str(span["operationName"]),
        start_us=int(span["startTime"]),
        duration_us=max(0, int(span["duration"])),
        tags={str(tag["key"]): tag["value"] for tag in span["tags"]},
    )
