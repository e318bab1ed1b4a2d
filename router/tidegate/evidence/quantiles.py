"""The test of a quantile: is the candidate's p99 more than ``ratio`` times the baseline's?

**Harm.** The null is the strong form of acceptable: near the quantile, the candidate is at most
``ratio`` times slower in distribution, P(L_c > ratio·t) ≤ P(L_b > t), in every window. For a given
t that is a comparison of two rates, so the bets of `tidegate.evidence.bets` apply. They run at four
thresholds t around the baseline's quantile, and the e-value is their average. The thresholds come
from earlier windows only, and a stall that slows both versions alike moves both rates.

**Safety** needs two proofs, and the smaller e-value counts (an intersection-union test):

- against P(L_c > ratio·t) ≥ 1 − q, where t is the baseline's quantile: the candidate's own quantile
  is within the limit. The bets are Wald's sequential test of one rate. Here t comes from the recent
  windows and this window's baseline, which is independent of the candidate's requests in it. It is
  rounded down to a bucket's edge and by two standard errors, so that it is not above the quantile;
- against P(L_c > ratio·t) ≥ P(L_b > t) in every window: the candidate is faster than the limit at
  the same time. A baseline that was slow a while ago, and whose remembered quantile is therefore
  too large, proves nothing here.

The baseline's quantile is that of its recent requests, of about 100/(1 − q) of them. When its
numbers move, the old ones are forgotten within some hundred requests.

Numbers are counted in buckets of 9 %. The edge ratio·t is rounded up for harm and down for safety,
so both stay valid; but a ratio below 1.09 can then never be proven to be met.

**The effect** is the ratio of the quantiles of weighted counts. A candidate gets its requests late
in a ramp and the baseline early, so under a load that changes the plain counts would compare
different times. With the candidate's intended share s of a window, its requests have the weight
1 − s and the baseline's s: then both versions have the same weight in every window, on average.
Each version's quantile has a confidence sequence (Howard and Ramdas 2022, "Sequential estimation of
quantiles", Bernoulli 28(3)): it lies between the observed ones at q ∓ f for all n at once, where

    f = 1.5·√(q(1 − q)ℓ) + 0.8·ℓ,    ℓ = (1.4·ln ln(2.1·n) + ln(10/α)) ÷ n

and n is the effective number of requests, (Σw)² ÷ Σw² (Kish 1965). Unlike the tests, this interval
takes the distribution of each version to be the same all the time.

If small numbers are bad, the buckets are read from the other end.
"""

import math
from typing import Final

import msgspec
import numpy as np

from tidegate.evidence.bets import (
    NOTHING,
    SAFE_ODDS,
    SAFE_PRIOR,
    Array,
    is_enough,
    log_growth,
    log_mean,
    log_prior,
    one_sided_bets,
)
from tidegate.evidence.buckets import BUCKETS, PER_DOUBLING, lower_edge, upper_edge
from tidegate.evidence.plan import QuantileTest
from tidegate.evidence.processes import (
    Clock,
    HarmEvidence,
    capped_exp,
    grow_changed,
    harm_evidence,
)

__all__ = ["QuantileState"]

_OFFSETS: Final = (-1, 0, 1, 3)
"""Where the harm thresholds are: edges of buckets, counted from the baseline's quantile's."""

_HARM_ODDS: Final = (1.25, 1.6, 2.5, 5.0, 15.0, 60.0)
_HARM_COUNT: Final = len(_OFFSETS) * len(_HARM_ODDS)
_HARM_PRIOR: Final = log_prior((1,) * _HARM_COUNT)
_HARM_BETS: Final = one_sided_bets(1.0, 0.0, _HARM_ODDS, is_harm=True)
_SAFE_BETS: Final = one_sided_bets(1.0, 0.0, SAFE_ODDS, is_harm=False)
_UNIT: Final = 1000
_ZEROS: Final = (0,) * BUCKETS
_MOVED: Final = 0.25
_MOVED_TRIALS: Final = 100.0
_KEPT: Final = 0.05


class Thresholds(msgspec.Struct, frozen=True, array_like=True):
    """Counts at thresholds that wait for more of the same share.

    The first thresholds are those of the harm bets; the last one is that of the safety bets.

    Attributes:
        edges: The buckets whose upper edges are the thresholds; −1 is below all buckets.
        guess: The baseline's rates above them, guessed when the counts began to wait.
        share: The candidate's intended share.
        candidate: The candidate's requests, and those above ratio times each threshold.
        baseline: The baseline's requests, and those above each threshold.
    """

    edges: tuple[int, ...]
    guess: tuple[float, ...]
    share: float
    candidate: tuple[float, ...] = (0.0,) * (2 + len(_OFFSETS))
    baseline: tuple[float, ...] = (0.0,) * (2 + len(_OFFSETS))

    @classmethod
    def around(cls, quantile: float, recent: Array, share: float) -> "Thresholds | None":
        """Returns thresholds around the baseline's quantile; None before it is known."""
        total = float(recent.sum())
        if total <= 0.0:
            return None
        place = int(np.searchsorted(np.cumsum(recent), quantile * total))
        edges = np.clip(place + np.array(_OFFSETS), 0, BUCKETS - 2)
        edges = np.append(edges, _surely_below(quantile, recent))
        guess = (_above(recent)[edges + 1] + 0.5) / (total + 1.0)
        return cls(tuple(edges.tolist()), tuple(guess.tolist()), share)

    def count(self, ratio: float, candidate: Array, baseline: Array) -> "Thresholds":
        """Returns the thresholds with the counts of a window."""
        edges = np.array(self.edges)
        up, down = _shifts(ratio)
        edges_c = np.minimum(np.maximum(edges + up, 0), BUCKETS - 1)
        edges_c[-1] = min(edges[-1] + down, BUCKETS - 2)
        counted_c = np.append(candidate.sum(), _above(candidate)[np.maximum(edges_c, -1) + 1])
        counted_b = np.append(baseline.sum(), _above(baseline)[edges + 1])
        return msgspec.structs.replace(
            self,
            candidate=tuple((self.candidate + counted_c).tolist()),
            baseline=tuple((self.baseline + counted_b).tolist()),
        )

    def growth(self) -> tuple[Array, Array]:
        """Returns the logarithms by which the counts multiply the harm and the safety bets."""
        guess = np.array(self.guess)[:, None]
        (trials_c, above_c), (trials_b, above_b) = (
            (each[0], np.array(each[1:])[:, None]) for each in (self.candidate, self.baseline)
        )
        harm = log_growth(
            _HARM_BETS,
            (trials_c, above_c[:-1]),
            (trials_b, above_b[:-1]),
            (guess[:-1], guess[:-1]),
        )
        safe = log_growth(
            _SAFE_BETS, (trials_c, above_c[-1]), (trials_b, above_b[-1]), (guess[-1], guess[-1])
        )
        return harm.ravel(), safe


class Weighted(msgspec.Struct, frozen=True, array_like=True):
    """Weighted counts of one version, by bucket. A weight of 1 is `_UNIT`, so sums are exact.

    Attributes:
        requests: The requests, without weights.
        counts: The sum of their weights, by bucket.
        squares: The sum of the squares of their weights.
    """

    requests: int = 0
    counts: tuple[int, ...] = _ZEROS
    squares: int = 0

    def add(self, counts: tuple[int, ...], weight: float) -> "Weighted":
        """Returns the counts with those of a window."""
        requests = sum(counts)
        if not requests:
            return self
        units = max(round(weight * _UNIT), 1)
        weighted = np.add(self.counts, np.multiply(counts, units))
        return Weighted(
            self.requests + requests,
            tuple(weighted.tolist()),
            self.squares + requests * units * units,
        )

    def quantile(self, quantile: float) -> float | None:
        """Returns a quantile, interpolated within its bucket; None without requests."""
        total = sum(self.counts)
        if not total:
            return None
        wanted, below = quantile * total, 0
        for bucket, count in enumerate(self.counts):
            if count and below + count >= wanted:
                low, high = lower_edge(bucket), upper_edge(bucket)
                if low <= 0.0 or math.isinf(high):
                    return high if low <= 0.0 else low
                part = max(wanted - below, 0.0) / count
                return float(low * (high / low) ** part)
            below += count
        return None

    def interval(self, quantile: float, error: float) -> tuple[float, float]:
        """Returns the ends of a quantile's confidence sequence, 0 and infinity if unknown."""
        total = sum(self.counts)
        if not total:
            return 0.0, math.inf
        effective = total * total / self.squares
        length = 1.4 * math.log(max(math.log(2.1 * effective), 1.0)) + math.log(10.0 / error)
        length /= effective
        width = 1.5 * math.sqrt(quantile * (1.0 - quantile) * length) + 0.8 * length
        below = np.cumsum(self.counts)
        low = 0.0
        if quantile - width > 0.0:
            low = lower_edge(int(np.searchsorted(below, (quantile - width) * total)))
        high = math.inf
        if quantile + width < 1.0:
            high = upper_edge(int(np.searchsorted(below, (quantile + width) * total)))
        return low, high


class QuantileState(msgspec.Struct, frozen=True, tag="quantile"):
    """What is remembered for a quantile test.

    Attributes:
        candidate: Weighted counts of the candidate.
        baseline: Weighted counts of the baseline.
        recent: Counts of the baseline in which old windows weigh less, by bucket.
        moved: How much more of the baseline's latest numbers than of the recent ones are above
            the recent median. When it is much, the recent counts are forgotten.
        waiting: Counts that wait for more of the same share; None if none do.
        start: The logarithm of what each harm bet holds, by threshold and alternative.
        changed: The same for the change detector.
        within: The logarithm of what each bet holds that the candidate's quantile is within the
            limit.
        faster: The same for "faster than the limit at the same time".
    """

    candidate: Weighted = Weighted()
    baseline: Weighted = Weighted()
    recent: tuple[float, ...] = (0.0,) * BUCKETS
    moved: float = 0.0
    waiting: Thresholds | None = None
    start: tuple[float, ...] = (0.0,) * _HARM_COUNT
    changed: tuple[float, ...] = (NOTHING,) * _HARM_COUNT
    within: tuple[float, ...] = (0.0,) * len(SAFE_ODDS)
    faster: tuple[float, ...] = (0.0,) * len(SAFE_ODDS)

    def observe(
        self,
        test: QuantileTest,
        candidate: tuple[int, ...] | None,
        baseline: tuple[int, ...] | None,
        *,
        share: float = 0.0,
        stake: float = 0.0,
    ) -> "QuantileState":
        """Returns the state after a window.

        Args:
            test: The test.
            candidate: Counts of the candidate in the window, by bucket; None for none.
            baseline: Counts of the baseline in the window, by bucket; None for none.
            share: The candidate's intended share of both versions' requests.
            stake: What the change detector places before this window.
        """
        candidate, baseline = candidate or _ZEROS, baseline or _ZEROS
        quantile, counts_c = _oriented(test, candidate)
        _, counts_b = _oriented(test, baseline)
        recent = np.array(self.recent)
        state, waiting = self, self.waiting
        if waiting is not None and waiting.share != share:
            state, waiting = state._bet(waiting, 0.0), None
        waiting = waiting or Thresholds.around(quantile, recent, share)
        if waiting is not None:
            waiting = waiting.count(test.ratio, counts_c, counts_b)
        if waiting is not None and is_enough(waiting.candidate[0], waiting.baseline[0]):
            state, waiting = state._bet(waiting, stake), None
        else:
            state = state._bet(None, stake)
        recent, moved = _remember(recent, self.moved, counts_b, quantile)
        within = _within_growth(test.ratio, quantile, recent, counts_c)
        return msgspec.structs.replace(
            state,
            candidate=self.candidate.add(candidate, 1.0 - share),
            baseline=self.baseline.add(baseline, share or 1.0),
            recent=tuple(recent.tolist()),
            moved=moved,
            waiting=waiting,
            within=tuple((np.array(self.within) + within).tolist()),
        )

    def _bet(self, counted: Thresholds | None, stake: float) -> "QuantileState":
        """Returns the state after bets on counts, or after a stake was placed without any."""
        harm, safe = np.zeros(_HARM_COUNT), np.zeros(len(SAFE_ODDS))
        if counted is not None:
            harm, safe = counted.growth()
        return msgspec.structs.replace(
            self,
            start=tuple((np.array(self.start) + harm).tolist()),
            changed=tuple(grow_changed(np.array(self.changed), harm, stake).tolist()),
            faster=tuple((np.array(self.faster) + safe).tolist()),
        )

    def harm(self, clock: Clock, detector_share: float) -> HarmEvidence:
        """Returns the evidence against "acceptable"."""
        return harm_evidence(
            np.array(self.start), np.array(self.changed), _HARM_PRIOR, clock, detector_share
        )

    def safe_e(self) -> float:
        """Returns the e-value against "the candidate's quantile is past the limit"."""
        proofs = np.array((self.within, self.faster))
        return capped_exp(float(log_mean(proofs, SAFE_PRIOR).min()))

    def quantiles(self, test: QuantileTest) -> tuple[float | None, float | None]:
        """Returns the quantiles of candidate and baseline so far; None without data."""
        return self.candidate.quantile(test.quantile), self.baseline.quantile(test.quantile)

    def interval(self, test: QuantileTest, error: float) -> tuple[float | None, float | None]:
        """Returns the ends of the confidence sequence of the ratio candidate ÷ baseline.

        Args:
            test: The test.
            error: The probability that the true ratio is ever outside.
        """
        low_c, high_c = self.candidate.interval(test.quantile, error / 2.0)
        low_b, high_b = self.baseline.interval(test.quantile, error / 2.0)
        low = low_c / high_b if low_c and math.isfinite(high_b) else None
        high = high_c / low_b if low_b and math.isfinite(high_c) else None
        return low, high


def _oriented(test: QuantileTest, counts: tuple[int, ...]) -> tuple[float, Array]:
    """Returns the quantile and the counts so that large is bad."""
    array = np.array(counts, dtype=np.float64)
    return (test.quantile, array) if test.large_is_bad else (1.0 - test.quantile, array[::-1])


def _shifts(ratio: float) -> tuple[int, int]:
    """Returns how many buckets a ratio is: rounded up for harm, and down for safety."""
    buckets = PER_DOUBLING * math.log2(ratio)
    return math.ceil(buckets - 1e-9), math.floor(buckets + 1e-9)


def _surely_below(quantile: float, recent: Array) -> int:
    """Returns a bucket whose upper edge is not above the quantile; −1 if there is none."""
    total = float(recent.sum())
    error = 2.0 * math.sqrt(quantile * (1.0 - quantile) / total) + 1.0 / total
    low = max(quantile - error, 0.0)
    return int(np.searchsorted(np.cumsum(recent), low * total, side="right")) - 1


def _within_growth(ratio: float, quantile: float, recent: Array, candidate: Array) -> Array:
    """Returns the growth of the bets against "above the limit in at least 1 − q of requests"."""
    if not recent.any():
        return np.zeros(len(SAFE_ODDS))
    edge = _surely_below(quantile, recent) + _shifts(ratio)[1]
    if not 0 <= edge < BUCKETS - 1:
        return np.zeros(len(SAFE_ODDS))
    above = float(_above(candidate)[edge + 1])
    below = float(candidate.sum()) - above
    limit = 1.0 - quantile
    odds = np.array(SAFE_ODDS) * limit / (1.0 - limit)
    rate = odds / (1.0 + odds)
    growth: Array = above * np.log(rate / limit) + below * np.log((1.0 - rate) / (1.0 - limit))
    return growth


def _above(counts: Array) -> Array:
    """Returns how many numbers are above nothing, and above the upper edge of each bucket."""
    below = np.append(0.0, np.cumsum(counts))
    above: Array = below[-1] - below
    return above


def _remember(recent: Array, moved: float, counts: Array, quantile: float) -> tuple[Array, float]:
    """Returns the recent counts after a window, and how far the numbers have moved since."""
    trials, remembered = float(counts.sum()), float(recent.sum())
    if trials and remembered:
        median = int(np.searchsorted(np.cumsum(recent), 0.5 * remembered))
        gap = _above(counts)[median + 1] / trials - _above(recent)[median + 1] / remembered
        moved += (float(gap) - moved) * -math.expm1(-trials / _MOVED_TRIALS)
        if abs(moved) > _MOVED:
            recent, moved = np.multiply(recent, _KEPT), 0.0
    recent = np.add(recent, counts)
    most = min(max(100.0 / min(quantile, 1.0 - quantile), 1_000.0), 100_000.0)
    total = float(recent.sum())
    if total > most:
        recent = np.multiply(recent, most / total)
    # Rounded, so that the state stays short as JSON.
    return np.round(recent, 3), moved
