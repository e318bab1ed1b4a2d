"""Arranges a trace as a tree of spans.

A trace may come from any Jaeger, may lack spans and may contradict itself. A span whose
parent is missing stands beside the root. A cycle of parents starts at its earliest span. Every span
is shown exactly once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.trace_analysis.spans import Span, Trace

__all__ = ["Row", "rows"]

_MAX_DEPTH: Final = 8


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

    span: Span
    last: tuple[bool, ...]
    parent: Span | None
    has_children: bool


def rows(trace: Trace) -> tuple[Row, ...]:
    """Returns the rows of the tree: each parent before its children, these by start time."""
    # Spans of different processes may share an id, as in Zipkin. The first one is the parent.
    by_id: dict[str, Span] = {}
    for span in trace.spans:
        by_id.setdefault(span.span_id, span)
    children: dict[str, list[Span]] = {}
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
    root: Span,
    children: Mapping[str, Sequence[Span]],
    by_id: Mapping[str, Span],
    seen: set[int],
    tree_rows: list[Row],
) -> None:
    # Not recursive: a trace may be deeper than Python's stack.
    stack: list[tuple[Span, tuple[bool, ...], Span | None]] = [(root, (), None)]
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
