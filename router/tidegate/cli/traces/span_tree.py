"""A trace as a person looks at it: a tree of spans, read from the JSON of Jaeger's query API.

The JSON may come from any Jaeger, and a trace may lack spans or contradict itself. A span whose
parent is not there stands beside the root; spans that are each other's parents are cut open at the
one that began first; no span is shown twice and none is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Row", "SpanView", "TraceView", "read_trace", "rows"]

_DEEPEST: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanView:
    """A span.

    Attributes:
        span_id: its id, in hexadecimal digits.
        parent_id: that of its parent; empty for a root.
        service: its service.
        operation: its name.
        start_us: when it began, in microseconds since 1970.
        duration_us: how long it took, in microseconds.
        tags: values by key.
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
        """Whether it failed."""
        return self.tags.get("error") in (True, "true")


@dataclass(frozen=True, slots=True)
class TraceView:
    """A trace.

    Attributes:
        trace_id: its id, in hexadecimal digits.
        spans: all of it, in the order in which they began.
    """

    trace_id: str
    spans: tuple[SpanView, ...]

    @property
    def start_us(self) -> int:
        """When the first span began, in microseconds since 1970."""
        return min((span.start_us for span in self.spans), default=0)

    @property
    def duration_us(self) -> int:
        """From there until the last span ended, in microseconds."""
        ends = (span.start_us + span.duration_us for span in self.spans)
        return max(ends, default=0) - self.start_us


@dataclass(frozen=True, slots=True)
class Row:
    """A span and its place in the tree.

    Attributes:
        span: the span.
        last: for itself and each of its ancestors but the root, outermost first: whether it is the
            last child of its parent. Of what is deeper than eight, for the first eight: nobody
            follows more lines, and a trace of a thousand levels would need a million.
        parent: its parent, if that is there.
        has_children: whether rows of its own follow.
    """

    span: SpanView
    last: tuple[bool, ...]
    parent: SpanView | None
    has_children: bool


def read_trace(trace: Mapping[str, Any]) -> TraceView:
    """Reads an element of ``data`` in an answer of Jaeger's.

    Args:
        trace: the element.

    Raises:
        KeyError: it lacks what every trace has.
        TypeError: it is made otherwise.
        ValueError: one of its numbers is none.
    """
    services = {
        name: str(process.get("serviceName", "")) for name, process in trace["processes"].items()
    }
    spans = [_read_span(span, services) for span in trace["spans"]]
    spans.sort(key=lambda span: span.start_us)
    return TraceView(str(trace["traceID"]), tuple(spans))


def rows(trace: TraceView) -> tuple[Row, ...]:
    """The spans as a tree is printed: each parent above its children, these as they began."""
    # Spans of different processes may share an id, as Zipkin's do: the first one is the parent.
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
    printed: list[Row] = []
    seen: set[int] = set()
    # What no root leads to goes round in circles, and is begun with the earliest.
    for root in (*roots, *trace.spans):
        _descend(root, children, by_id, seen, printed)
    return tuple(printed)


def _descend(
    root: SpanView,
    children: Mapping[str, Sequence[SpanView]],
    by_id: Mapping[str, SpanView],
    seen: set[int],
    printed: list[Row],
) -> None:
    # No recursion: a trace may be deeper than Python's stack.
    waiting: list[tuple[SpanView, tuple[bool, ...], SpanView | None]] = [(root, (), None)]
    while waiting:
        span, last, parent = waiting.pop()
        if id(span) in seen:
            continue
        seen.add(id(span))
        inside = [
            child
            for child in children.get(span.span_id, ())
            if by_id[span.span_id] is span and id(child) not in seen
        ]
        printed.append(Row(span, last, parent, bool(inside)))
        for place, child in reversed(tuple(enumerate(inside, start=1))):
            lines = last if len(last) == _DEEPEST else (*last, place == len(inside))
            waiting.append((child, lines, span))


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
