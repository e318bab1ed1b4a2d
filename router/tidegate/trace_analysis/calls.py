"""Calls of a service, found in traces.

A call begins with the outermost RPC or HTTP request around a span of the service: the client's
span, or Envoy's. Its spans are those below. A user's own span around several calls is not part of
any of them. A retried call is one call; what its last attempt says about the model counts.

A trace may be incomplete: spans are in transit, were dropped, or are not sent at all. A call whose
spans do not hang together would blame the wrong stage, so it is counted and left out. If no span of
a trace is a root, then the caller sends no spans, and the call begins at the first one that there
is.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.trace_analysis.critical_path import critical_path
from tidegate.trace_analysis.spans import (
    Span,
    Trace,
    has_status,
    short_operation,
    status_of,
    subset_of,
)
from tidegate.trace_analysis.stages import Stage, stage_times

__all__ = ["Call", "Fault", "calls_of"]

_VERSION: Final = "tidegate.model.version"
_MODEL: Final = "tidegate.model"
_BATCH: Final = "tidegate.batch_size"
_RPC_KINDS: Final = frozenset({"client", "consumer", "producer", "server"})


class Fault(enum.StrEnum):
    """Why a call is left out."""

    INCOMPLETE = "incomplete"
    CYCLE = "cycle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of the service.

    Attributes:
        trace_id: The trace's id, in hexadecimal digits.
        start_us: Start time, in microseconds since 1970.
        duration_us: Duration, in microseconds.
        spans: Number of its spans.
        operation: The method that the service served.
        model: The model; empty if no span names one.
        version: The version of the model; empty if no span names one.
        subset: The subset that Envoy chose; empty if no span names one.
        batch_size: Images in the model's batch; None if no span says.
        status: The status that the caller got: a code of gRPC, ``HTTP 503``, ``ERROR`` or ``OK``.
        stages: The time of each stage on the critical path, in microseconds.
        stacks: The same by the names of the spans from the root down.
        skew_us: How far the clocks of two hosts differ at least, in microseconds; 0 if they agree.
        has_caller: Whether the trace has a root. If not, the caller sends no spans.
    """

    trace_id: str
    start_us: int
    duration_us: int
    spans: int
    operation: str
    model: str
    version: str
    subset: str
    batch_size: int | None
    status: str
    stages: dict[Stage, int]
    stacks: dict[tuple[str, ...], int]
    skew_us: int
    has_caller: bool

    @property
    def is_ok(self) -> bool:
        """Whether the caller got an answer."""
        return self.status == "OK"


def calls_of(trace: Trace, service: str, operation: str = "") -> Iterator[Call | Fault]:
    """Finds the calls of a service in a trace, and whether the trace has some that are left out.

    Args:
        trace: The trace.
        service: The service.
        operation: Only calls of this method of it, with or without its package; empty for any.
    """
    tree = _Tree(trace)
    served: dict[str, tuple[Span, list[Span]]] = {}
    fault: Fault | None = None
    for span in tree.by_id.values():
        if span.service != service or not tree.is_entry(span):
            continue
        if operation and operation not in (span.operation, short_operation(span.operation)):
            continue
        root = tree.outermost(span)
        if isinstance(root, Fault):
            fault = root
        else:
            served.setdefault(root.span_id, (root, []))[1].append(span)
    if fault is not None:
        yield fault
    for root, entries in served.values():
        yield _call(trace, tree, root, entries, service)


class _Tree:
    """The spans of a trace by their parents."""

    def __init__(self, trace: Trace) -> None:
        # A sender that tries again sends a span twice.
        self.by_id: dict[str, Span] = {}
        for span in trace.spans:
            self.by_id.setdefault(span.span_id, span)
        self.children: dict[str, list[Span]] = {}
        self.has_root = False
        for span in self.by_id.values():
            if span.parent_id:
                self.children.setdefault(span.parent_id, []).append(span)
            else:
                self.has_root = True

    def is_entry(self, span: Span) -> bool:
        """Whether a call enters the span's service with it.

        A part of a call whose span is missing is one too: the call is then incomplete.
        """
        parent = self.by_id.get(span.parent_id)
        return parent is None or parent.service != span.service

    def outermost(self, span: Span) -> Span | Fault:
        """Returns the span with which the call of a span begins, or why there is none."""
        if span.parent_id and span.parent_id not in self.by_id and span.kind not in _RPC_KINDS:
            return Fault.INCOMPLETE
        seen = {span.span_id}
        while True:
            parent = self.by_id.get(span.parent_id)
            if parent is None:
                return Fault.INCOMPLETE if span.parent_id and self.has_root else span
            if parent.kind not in _RPC_KINDS:
                return span
            if parent.span_id in seen:
                return Fault.CYCLE
            seen.add(parent.span_id)
            span = parent

    def below(self, root: Span) -> list[Span]:
        """Returns a span and its descendants, parents first."""
        found, stack = [], [root]
        while stack:
            span = stack.pop()
            found.append(span)
            stack.extend(self.children.get(span.span_id, ()))
        return found


def _call(trace: Trace, tree: _Tree, root: Span, entries: Sequence[Span], service: str) -> Call:
    path = critical_path(root, tree.children)
    stages: dict[Stage, int] = {}
    stacks: dict[tuple[str, ...], int] = {}
    for part in stage_times(path, service):
        stages[part.stage] = stages.get(part.stage, 0) + part.time_us
        stacks[part.frames] = stacks.get(part.frames, 0) + part.time_us
    last = max(entries, key=lambda span: span.start_us + span.duration_us)
    inside = tree.below(last)
    batches = [span.tags[_BATCH] for span in inside if _BATCH in span.tags]
    return Call(
        trace_id=trace.trace_id,
        start_us=root.start_us,
        duration_us=root.duration_us,
        spans=len(tree.below(root)),
        operation=short_operation(last.operation),
        model=_first_tag(inside, _MODEL),
        version=_first_tag(inside, _VERSION),
        subset=_subset(tree, last, root),
        batch_size=max((each for each in batches if isinstance(each, int)), default=None),
        status=_status(root, last),
        stages=stages,
        stacks=stacks,
        skew_us=path.skew_us,
        has_caller=tree.has_root,
    )


def _first_tag(spans: Sequence[Span], key: str) -> str:
    return next((str(span.tags[key]) for span in spans if key in span.tags), "")


def _subset(tree: _Tree, span: Span, root: Span) -> str:
    while span is not root:
        span = tree.by_id[span.parent_id]
        if subset := subset_of(span):
            return subset
    return ""


def _status(root: Span, served: Span) -> str:
    """The status that the caller got; if the outermost span has none, that of the server."""
    return status_of(root) if root.is_error or has_status(root) else status_of(served)
