"""The test of a rate: does the candidate have more bad events than is tolerated?

Acceptable is p_c ≤ r·p_b + d in every window: ratio r, margin d. Three kinds of bets (see
`tidegate.evidence.bets`) run side by side, each valid at every moment:

- **harm**, against "acceptable", for candidates whose odds are 1.3 to 50 times the tolerated ones,
  once from the start and once in the change detector;
- **safety**, against "p_c ≥ r·p_b + d", for candidates well below the limit. Without any event it
  grows as exp(N_c·d·(1 − a)), so with d = 0.1 % about 4,000 requests without an event prove the
  candidate safe at 5 %;
- **the size of the effect**: bets against "the ratio is at most ρ" and "at least ρ" on a grid of ρ,
  and against "the difference is at least δ" on a grid of δ. The values that are not refuted are a
  confidence sequence (Howard, Ramdas, McAuliffe and Sekhon 2021, arXiv 1810.08240, "Time-uniform
  confidence sequences"). Its ends are grid points, rounded outwards.

The best estimates are those of Mantel and Haenszel (1959; for rates Rothman and Greenland 1998,
"Modern Epidemiology", 15): they compare the versions within each window, so a base rate that drifts
while the weights change does not bias them. With the counts of each window,

    ratio = Σ x·N_b/(N_c + N_b) ÷ Σ y·N_c/(N_c + N_b)
"""

import functools
import math
from typing import Final

import msgspec
import numpy as np

from tidegate.evidence.bets import (
    NOTHING,
    SAFE_ODDS,
    SAFE_PRIOR,
    Array,
    Bets,
    is_enough,
    join_bets,
    learning_bets,
    log_growth,
    log_mean,
    log_prior,
    one_sided_bets,
)
from tidegate.evidence.plan import RateTest
from tidegate.evidence.processes import (
    Clock,
    HarmEvidence,
    capped_exp,
    grow_changed,
    harm_evidence,
)
from tidegate.evidence.window import Counted

__all__ = [
    "HARM_ODDS",
    "HARM_PRIOR",
    "NO_TRIALS",
    "PRIOR_TRIALS",
    "RateState",
    "rate_bets",
]

HARM_ODDS: Final = (1.3, 2.0, 3.5, 7.0, 15.0, 50.0)
"""How much larger than tolerated the candidate's odds are, in each of the harm bets."""

HARM_PRIOR: Final = log_prior((1,) * len(HARM_ODDS))
"""The logarithms of the stakes of the harm bets."""

_RATIOS: Final = (
    *(0.01, 0.03, 0.1, 0.2, 0.33, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3),
    *(1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, 50.0, 100.0, 300.0, 1000.0),
)
_DIFFERENCES: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.007),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
)
NO_TRIALS: Final = Counted(0, 0)
"""No trials."""

_SAFE: Final = slice(len(HARM_ODDS), len(HARM_ODDS) + len(SAFE_ODDS))
_ABOVE: Final = slice(_SAFE.stop, _SAFE.stop + len(_RATIOS))
_BELOW: Final = slice(_ABOVE.stop, _ABOVE.stop + len(_RATIOS))
_EXCESS: Final = slice(_BELOW.stop, _BELOW.stop + len(_DIFFERENCES))
PRIOR_TRIALS: Final = 100.0
"""The weight of the first guess of the baseline's rate, in trials."""


@functools.lru_cache(maxsize=256)
def rate_bets(test: RateTest) -> Bets:
    """Returns all bets of a rate test: harm, safety, ratio above, ratio below, difference below."""
    none = [0.0] * len(_RATIOS)
    return join_bets(
        [
            one_sided_bets(test.ratio, test.margin, HARM_ODDS, is_harm=True),
            one_sided_bets(test.ratio, test.margin, SAFE_ODDS, is_harm=False),
            learning_bets(_RATIOS, none, is_harm=True),
            learning_bets(_RATIOS, none, is_harm=False),
            learning_bets([1.0] * len(_DIFFERENCES), _DIFFERENCES, is_harm=False),
        ]
    )


class RateState(msgspec.Struct, frozen=True, tag="rate"):
    """What is remembered for a rate test.

    Attributes:
        candidate: Counts of the candidate so far.
        baseline: Counts of the baseline so far.
        waiting: Counts of candidate and baseline that wait for more of the same share.
        share: The candidate's intended share when they were counted.
        matched_candidate: Σ x·N_b/(N_c + N_b), of Mantel and Haenszel's ratio.
        matched_baseline: Σ y·N_c/(N_c + N_b), of Mantel and Haenszel's ratio.
        stakes: The logarithm of what each bet holds, in the order of `rate_bets`.
        changed: The same for the harm bets of the change detector.
    """

    candidate: Counted = NO_TRIALS
    baseline: Counted = NO_TRIALS
    waiting: tuple[Counted, Counted] = (NO_TRIALS, NO_TRIALS)
    share: float = 0.0
    matched_candidate: float = 0.0
    matched_baseline: float = 0.0
    stakes: tuple[float, ...] = (0.0,) * _EXCESS.stop
    changed: tuple[float, ...] = (NOTHING,) * len(HARM_ODDS)

    def observe(
        self,
        test: RateTest,
        candidate: Counted,
        baseline: Counted,
        *,
        share: float = 0.0,
        stake: float = 0.0,
    ) -> "RateState":
        """Returns the state after a window.

        Args:
            test: The test.
            candidate: Counts of the candidate in the window.
            baseline: Counts of the baseline in the window.
            share: The candidate's intended share of both versions' requests.
            stake: What the change detector places before this window.
        """
        state = self if share == self.share else self._bet(test, 0.0)
        waiting = state.waiting[0] + candidate, state.waiting[1] + baseline
        state = msgspec.structs.replace(
            state,
            candidate=state.candidate + candidate,
            baseline=state.baseline + baseline,
            waiting=waiting,
            share=share,
        )
        if is_enough(waiting[0].trials, waiting[1].trials):
            return state._bet(test, stake)
        changed = grow_changed(np.array(state.changed), np.zeros(len(HARM_ODDS)), stake)
        return msgspec.structs.replace(state, changed=tuple(changed.tolist()))

    def _bet(self, test: RateTest, stake: float) -> "RateState":
        """Returns the state after bets on the counts that wait."""
        bets, (candidate, baseline) = rate_bets(test), self.waiting
        growth = log_growth(
            bets,
            (candidate.trials, candidate.events),
            (baseline.trials, baseline.events),
            _guess_rates(bets, self.candidate - candidate, self.baseline - baseline),
        )
        changed = grow_changed(np.array(self.changed), growth[: len(HARM_ODDS)], stake)
        trials = max(candidate.trials + baseline.trials, 1)
        return RateState(
            self.candidate,
            self.baseline,
            (NO_TRIALS, NO_TRIALS),
            self.share,
            self.matched_candidate + candidate.events * baseline.trials / trials,
            self.matched_baseline + baseline.events * candidate.trials / trials,
            tuple((np.array(self.stakes) + growth).tolist()),
            tuple(changed.tolist()),
        )

    def harm(self, clock: Clock, detector_share: float) -> HarmEvidence:
        """Returns the evidence against "acceptable"."""
        stakes = np.array(self.stakes[: len(HARM_ODDS)])
        return harm_evidence(stakes, np.array(self.changed), HARM_PRIOR, clock, detector_share)

    def safe_e(self) -> float:
        """Returns the e-value against "at or past the limit of what is tolerated"."""
        return capped_exp(float(log_mean(np.array(self.stakes[_SAFE]), SAFE_PRIOR)))

    @property
    def ratio(self) -> float | None:
        """The best estimate of the ratio of the rates; None if the baseline has no event."""
        if self.matched_baseline <= 0.0:
            return None
        return self.matched_candidate / self.matched_baseline

    def ratio_interval(self, error: float) -> tuple[float | None, float | None]:
        """Returns the ends of the ratio's confidence sequence; None for an end that is open.

        Args:
            error: The probability that the true ratio is ever outside.
        """
        limit = math.log(2.0 / error)
        above = _leading(np.array(self.stakes[_ABOVE]) >= limit)
        below = _leading(np.array(self.stakes[_BELOW])[::-1] >= limit)
        return (
            _RATIOS[above - 1] if above else None,
            _RATIOS[len(_RATIOS) - below] if below else None,
        )

    def excess_high(self, error: float) -> float:
        """Returns an upper confidence bound of the candidate's rate minus the baseline's."""
        refuted = np.array(self.stakes[_EXCESS])[::-1] >= math.log(1.0 / error)
        count = _leading(refuted)
        return _DIFFERENCES[len(_DIFFERENCES) - count] if count else 1.0

    def extra_events(self) -> float:
        """Returns how many events of the candidate the baseline's rate does not explain."""
        events = float(self.candidate.events)
        if self.matched_candidate > 0.0:
            return max(events * (1.0 - self.matched_baseline / self.matched_candidate), 0.0)
        expected = self.candidate.trials * (self.baseline.rate or 0.0)
        return max(events - expected, 0.0)


def _guess_rates(bets: Bets, candidate: Counted, baseline: Counted) -> tuple[Array, float]:
    """Returns guesses of the candidate's rate, for each bet, and of the baseline's rate.

    They are the observed rates, shrunk a little: the baseline's to a rate of 0.5 %, and the
    candidate's to a rate on the alternative's side of what the bet's null tolerates.
    """
    rate_b = (baseline.events + 0.5) / (baseline.trials + PRIOR_TRIALS)
    tolerated = bets.ratio * rate_b + bets.margin
    expected = np.minimum(np.where(bets.is_harm, 2.5, 0.4) * tolerated, 0.9)
    return (candidate.events + 0.5) / (candidate.trials + 0.5 / expected), rate_b


def _leading(flags: "np.ndarray[tuple[int], np.dtype[np.bool_]] | Array") -> int:
    """Returns how many flags in a row are set at the beginning."""
    unset = np.flatnonzero(~np.asarray(flags, dtype=np.bool_))
    return int(unset[0]) if unset.size else len(flags)
