"""Kubernetes Events of rollouts: what `kubectl describe rollout` shows.

Each event of a rollout's history becomes one. A problem that lasts, such as traffic that cannot be
read, becomes one too, and again when its words change.
"""

from typing import Final

from tidegate.kube.cache import ObjectCache
from tidegate.kube.events import EventRecorder, Happening, Severity
from tidegate.kube.resources import ROLLOUTS, Manifest
from tidegate.rollout.engine.history import EventKind
from tidegate.router.registry import Registry, RolloutRecord

__all__ = ["report_events"]

_WARNINGS: Final = frozenset(
    {
        EventKind.ABORTED,
        EventKind.ABORTING,
        EventKind.FOREIGN_CHANGE,
        EventKind.REFUSED,
        EventKind.SPLIT_FAILED,
    }
)


async def report_events(
    registry: Registry, rollouts: ObjectCache[Manifest], recorder: EventRecorder
) -> None:
    """Reports what happens to rollouts, until the task is cancelled.

    What happened before the call is not reported again.

    Args:
        registry: The rollouts.
        rollouts: Their objects.
        recorder: Writes the Events.
    """
    reported = {each.key: (each.status.events, each.problem) for each in registry}
    with registry.watching() as watcher:
        while True:
            for key in await watcher.take():
                record, manifest = registry.get(key), rollouts.get(key)
                if record is None:
                    reported.pop(key, None)
                elif manifest is not None:
                    before = reported.get(key, (0, ""))
                    _report(record, manifest, recorder, *before)
                    reported[key] = (record.status.events, record.problem)


def _report(
    record: RolloutRecord, manifest: Manifest, recorder: EventRecorder, number: int, problem: str
) -> None:
    for event in record.last_events:
        if event.number > number:
            severity = Severity.WARNING if event.kind in _WARNINGS else Severity.NORMAL
            recorder.record(
                Happening.to(
                    *(ROLLOUTS, manifest),
                    severity=severity,
                    reason=event.kind.value,
                    action="Rollout",
                    note=event.message,
                )
            )
    if record.problem and record.problem != problem:
        recorder.record(
            Happening.to(
                *(ROLLOUTS, manifest),
                severity=Severity.WARNING,
                reason="Problem",
                action="Evaluate",
                note=record.problem,
            )
        )
