"""Stages: what the time of a span is spent on, by name and by kind.

A stage is a service and the name of a span in it. Its kind says whether its time is waiting,
computing, the server's own work, or outside of the server:

- A span within a server may say its kind itself, with the attribute ``tidegate.stage``.
- Without it, spans that are named ``queue`` or ``batch`` are waiting, and others computing.
- The time of the server's span that is in none of these spans is the server's: it parses, checks,
  schedules and encodes.
- The rest is outside: the client, proxies, the network, servers in front.

The span of a language model's answer has no spans inside. If it says how long the request was in
the engine's queue and when the first token came, its time is divided there: the request waits, then
the model reads the prompt, and then it writes the answer.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from tidegate.trace_analysis.critical_path import Path, PathSpan, Segment
from tidegate.trace_analysis.spans import Span, short_operation

__all__ = ["STAGE_ATTRIBUTE", "Stage", "StageKind", "StageTime", "stage_times"]

STAGE_ATTRIBUTE: Final = "tidegate.stage"
"""The attribute by which a span says its kind: ``queue`` or ``compute``."""

_FIRST_TOKEN: Final = "gen_ai.response.time_to_first_chunk"  # noqa: S105  # no password
_QUEUE: Final = "tidegate.queue_s"
_NEVER: Final = 2**63
# Nobody can read a deeper flame graph, and a trace of thousands of levels would need much memory.
_MOST_FRAMES: Final = 100
_WAITING: Final = frozenset({"batch", "queue"})


class StageKind(enum.StrEnum):
    """What the time of a stage is spent on."""

    QUEUE = "queue"
    COMPUTE = "compute"
    SERVER = "server"
    OUTSIDE = "outside"


class Stage(NamedTuple):
    """A stage.

    Attributes:
        name: Its service and name.
        kind: What its time is spent on.
    """

    name: str
    kind: StageKind


@dataclass(frozen=True, slots=True)
class StageTime:
    """Time of a critical path that is spent on a stage.

    Attributes:
        stage: The stage.
        frames: The names of the spans from the root down to it, the first hundred.
        time_us: The time, in microseconds.
    """

    stage: Stage
    frames: tuple[str, ...]
    time_us: int


def stage_times(path: Path, service: str) -> Iterator[StageTime]:
    """Divides a critical path into stages.

    Args:
        path: The critical path.
        service: The service whose inside is told apart.
    """
    stages: list[Stage] = []
    frames: list[tuple[str, ...]] = []
    for each in path.spans:
        span = each.span
        is_inside = each.parent >= 0 and path.spans[each.parent].span.service == service
        if span.service != service:
            kind = StageKind.OUTSIDE
        else:
            kind = _kind_inside(span) if is_inside else StageKind.SERVER
        name = f"{span.service} {short_operation(span.operation)}".strip()
        stages.append(Stage(name, kind))
        above = frames[each.parent] if each.parent >= 0 else ()
        frames.append((*above, name) if len(above) < _MOST_FRAMES else above)
    for segment in path.segments:
        place = segment.place
        phases = _phases(path.spans[place], stages[place])
        if phases:
            yield from _divided(segment, frames[place], phases)
        else:
            yield StageTime(stages[place], frames[place], segment.end_us - segment.start_us)


def _kind_inside(span: Span) -> StageKind:
    said = span.tags.get(STAGE_ATTRIBUTE)
    if said == StageKind.QUEUE:
        return StageKind.QUEUE
    if said == StageKind.COMPUTE or span.operation not in _WAITING:
        return StageKind.COMPUTE
    return StageKind.QUEUE


def _phases(on_path: PathSpan, stage: Stage) -> "list[tuple[int, Stage]]":
    """Returns the stages of a language model's answer, each with when it ends by the root's clock.

    Without the time of the first token there is only one.
    """
    span = on_path.span
    first_s, queue_s = span.tags.get(_FIRST_TOKEN), span.tags.get(_QUEUE)
    # The gateway's span has the attribute too, and more inside.
    if not isinstance(first_s, int | float) or span.kind in ("client", "server"):
        return []
    begin_us = span.start_us + on_path.moved_us
    first_us = begin_us + round(first_s * 1e6)
    phases = [
        (first_us, Stage(f"{stage.name}, to the first token", stage.kind)),
        (_NEVER, Stage(f"{stage.name}, after the first token", stage.kind)),
    ]
    if isinstance(queue_s, int | float):
        queue_end_us = min(begin_us + round(queue_s * 1e6), first_us)
        queued = Stage(f"{stage.name}, in the engine's queue", StageKind.QUEUE)
        phases.insert(0, (queue_end_us, queued))
    return phases


def _divided(
    segment: Segment, frames: tuple[str, ...], phases: "list[tuple[int, Stage]]"
) -> Iterator[StageTime]:
    begin_us = segment.start_us
    for end_us, stage in phases:
        end_us = min(end_us, segment.end_us)
        if begin_us < end_us:
            part = stage.name.rpartition(", ")[2]
            yield StageTime(stage, (*frames, part), end_us - begin_us)
            begin_us = end_us
