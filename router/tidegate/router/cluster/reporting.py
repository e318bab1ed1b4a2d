"""What people see of rollouts at the API server beside their statuses: Events and problems.

Each event of a rollout's history becomes an Event of Kubernetes, for `kubectl describe rollout`. A
problem that lasts, such as traffic that cannot be read, becomes one too, and is in the status.
"""

import time
from typing import Final

from tidegate.kube.cache import ObjectCache
from tidegate.kube.events import EventRecorder, Happening, Severity
from tidegate.kube.resources import ROLLOUTS, Manifest
from tidegate.rollout.engine.history import EventKind
from tidegate.router.crd_store import CrdStore
from tidegate.router.errors import StoreError
from tidegate.router.registry import Registry, RolloutRecord
from tidegate.runtime.logging import get_logger

__all__ = ["Reporter"]

_log = get_logger(__name__)

_WARNINGS: Final = frozenset(
    {
        EventKind.ABORTED,
        EventKind.ABORTING,
        EventKind.FOREIGN_CHANGE,
        EventKind.REFUSED,
        EventKind.SPLIT_FAILED,
    }
)
# The words of a problem may have numbers that grow; each would be a write.
_TOLD_AGAIN_S: Final = 10.0


class Reporter:
    """Tells people what happens to rollouts.

    What happened before it was made is not told again.

    Args:
        registry: The rollouts.
        rollouts: Their objects.
        recorder: Writes Events.
        store: Writes statuses.
    """

    def __init__(
        self,
        registry: Registry,
        rollouts: ObjectCache[Manifest],
        recorder: EventRecorder,
        store: CrdStore,
    ) -> None:
        self._registry = registry
        self._rollouts = rollouts
        self._recorder = recorder
        self._store = store
        self._events = {each.key: each.status.events for each in registry}
        # The problem that the status has, and when it was written.
        self._problems: dict[str, tuple[str, float]] = {}

    async def run(self) -> None:
        """Tells until the task is cancelled."""
        with self._registry.watching() as watcher:
            while True:
                for key in await watcher.take():
                    record = self._registry.get(key)
                    if record is None:
                        self._events.pop(key, None)
                        self._problems.pop(key, None)
                        continue
                    manifest = self._rollouts.get(key)
                    if manifest is not None:
                        self._tell_events(record, manifest)
                        await self._tell_problem(record, manifest)

    def _tell_events(self, record: RolloutRecord, manifest: Manifest) -> None:
        told = self._events.get(record.key, 0)
        self._events[record.key] = record.status.events
        for event in record.last_events:
            if event.number > told:
                severity = Severity.WARNING if event.kind in _WARNINGS else Severity.NORMAL
                self._record(manifest, severity, event.kind.value, "Rollout", event.message)

    async def _tell_problem(self, record: RolloutRecord, manifest: Manifest) -> None:
        key, problem, now_s = record.key, record.problem, time.monotonic()
        before, told_s = self._problems.get(key, ("", float("-inf")))
        if problem == before or (problem and before and now_s - told_s < _TOLD_AGAIN_S):
            return
        if problem:
            self._record(manifest, Severity.WARNING, "Problem", "Evaluate", problem)
        try:
            await self._store.tell_problem(key, problem)
        except StoreError as error:
            # The status tells it with its next write.
            _log.warning("problem of a rollout not written", rollout=key, error=str(error))
        self._problems[key] = (problem, now_s)

    def _record(
        self, manifest: Manifest, severity: Severity, reason: str, action: str, note: str
    ) -> None:
        self._recorder.record(
            Happening.to(
                *(ROLLOUTS, manifest), severity=severity, reason=reason, action=action, note=note
            )
        )
