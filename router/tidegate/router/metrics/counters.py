"""Counters and histograms of what the router does, over all rollouts.

No label names a rollout, so the number of series does not grow with the rollouts. Every series
exists from the start, at 0: Prometheus takes the first value of a series as its start, and would
miss the first failure otherwise.
"""

from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Histogram

from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.status import ENDED, Phase, RolloutStatus

__all__ = [
    "APPLY_FAILURES",
    "APPLY_SECONDS",
    "EVALUATIONS",
    "EVALUATION_FAILURES",
    "EVALUATION_SECONDS",
    "LATENESS",
    "STATUS_WRITES",
    "count_events",
]

EVALUATIONS: Final = Counter(
    "tidegate_rollout_evaluations",
    "Evaluations of rollouts. One to which nothing is new is not evaluated.",
)
EVALUATION_FAILURES: Final = Counter(
    "tidegate_rollout_evaluation_failures", "Evaluations that ended with an error, which is logged."
)
EVALUATION_SECONDS: Final = Histogram(
    "tidegate_rollout_evaluation_seconds",
    "Time that an evaluation took: to look, to decide and to write.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LATENESS: Final = Histogram(
    "tidegate_rollout_evaluation_lateness_seconds",
    "Time from when an evaluation was due to its start.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
APPLY_SECONDS: Final = Histogram(
    "tidegate_rollout_apply_seconds",
    "Time from the start of a change of traffic until it was in force.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
APPLY_FAILURES: Final = Counter(
    "tidegate_rollout_apply_failures", "Changes of traffic that failed; the rollout tries again."
)
STATUS_WRITES: Final = Counter(
    "tidegate_rollout_status_writes",
    "Writes of statuses to the API server, by result. A conflict is written again.",
    ("result",),
)
_EVENTS: Final = Counter(
    "tidegate_rollout_events", "Events in the histories of all rollouts, by kind.", ("kind",)
)
_ENDED_AFTER: Final = Histogram(
    "tidegate_rollout_ended_after_seconds",
    "Time from a rollout's first change of traffic to its end, by the phase that it ended in.",
    ("phase",),
    buckets=(1, 5, 10, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400, 604_800),
)

for _kind in EventKind:
    _EVENTS.labels(_kind.value)
for _phase in ENDED:
    _ENDED_AFTER.labels(_phase.value)
for _result in ("written", "conflict", "failed"):
    STATUS_WRITES.labels(_result)


def count_events(events: Iterable[Event], before: Phase, status: RolloutStatus) -> None:
    """Counts the events of a step, and times the rollout if the step ended it.

    Args:
        events: The events.
        before: The rollout's phase before the step.
        status: Its status after the step.
    """
    for event in events:
        _EVENTS.labels(event.kind.value).inc()
    if status.phase not in ENDED or before in ENDED:
        return
    if status.started_s is not None and status.ended_s is not None:
        _ENDED_AFTER.labels(status.phase.value).observe(status.ended_s - status.started_s)
