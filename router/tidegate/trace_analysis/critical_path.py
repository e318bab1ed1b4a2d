"""The critical path of a call: at each moment the one span that the caller waits for.

The algorithm is that of CRISP (Zhang et al. 2022, "CRISP: Critical Path Analysis of Large-Scale
Microservice Architectures", USENIX ATC '22). It walks back from the end of a span. The child that
ended last is on the path, and the time after its end is the span's own. Before the start of that
child, the path goes on with the last child that had ended by then. A child that overlaps with one
on the path is not on it: to make it faster would not make the call faster.

The segments of a path divide the root's time: they neither overlap nor leave a gap. So the times of
stages add up to the duration of the call, and their means over calls to the mean duration.

**Clocks.** Two hosts may disagree about the time. A child that begins before its parent shows that.
As Jaeger does, such a child is then moved into the middle of its parent, with all spans that share
its clock. A child that ends after its parent is cut: its caller did not wait for the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.trace_analysis.spans import Span

__all__ = ["Path", "PathSpan", "Segment", "critical_path"]

# Timestamps are rounded, and a thread may stop between two of them.
_TOLERANCE_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class PathSpan:
    """A span on a critical path.

    Attributes:
        span: The span.
        parent: Where its parent is in `Path.spans`; −1 for the root.
        moved_us: What to add to its times to have them by the root's clock.
    """

    span: Span
    parent: int
    moved_us: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a critical path: the caller waits for this span itself, not for a child of it.

    Attributes:
        place: Where the span is in `Path.spans`.
        start_us: When the part begins, by the root's clock.
        end_us: When it ends.
    """

    place: int
    start_us: int
    end_us: int


@dataclass(frozen=True, slots=True)
class Path:
    """The critical path of a call.

    Attributes:
        spans: The spans on the path; the root is the first, and parents stand before children.
        segments: The parts, in the order of time.
        skew_us: How far the clocks of two hosts differ at least, in microseconds; 0 if no spans
            contradict each other.
    """

    spans: tuple[PathSpan, ...]
    segments: tuple[Segment, ...]
    skew_us: int


def critical_path(root: Span, children: Mapping[str, Sequence[Span]]) -> Path:
    """Finds the critical path of a span.

    Args:
        root: The span.
        children: The children of each span, by its id. No span may be its own ancestor.
    """
    spans = [PathSpan(root, -1, 0)]
    segments: list[Segment] = []
    skew_us = 0
    # Not recursive: a trace may be deeper than Python's stack. An item is the place of a span and
    # the part of its time that is on the path.
    stack = [(0, root.start_us, root.start_us + root.duration_us)]
    while stack:
        place, low, high = stack.pop()
        span, moved_us = spans[place].span, spans[place].moved_us
        candidates = []
        for child in children.get(span.span_id, ()):
            child_moved_us, child_skew_us = _moved(span, moved_us, child)
            skew_us = max(skew_us, child_skew_us)
            start = max(child.start_us + child_moved_us, low)
            end = min(child.start_us + child.duration_us + child_moved_us, high)
            if start < end:
                candidates.append((-end, start, child.span_id, child_moved_us, child))
        # The last one first. Of two that end together, the longer one.
        candidates.sort(key=lambda each: each[:3])
        cursor = high
        for negative_end, start, _, child_moved_us, child in candidates:
            end = -negative_end
            if end > cursor:
                continue
            if end < cursor:
                segments.append(Segment(place, end, cursor))
            stack.append((len(spans), start, end))
            spans.append(PathSpan(child, place, child_moved_us))
            cursor = start
        if low < cursor:
            segments.append(Segment(place, low, cursor))
    segments.sort(key=lambda each: each.start_us)
    return Path(tuple(spans), tuple(segments), skew_us)


def _moved(parent: Span, parent_moved_us: int, child: Span) -> tuple[int, int]:
    """Returns how far to move a child's times to the root's clock, and the skew that shows."""
    if child.process == parent.process or (child.host and child.host == parent.host):
        return parent_moved_us, 0
    parent_start = parent.start_us + parent_moved_us
    early_us = parent_start - child.start_us
    late_us = child.start_us - parent_start - parent.duration_us
    # What begins after its parent has ended may be work that nobody waits for, unless it is a call.
    is_call = parent.kind == "client" and child.kind == "server"
    if early_us <= _TOLERANCE_US and not (is_call and late_us > _TOLERANCE_US):
        return 0, 0
    room_us = max(parent.duration_us - child.duration_us, 0)
    return early_us + room_us // 2, max(early_us, late_us)
