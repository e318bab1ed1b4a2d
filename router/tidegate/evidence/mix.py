"""The test of a mix: do the versions' answers divide among categories in the same way?

The distance is the total variation distance, max over sets A of categories of |P_c(A) − P_b(A)|:
the share of answers that would have to change category. Acceptable is a distance of at most d.

**Harm.** A is the set of categories that the candidate had more of in earlier windows. Acceptable
implies P_c(A) ≤ P_b(A) + d, a comparison of two rates with margin d, so the bets of
`tidegate.evidence.bets` apply. The share in A beyond the baseline's, counted only in later windows,
is also an estimate of the distance that noise does not inflate, unlike the distance of the
observed shares.

**Safety.** The null is "some set A has P_c(A) − P_b(A) ≥ d in every window". For a fixed A, with
the weights w = N_c·N_b/(N_c + N_b) of each window and W = Σ w, the sum S_A of
w·(x_A/N_c − y_A/N_b) has a mean of at least W·d and is sub-Gaussian with variance W/4 (Hoeffding
1963), so exp(λ·(W·d − S_A) − λ²·W/8) is an e-process for each λ. All sets but the true one may only
lower the smallest e-value over sets, so that smallest is an e-value of the null without any
correction for the number of sets. It is at the set A of all categories with S_k > 0. An average
over λ makes it adapt (Robbins 1970).

The state names the most frequent categories and puts all others into groups by the CRC-32 of their
name, so its size is bounded, and a category that takes over is seen even without a name of its own.
A category keeps its place once it has one.
"""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from tidegate.evidence.bets import (
    NOTHING,
    Array,
    Bets,
    join_bets,
    learning_bets,
    log_growth,
    log_mean,
    log_prior,
    one_sided_bets,
)
from tidegate.evidence.plan import MixTest
from tidegate.evidence.processes import (
    Clock,
    HarmEvidence,
    capped_exp,
    grow_changed,
    harm_evidence,
)
from tidegate.evidence.window import Counted

__all__ = ["MixState"]

_NAMED: Final = 48
_GROUPS: Final = 16
_SLOTS: Final = _NAMED + _GROUPS
_HARM_ODDS: Final = (1.1, 1.25, 1.5, 2.0, 4.0, 10.0, 40.0)
_HARM: Final = len(_HARM_ODDS)
_HARM_PRIOR: Final = log_prior((1,) * _HARM)
_DISTANCES: Final = (
    *(0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3),
    *(0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95),
)
_SAFE_RATES: Final = np.array((0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6))
"""The λ of the safety bets."""

_SAFE_PRIOR: Final = log_prior((1,) * len(_SAFE_RATES))


@functools.lru_cache(maxsize=256)
def _mix_bets(test: MixTest) -> Bets:
    """Returns all bets of a mix test: harm, and a distance of at least each."""
    return join_bets(
        [
            one_sided_bets(1.0, test.distance, _HARM_ODDS, is_harm=True),
            learning_bets([1.0] * len(_DISTANCES), _DISTANCES, is_harm=True),
        ]
    )


class MixState(msgspec.Struct, frozen=True, tag="mix"):
    """What is remembered for a mix test.

    Attributes:
        names: The named categories, in the order of their places; places after them are empty, and
            the last places are the groups of all other categories.
        candidate: Answers of the candidate, by place.
        baseline: Answers of the baseline, by place.
        differences: S_k, by place.
        weight: W.
        chosen: The candidate's answers in the set A of each window, and all of them.
        chosen_baseline: The same of the baseline.
        matched: Σ w·(x_A/N_c − y_A/N_b) over the chosen sets.
        matched_weight: Σ w of the windows that had a chosen set.
        start: The logarithm of what each harm bet holds.
        changed: The same for the change detector.
        distances: The same for each distance of the confidence sequence.
    """

    names: tuple[str, ...] = ()
    candidate: tuple[int, ...] = (0,) * _SLOTS
    baseline: tuple[int, ...] = (0,) * _SLOTS
    differences: tuple[float, ...] = (0.0,) * _SLOTS
    weight: float = 0.0
    chosen: Counted = Counted(0, 0)
    chosen_baseline: Counted = Counted(0, 0)
    matched: float = 0.0
    matched_weight: float = 0.0
    start: tuple[float, ...] = (0.0,) * _HARM
    changed: tuple[float, ...] = (NOTHING,) * _HARM
    distances: tuple[float, ...] = (0.0,) * len(_DISTANCES)

    def observe(
        self, test: MixTest, candidate: Mapping[str, int], baseline: Mapping[str, int], stake: float
    ) -> "MixState":
        """Returns the state after a window.

        Args:
            test: The test.
            candidate: Answers of the candidate in the window, by category.
            baseline: Answers of the baseline in the window, by category.
            stake: What the change detector places before this window.
        """
        # A new category gets its place after the window, for the set A must not depend on it.
        later = _with_new_names(self.names, candidate, baseline)
        names = self.names or later
        places = {name: place for place, name in enumerate(names)}
        counts_c, counts_b = _by_place(places, candidate), _by_place(places, baseline)
        weight, differences = _weight(counts_c, counts_b), np.array(self.differences)
        if weight:
            shares_c, shares_b = counts_c / counts_c.sum(), counts_b / counts_b.sum()
            differences = differences + weight * (shares_c - shares_b)
        return msgspec.structs.replace(
            self._bet(test, counts_c, counts_b, stake),
            names=later,
            candidate=tuple((np.array(self.candidate) + counts_c).astype(int).tolist()),
            baseline=tuple((np.array(self.baseline) + counts_b).astype(int).tolist()),
            differences=tuple(differences.tolist()),
            weight=self.weight + weight,
        )

    def _bet(self, test: MixTest, counts_c: Array, counts_b: Array, stake: float) -> "MixState":
        """Returns the state after bets on the set of categories that earlier windows chose."""
        before_c, before_b = np.array(self.candidate), np.array(self.baseline)
        total_c, total_b = int(before_c.sum()), int(before_b.sum())
        weight = _weight(counts_c, counts_b)
        if not (total_c and total_b and weight):
            changed = grow_changed(np.array(self.changed), np.zeros(_HARM), stake)
            return msgspec.structs.replace(self, changed=tuple(changed.tolist()))
        inside = before_c / total_c > before_b / total_b
        chosen = Counted(int(counts_c.sum()), int(counts_c[inside].sum()))
        chosen_b = Counted(int(counts_b.sum()), int(counts_b[inside].sum()))
        guess = (
            (int(before_c[inside].sum()) + 0.5) / (total_c + 1.0),
            (int(before_b[inside].sum()) + 0.5) / (total_b + 1.0),
        )
        growth = log_growth(
            _mix_bets(test),
            (chosen.trials, chosen.events),
            (chosen_b.trials, chosen_b.events),
            guess,
        )
        difference = chosen.events / chosen.trials - chosen_b.events / chosen_b.trials
        changed = grow_changed(np.array(self.changed), growth[:_HARM], stake)
        return msgspec.structs.replace(
            self,
            chosen=self.chosen + chosen,
            chosen_baseline=self.chosen_baseline + chosen_b,
            matched=self.matched + weight * difference,
            matched_weight=self.matched_weight + weight,
            start=tuple((np.array(self.start) + growth[:_HARM]).tolist()),
            changed=tuple(changed.tolist()),
            distances=tuple((np.array(self.distances) + growth[_HARM:]).tolist()),
        )

    def harm(self, clock: Clock, detector_share: float) -> HarmEvidence:
        """Returns the evidence against "acceptable"."""
        return harm_evidence(
            np.array(self.start), np.array(self.changed), _HARM_PRIOR, clock, detector_share
        )

    def safe_e(self, test: MixTest) -> float:
        """Returns the e-value against "the distance is at or past the limit"."""
        largest = sum(each for each in self.differences if each > 0.0)
        room = self.weight * test.distance - largest
        logs = _SAFE_RATES * room - _SAFE_RATES**2 * self.weight / 8.0
        return capped_exp(float(log_mean(logs, _SAFE_PRIOR)))

    @property
    def distance(self) -> float | None:
        """The best estimate of the distance; None without data."""
        if self.matched_weight <= 0.0:
            return None
        return max(self.matched / self.matched_weight, 0.0)

    def interval(self, error: float) -> tuple[float | None, float | None]:
        """Returns the ends of the distance's confidence sequence.

        Args:
            error: The probability that the true distance is ever outside.
        """
        limit = math.log(2.0 / error)
        low = None
        for distance, stake in zip(_DISTANCES, self.distances, strict=True):
            if stake < limit:
                break
            low = distance
        return low, self._high(limit)

    def largest_change(self) -> tuple[str, float, float] | None:
        """Returns the named category whose share differs most, with both shares.

        The shares are the candidate's and the baseline's.
        """
        total_c, total_b = sum(self.candidate), sum(self.baseline)
        if not self.names or not total_c or not total_b:
            return None
        shares = [
            (name, self.candidate[place] / total_c, self.baseline[place] / total_b)
            for place, name in enumerate(self.names)
        ]
        return max(shares, key=lambda each: abs(each[1] - each[2]))

    def _high(self, limit: float) -> float | None:
        if self.weight <= 0.0:
            return None
        # The smallest d whose safety bet, for the best of a few λ, is refuted.
        largest = sum(each for each in self.differences if each > 0.0)
        needed = limit + math.log(len(_SAFE_RATES))
        highs: Array = (largest + needed / _SAFE_RATES) / self.weight + _SAFE_RATES / 8.0
        high = float(highs.min())
        return high if high < 1.0 else None


def _weight(counts_c: Array, counts_b: Array) -> float:
    """Returns N_c·N_b/(N_c + N_b), which is 0 if either version has no answer."""
    trials_c, trials_b = float(counts_c.sum()), float(counts_b.sum())
    return trials_c * trials_b / max(trials_c + trials_b, 1.0)


def _with_new_names(
    names: tuple[str, ...], candidate: Mapping[str, int], baseline: Mapping[str, int]
) -> tuple[str, ...]:
    if len(names) >= _NAMED:
        return names
    known = set(names)
    new = {name for name in (*candidate, *baseline) if name not in known}
    if not new:
        return names

    def frequency(name: str) -> tuple[int, str]:
        return -candidate.get(name, 0) - baseline.get(name, 0), name

    return (*names, *sorted(new, key=frequency)[: _NAMED - len(names)])


def _by_place(places: Mapping[str, int], counts: Mapping[str, int]) -> Array:
    array = np.zeros(_SLOTS)
    for name, count in counts.items():
        place = places.get(name)
        if place is None:
            place = _NAMED + zlib.crc32(name.encode()) % _GROUPS
        array[place] += count
    return array
