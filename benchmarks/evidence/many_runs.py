"""The evidence of a rate objective, for many runs at once.

It calls the same bets as the engine, `tidegate.evidence.bets.log_growth`, with a row for each run.
`replay` gives the counts of some runs to the engine itself and compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tidegate.evidence.bets import (
    LEAST_ALONE,
    LEAST_EACH,
    NOTHING,
    SAFE_ODDS,
    SAFE_PRIOR,
    Bets,
    log_growth,
    log_mean,
)
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import EvidencePlan, Objective, RateTest
from tidegate.evidence.processes import Clock, grow_changed
from tidegate.evidence.rates import (
    HARM_ODDS,
    HARM_PRIOR,
    PRIOR_TRIALS,
    rate_bets,
)
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from traffic import Window

__all__ = ["ManyRuns", "plan_of", "replay"]

_HARM = len(HARM_ODDS)


def plan_of(
    test: RateTest, *, false_abort: float = 0.01, detector_share: float = 0.25
) -> EvidencePlan:
    """Returns a plan with one objective."""
    return EvidencePlan(
        baseline="v1",
        candidate="v2",
        objectives=(Objective(metric="failures", test=test),),
        false_abort=false_abort,
        detector_share=detector_share,
    )


class ManyRuns:
    """The evidence of many runs of a plan that has one rate objective."""

    def __init__(self, plan: EvidencePlan, runs: int, *, with_safety: bool = True) -> None:
        self._plan = plan
        test = plan.objectives[0].test
        assert isinstance(test, RateTest)
        count = _HARM + (len(SAFE_ODDS) if with_safety else 0)
        self._bets = Bets(*(column[:count] for column in rate_bets(test)))
        self._stakes = np.zeros((runs, count))
        self._changed = np.full((runs, _HARM), NOTHING)
        # Per run: trials and events of the candidate, then of the baseline.
        self._waiting = np.zeros((runs, 4))
        self._settled = np.zeros((runs, 4))
        self._share = 0.0
        self._clock = Clock()

    def keep(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Goes on with some of the runs only."""
        self._stakes, self._changed = self._stakes[chosen], self._changed[chosen]
        self._waiting, self._settled = self._waiting[chosen], self._settled[chosen]

    def observe(self, window: Window) -> None:
        """Counts a window."""
        self._clock, stake = self._clock.pass_window(
            window.start_s, window.end_s, self._plan.within_s
        )
        if window.share != self._share:
            self._bet(np.ones(len(self._waiting), dtype=bool), 0.0)
            self._share = window.share
        self._waiting += np.stack(
            (window.trials_c, window.events_c, window.trials_b, window.events_b), axis=1
        )
        trials_c, trials_b = self._waiting[:, 0], self._waiting[:, 2]
        enough = (trials_b >= LEAST_EACH) | (trials_c >= LEAST_ALONE)
        self._bet(enough & (trials_c >= LEAST_EACH), stake)

    def _bet(self, chosen: npt.NDArray[np.bool_], stake: float) -> None:
        counts = np.where(chosen[:, None], self._waiting, 0.0)
        trials_c, events_c, trials_b, events_b = np.split(counts, 4, axis=1)
        guess = (self._settled[:, 3:] + 0.5) / (self._settled[:, 2:3] + PRIOR_TRIALS)
        growth = log_growth(self._bets, (trials_c, events_c), (trials_b, events_b), (guess, guess))
        self._stakes += growth
        if self._plan.detector_share:
            self._changed = grow_changed(self._changed, growth[:, :_HARM], stake)
        self._settled += counts
        self._waiting -= counts

    def harm_e(self) -> npt.NDArray[np.float64]:
        """Returns the e-value of harm of each run."""
        share = self._plan.detector_share
        start = np.exp(np.minimum(log_mean(self._stakes[:, :_HARM], HARM_PRIOR), 690.0))
        if not share:
            return start
        changed = np.exp(np.minimum(log_mean(self._changed, HARM_PRIOR), 690.0))
        return (1.0 - share) * start + share * (changed + 1.0 - self._clock.placed)

    def safe_e(self) -> npt.NDArray[np.float64]:
        """Returns the e-value of safety of each run."""
        return np.exp(np.minimum(log_mean(self._stakes[:, _HARM:], SAFE_PRIOR), 690.0))


def replay(plan: EvidencePlan, seen: Sequence[Window], runs: int) -> tuple[float, int]:
    """Gives the counts of runs to the engine, window by window.

    Returns:
        The largest relative difference of an e-value between the engine and `ManyRuns`, and the
        number of compared e-values.
    """
    many = ManyRuns(plan, runs)
    states = [begin(plan) for _ in range(runs)]
    largest, compared = 0.0, 0
    for window in seen:
        many.observe(window)
        harm, safe = many.harm_e(), many.safe_e()
        for run in range(runs):
            states[run] = observe(plan, states[run], _engine_window(window, run))
            said = assess(plan, states[run]).objectives[0]
            for ours, theirs in ((harm[run], said.harm_e), (safe[run], said.safe_e)):
                largest = max(largest, abs(ours - theirs) / max(theirs, 1e-300))
                compared += 1
    return largest, compared


def _engine_window(window: Window, run: int) -> TrafficWindow:
    counts = {
        "v1": (int(window.trials_b[run]), int(window.events_b[run])),
        "v2": (int(window.trials_c[run]), int(window.events_c[run])),
    }
    return TrafficWindow(
        start_s=window.start_s,
        end_s=window.end_s,
        shares={"v1": 1.0 - window.share, "v2": window.share},
        versions={
            name: VersionTraffic(requests=trials, rates={"failures": Counted(trials, events)})
            for name, (trials, events) in counts.items()
        },
    )
