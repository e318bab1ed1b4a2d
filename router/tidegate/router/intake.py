"""What comes in as evidence of one rollout: its epochs, the windows that wait, and what is missing.

A fault of the source or of a test must keep nobody from aborting the rollout. So it is reported
here, and the rollout goes on without these windows.
"""

from typing import Final

from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.router.epoch_tracking import EpochTracker, Resumed
from tidegate.router.metrics.counters import EVALUATION_FAILURES
from tidegate.router.registry import RolloutRecord
from tidegate.router.sources.source import Exemplar
from tidegate.router.surroundings import Surroundings
from tidegate.runtime.logging import get_logger

__all__ = ["Intake", "report_fault"]

_log = get_logger(__name__)

# Windows that no step could take in, because of a fault, wait for the next turn.
_MAX_WAITING: Final = 1_000
_NONE: Final[tuple[TrafficWindow, ...]] = ()


class Intake:
    """The evidence of one rollout.

    Args:
        record: The rollout.
        around: What the loops share.

    Attributes:
        windows: The windows that no step has taken in.
    """

    def __init__(self, record: RolloutRecord, around: Surroundings) -> None:
        self.windows = _NONE
        self._record = record
        self._around = around
        self._epochs: EpochTracker | None = None
        # What is wrong now, and since when evidence has been missing.
        self._fault = ""
        self._missing_since_s: float | None = None

    def epochs(self, host: str) -> EpochTracker:
        """Returns the epochs of the rollout; its traffic counts from the first call on."""
        if self._epochs is None:
            rollout = self._record.rollout
            self._epochs = EpochTracker(
                *(self._around.source_of(rollout), rollout.key, rollout.spec, host),
                prometheus_url=self._around.settings.prometheus_url,
                resumed=_resumed(self._record.status),
            )
        return self._epochs

    @property
    def is_settled(self) -> bool:
        """Whether another look at the same traffic would change nothing."""
        return self._epochs is None or self._epochs.is_settled

    @property
    def exemplars(self) -> tuple[Exemplar, ...]:
        """Some traced calls that stand for what was counted."""
        return () if self._epochs is None else self._epochs.exemplars

    @property
    def has_news(self) -> bool:
        """Whether there may be windows to take, or evidence is missing."""
        return bool(self.windows) or (self._epochs is not None and self._epochs.has_news)

    def saw_the_same(self, now_s: float) -> None:
        """Notes that the traffic is what the last turn found."""
        if self._epochs is not None:
            self._epochs.saw_the_same(now_s)

    async def take(self, now_s: float) -> None:
        """Takes the windows that have come together since the last turn."""
        self._fault = ""
        if self._epochs is None:
            return
        try:
            windows = await self._epochs.take(now_s)
        except Exception as error:  # noqa: BLE001 - reported as missing evidence
            self.fault("the evidence cannot be taken", error)
            return
        self.windows = (*self.windows, *windows)[-_MAX_WAITING:]
        for window in windows:
            for version, traffic in window.versions.items():
                self._record.counted[version] += traffic.requests

    def used(self) -> None:
        """Notes that a step has taken in the windows."""
        self.windows = _NONE

    def fault(self, what: str, error: Exception) -> None:
        """Reports a fault until the next turn."""
        self._fault = report_fault(self._record, what, error)

    def problem(self, now_s: float) -> str:
        """Why evidence is missing, if it was missing at an earlier turn too.

        Sources need a moment, and turns may follow each other at once: those do not count.

        Args:
            now_s: The time, in seconds since the epoch.
        """
        if self._fault:
            return self._fault
        missing = self._epochs.problem if self._epochs else ""
        if not missing:
            self._missing_since_s = None
            return ""
        # Not the same words: a problem may have numbers that grow.
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        moment_s = self._around.settings.evaluate_interval_s / 2
        return missing if now_s - self._missing_since_s >= moment_s else ""

    def stop(self) -> None:
        """Counts no longer."""
        if self._epochs is not None:
            self._epochs.end()
            self._epochs = None
        self.windows = _NONE


def _resumed(status: RolloutStatus) -> Resumed | None:
    """The epoch that a stored status is in; None while its split is not in force."""
    if status.desired is None or status.in_force_since_s is None or not status.is_settled:
        return None
    since_s = max(status.counted_until_s, status.in_force_since_s)
    return Resumed(split=status.desired, since_s=since_s, requests_per_s=status.requests_per_s)


def report_fault(record: RolloutRecord, what: str, error: Exception) -> str:
    """Counts a fault, logs it once with its traceback, and returns it in words.

    Args:
        record: The rollout.
        what: What could not be done.
        error: Why.
    """
    EVALUATION_FAILURES.inc()
    words = f"{what}: {str(error) or repr(error)}"
    if words != record.problem:
        _log.exception("evaluation failed", rollout=record.key)
    return words
