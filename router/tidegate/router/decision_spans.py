"""The decisions of a rollout as spans, linked to calls that they were about.

A run of a rollout, from its start to its end, is one trace. Each event of its history is a span
that ends when the event happened and begins with the event before: it covers the time in which the
evidence came together, or a change of traffic came into force. The root comes when the run ends.

The ids follow from the rollout and the start of its run. So a router that takes over adds to the
trace that its predecessor began, and a decision that is taken again, because nobody knows whether
it was written, is the same span. Spans may be lost; the history has every event.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.inputs import Step
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.registry import RolloutRecord
from tidegate.router.sources.source import Exemplar
from tidegate.runtime import tracing
from tidegate.runtime.span_ids import SpanIds
from tidegate.runtime.tracing import LinkedSpan

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = ["MAX_LINKS", "record_decisions"]

MAX_LINKS: Final = 16
"""How many calls a decision is linked to at most."""

_ON_EVIDENCE: Final = frozenset(
    {
        EventKind.SPLIT_DECIDED,
        EventKind.STAGE_ENTERED,
        EventKind.PAUSED,
        EventKind.PROMOTING,
        EventKind.ABORTING,
        EventKind.COMPLETING,
    }
)
_ENDS: Final = frozenset(
    {EventKind.PROMOTED, EventKind.ABORTED, EventKind.COMPLETED, EventKind.SUPERSEDED}
)
_FAILURES: Final = frozenset({EventKind.SPLIT_FAILED, EventKind.ABORTING, EventKind.ABORTED})


def record_decisions(record: RolloutRecord, step: Step, exemplars: Iterable[Exemplar]) -> None:
    """Records the events of a step as spans. Without tracing it costs one comparison.

    Args:
        record: The rollout, before it has the step.
        step: The step.
        exemplars: Calls that stand for the evidence, the most telling ones first.
    """
    key, status = record.key, step.status
    if not step.events or not tracing.is_on() or status.started_s is None:
        return
    run = f"{key}\n{status.generation}\n{status.started_s!r}"
    title = f"rollout {key}"
    root = SpanIds.of_names(run, "")
    parent = tracing.parent_of(root, title)
    links = _links(exemplars)
    before_s = record.last_events[-1].time_s if record.last_events else 0.0
    begin_s = max(before_s, status.started_s)
    for event in step.events:
        begin_s = min(begin_s, event.time_s)
        attributes = _attributes(key, status, event)
        error = event.message if event.kind in _FAILURES else ""
        tracing.record_span(
            event.kind.value,
            _nanoseconds(begin_s),
            _nanoseconds(event.time_s),
            parent,
            attributes,
            links=links if event.kind in _ON_EVIDENCE else (),
            error=error,
            ids=SpanIds.of_names(run, str(event.number)),
        )
        if event.kind in _ENDS:
            tracing.record_span(
                title,
                _nanoseconds(status.started_s),
                _nanoseconds(event.time_s),
                tracing.no_parent(),
                attributes,
                error=error,
                ids=root,
            )
        begin_s = event.time_s


def _links(exemplars: Iterable[Exemplar]) -> tuple[LinkedSpan, ...]:
    links: dict[SpanIds, LinkedSpan] = {}
    for each in exemplars:
        ids = SpanIds.parse(each.trace_id, each.span_id)
        if ids is not None and len(links) < MAX_LINKS:
            attributes = {"tidegate.version": each.version, "tidegate.why": each.why}
            links.setdefault(ids, LinkedSpan(ids, attributes))
    return tuple(links.values())


def _attributes(key: str, status: RolloutStatus, event: Event) -> "dict[str, AttributeValue]":
    attributes: dict[str, AttributeValue] = {
        "tidegate.rollout": key,
        "tidegate.rollout.generation": status.generation,
        "tidegate.rollout.event": event.number,
        "tidegate.rollout.phase": status.phase.value,
        "tidegate.rollout.stage": status.stage,
        "tidegate.rollout.why": event.message,
    }
    if status.desired is not None:
        attributes["tidegate.rollout.split"] = str(status.desired)
    for name, number in event.numbers.items():
        attributes[f"tidegate.rollout.numbers.{name}"] = number
    return attributes


def _nanoseconds(time_s: float) -> int:
    return round(time_s * 1e9)
