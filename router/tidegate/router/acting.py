"""The action of one rollout: puts a split in force, in a task of its own.

The engine gives no other action until the outcome of this one is in the status, but for an urgent
one, which takes the place of one that runs. What that one had begun goes on in the mesh, which then
decides the order.
"""

import asyncio

from tidegate.rollout.engine.inputs import ApplySplit, Outcome
from tidegate.router.epoch_tracking import EpochTracker
from tidegate.router.faults import FaultPoint
from tidegate.router.metrics.counters import APPLY_FAILURES, APPLY_SECONDS
from tidegate.router.registry import RolloutRecord
from tidegate.router.surroundings import Surroundings
from tidegate.runtime.logging import get_logger
from tidegate.traffic.router import TrafficError

__all__ = ["Actor"]

_log = get_logger(__name__)


class Actor:
    """Carries out the actions of one rollout, one at a time.

    Args:
        record: The rollout.
        around: What the loops share.
        wake: Set when an action has ended.

    Attributes:
        outcome: What became of the last action; None if it runs or has been taken in.
    """

    def __init__(self, record: RolloutRecord, around: Surroundings, wake: asyncio.Event) -> None:
        self.outcome: Outcome | None = None
        self._record = record
        self._around = around
        self._wake = wake
        self._running: asyncio.Task[None] | None = None
        self._running_id: int | None = None

    @property
    def is_applying(self) -> bool:
        """Whether an action runs."""
        return self._running is not None

    @property
    def is_idle(self) -> bool:
        """Whether no action runs and no outcome waits."""
        return self._running is None and self.outcome is None

    def begin(
        self, action: ApplySplit, host: str, epochs: EpochTracker, tasks: asyncio.TaskGroup
    ) -> None:
        """Begins an action, in place of one that runs, unless it runs already.

        Args:
            action: The action.
            host: The rollout's host.
            epochs: Learns when the weights change.
            tasks: Runs the action.
        """
        earlier = self._running
        if earlier is not None and self._running_id == action.id:
            return
        if earlier is not None:
            earlier.cancel()
        self._running_id = action.id
        self._running = tasks.create_task(self._act(action, host, epochs, earlier))

    async def _act(
        self,
        action: ApplySplit,
        host: str,
        epochs: EpochTracker,
        earlier: asyncio.Task[None] | None,
    ) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            outcome = await self._put_in_force(action, host, epochs)
        # A fault of the traffic router must not end the loop; the engine tries again.
        except Exception as error:  # noqa: BLE001 - it is the action's outcome
            _log.exception("fault while traffic was changed", rollout=self._record.key)
            outcome = Outcome(id=action.id, error=f"a fault of the router, see its log: {error!r}")
        if outcome.applied is None:
            APPLY_FAILURES.inc()
            epochs.change_failed(self._around.clock())
            _log.warning(
                "split not in force",
                rollout=self._record.key,
                split=str(action.split),
                error=outcome.error,
            )
        self.outcome = outcome
        self._running = None
        self._around.at(FaultPoint.OUTCOME_NOTED)
        self._wake.set()

    async def _put_in_force(self, action: ApplySplit, host: str, epochs: EpochTracker) -> Outcome:
        around = self._around
        epochs.change_begins(around.clock())
        around.at(FaultPoint.CHANGE_BEGUN)
        limit_s = around.settings.apply_timeout_s
        owner = "" if action.release else self._record.key
        try:
            async with asyncio.timeout(limit_s):
                traffic = around.traffic_of(self._record.rollout)
                applied = await traffic.apply(host, action.split, owner, urgent=action.urgent)
        except TrafficError as error:
            return Outcome(id=action.id, error=str(error), permanent=error.permanent)
        except TimeoutError:
            return Outcome(id=action.id, error=f"it did not come into force within {limit_s:g} s")
        around.at(FaultPoint.SPLIT_APPLIED)
        APPLY_SECONDS.observe(max(0.0, applied.since_s - applied.requested_s))
        epochs.change_ended(action.split, applied)
        return Outcome(id=action.id, applied=applied)
