"""The rules of other tools, and Tidegate's, on the same counts: when does each abort?

- *Argo Rollouts, documented*: the analysis of its documentation (every five minutes the success of
  the whole service is at least 95 %, ``failureLimit: 3``), scaled down by ten, so that it measures
  often enough in a rollout of ten minutes.
- *Argo Rollouts, expert*: every 10 s the candidate's success over 30 s is at least 99 %,
  ``failureLimit: 2``.
- *Flagger, documented*: every minute the candidate's success over that minute is at least 99 %,
  ``threshold: 5``. Flagger also halts the weights while a check fails, which is left out here.
- *z-test, peeked at*: the one-sided test of two proportions at 1 %, made for one look, after each
  window.
- *Tidegate*: an objective with its default tolerance (1.2 times plus 0.1 %) at ``falseAbort: 1%``.

In these scenarios every measurement has requests, so what a tool does without any never matters.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from many_runs import ManyRuns, plan_of

from tidegate.evidence.plan import RateTest

if TYPE_CHECKING:
    import numpy.typing as npt
    from traffic import Window

__all__ = ["RULES", "Rule", "SuccessRule", "TidegateRule", "ZTestRule"]

_Z_AT_1_PERCENT: Final = 2.3263


class Rule(Protocol):
    """Decides for many runs at once."""

    def observe(self, window: Window) -> npt.NDArray[np.bool_]:
        """Counts a window and returns which runs are aborted after it."""
        ...


class SuccessRule:
    """Aborts when too many measurements of a success rate fail.

    Args:
        runs: The number of runs.
        every_s: Time between measurements.
        over_s: The time over which a measurement counts.
        least: The success rate from which a measurement is good.
        failures: The number of failed measurements that aborts.
        whole_service: Whether both versions' requests count.
    """

    def __init__(
        self,
        runs: int,
        *,
        every_s: float,
        over_s: float,
        least: float,
        failures: int,
        whole_service: bool = False,
    ) -> None:
        self._every_s, self._over_s = every_s, over_s
        self._least, self._failures = least, failures
        self._whole_service = whole_service
        self._failed = np.zeros(runs, dtype=int)
        self._recent: deque[Window] = deque()

    def observe(self, window: Window) -> npt.NDArray[np.bool_]:
        """Counts a window and returns which runs are aborted after it."""
        self._recent.append(window)
        while self._recent[0].start_s < window.end_s - self._over_s - 1e-9:
            self._recent.popleft()
        if abs(window.end_s / self._every_s - round(window.end_s / self._every_s)) < 1e-9:
            trials = sum(each.trials_c for each in self._recent)
            events = sum(each.events_c for each in self._recent)
            if self._whole_service:
                trials = trials + sum(each.trials_b for each in self._recent)
                events = events + sum(each.events_b for each in self._recent)
            success = 1.0 - events / np.maximum(trials, 1)
            self._failed += success < self._least
        return self._failed >= self._failures


class ZTestRule:
    """Aborts when a z-test of the counts so far is significant, at any look."""

    def __init__(self, runs: int) -> None:
        self._counts = np.zeros((4, runs))

    def observe(self, window: Window) -> npt.NDArray[np.bool_]:
        """Counts a window and returns which runs are aborted after it."""
        self._counts += np.stack(
            (window.trials_c, window.events_c, window.trials_b, window.events_b)
        )
        trials_c, events_c, trials_b, events_b = self._counts
        some_c, some_b = np.maximum(trials_c, 1), np.maximum(trials_b, 1)
        pooled = (events_c + events_b) / np.maximum(trials_c + trials_b, 1)
        variance = pooled * (1.0 - pooled) * (1.0 / some_c + 1.0 / some_b)
        z = (events_c / some_c - events_b / some_b) / np.sqrt(np.maximum(variance, 1e-300))
        return (z > _Z_AT_1_PERCENT) & (variance > 0)


class TidegateRule:
    """Aborts when the evidence proves harm."""

    def __init__(self, runs: int) -> None:
        self._plan = plan_of(RateTest(ratio=1.2, margin=0.001))
        self._runs = ManyRuns(self._plan, runs, with_safety=False)

    def observe(self, window: Window) -> npt.NDArray[np.bool_]:
        """Counts a window and returns which runs are aborted after it."""
        self._runs.observe(window)
        return self._runs.harm_e() >= 1.0 / self._plan.false_abort


def _argo_documented(runs: int) -> Rule:
    return SuccessRule(runs, every_s=30.0, over_s=30.0, least=0.95, failures=4, whole_service=True)


def _argo_expert(runs: int) -> Rule:
    return SuccessRule(runs, every_s=10.0, over_s=30.0, least=0.99, failures=3)


def _flagger(runs: int) -> Rule:
    return SuccessRule(runs, every_s=60.0, over_s=60.0, least=0.99, failures=5)


RULES: Final = {
    "Tidegate": TidegateRule,
    "Argo Rollouts, expert": _argo_expert,
    "Argo Rollouts, documented": _argo_documented,
    "Flagger, documented": _flagger,
    "z-test, peeked at": ZTestRule,
}
"""The rules by name."""
