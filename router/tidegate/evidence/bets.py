"""Bets on two rates: how much a window of counts speaks for one hypothesis against another.

Every test of a rate here is a bet on the counts of a window: x events in N_c trials of the
candidate and y events in N_b trials of the baseline. A bet multiplies a stake by

    e = a^x · b^y ÷ max over q of (1 + (a − 1)(r·q + d))^N_c · (1 + (b − 1)·q)^N_b

The divisor is the largest mean that a^x · b^y can have if the candidate's rate is p_c = r·p_b + d,
where p_b is whatever it is. So the mean of ``e`` is at most 1 there, and also at any p_c on the
null's side of it: below for a > 1, above for a < 1. This holds for every N_c and N_b, however a
and b were chosen from earlier windows, and also if the rates change from request to request,
because log(1 + u·p) is concave in p (Jensen). A product of such factors over windows is an
e-process (Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic statistics and safe anytime-valid
inference"): the chance that it ever reaches 1/α is at most α (Ville 1939).

The factors a and b are chosen so that the bet grows fastest under one alternative. They are the
likelihood ratio of the alternative (p_c', p_b') to the nearest member (r·q + d, q) of the null
(Turner, Ly and Grünwald 2021, arXiv 2106.02693, "safe tests for two data streams"):

    a = odds(p_c') ÷ odds(r·q + d),    b = odds(p_b') ÷ odds(q)

For rare events, r = 1 and d = 0 this is ψ^x · (1 − θ + θψ)^−(x + y) with the candidate's share θ:
each event falls on the candidate with odds that depend on the ratio alone (Lindon and Malek 2022,
arXiv 2011.03567, with a share per window).

A window compares the versions within itself, so one in which a version has no trial says nothing.
With few requests that would waste most of them. So counts wait until each version has a few trials
(`is_enough`), or until the shares change. The wait depends on trials only, never on events, and so
keeps the bets fair.

Everything broadcasts: counts of many runs are columns, and the bets are along the last axis.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "LEAST_ALONE",
    "LEAST_EACH",
    "NOTHING",
    "SAFE_ODDS",
    "SAFE_PRIOR",
    "Array",
    "Bets",
    "is_enough",
    "join_bets",
    "learning_bets",
    "log_growth",
    "log_mean",
    "log_prior",
    "one_sided_bets",
]

Array = npt.NDArray[np.float64]

NOTHING: Final = -1e9
"""The logarithm of no money: finite, because JSON has no infinity."""

LEAST_EACH: Final = 4
"""Trials of each version for which counts wait."""

LEAST_ALONE: Final = 400
"""Trials of the candidate after which they no longer wait for the baseline."""

_LEAST: Final = 1e-9
_MOST_TOLERATED: Final = 0.99
_MOST: Final = 1.0 - 1e-9
_LEARNT_AT_LEAST: Final = 1.15
_TINY: Final = 1e-12
_ROUNDS: Final = 2


class Bets(NamedTuple):
    """Bets against nulls; each attribute has one entry for each bet.

    Attributes:
        ratio: r of the null.
        margin: d of the null.
        odds: The alternative's odds as a multiple of the tolerated rate's; NaN learns it from the
            candidate's rate so far.
        is_harm: Whether the null is "at most", so that the alternative lies above.
    """

    ratio: Array
    margin: Array
    odds: Array
    is_harm: npt.NDArray[np.bool_]


def one_sided_bets(ratio: float, margin: float, odds: Sequence[float], *, is_harm: bool) -> Bets:
    """Returns bets against one null, for several alternatives."""
    count = len(odds)
    return Bets(
        np.full(count, ratio),
        np.full(count, margin),
        np.asarray(odds, dtype=np.float64),
        np.full(count, is_harm),
    )


def learning_bets(ratios: Sequence[float], margins: Sequence[float], *, is_harm: bool) -> Bets:
    """Returns bets against several nulls, whose alternative is the candidate's rate so far."""
    count = len(ratios)
    return Bets(
        np.asarray(ratios, dtype=np.float64),
        np.asarray(margins, dtype=np.float64),
        np.full(count, np.nan),
        np.full(count, is_harm),
    )


def join_bets(parts: Sequence[Bets]) -> Bets:
    """Returns all bets of several, in order."""
    return Bets(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def is_enough(trials_c: float, trials_b: float) -> bool:
    """Returns whether trials of candidate and baseline are enough to bet on them."""
    return trials_c >= LEAST_EACH and (trials_b >= LEAST_EACH or trials_c >= LEAST_ALONE)


def log_growth(
    bets: Bets,
    candidate: tuple[float | Array, float | Array],
    baseline: tuple[float | Array, float | Array],
    guess: tuple[float | Array, float | Array],
) -> Array:
    """Returns the logarithm of the factor by which a window multiplies each bet's stake.

    Args:
        bets: The bets.
        candidate: Trials and events of the candidate in the window.
        baseline: Trials and events of the baseline in the window.
        guess: The rates of candidate and baseline, guessed from earlier windows only; the
            candidate's may differ between bets. A bad guess costs speed and never validity.
    """
    (trials_c, events_c), (trials_b, events_b) = candidate, baseline
    ratio, margin, odds, is_harm = bets
    rate_b = _within(guess[1], _LEAST, _MOST_TOLERATED)
    tolerated = _odds(_within(ratio * rate_b + margin, _LEAST, _MOST_TOLERATED))
    learnt = _odds(_within(guess[0], _LEAST, _MOST_TOLERATED))
    learnt = np.where(
        is_harm,
        np.maximum(learnt, _LEARNT_AT_LEAST * tolerated),
        np.minimum(learnt, tolerated / _LEARNT_AT_LEAST),
    )
    alternative = np.where(np.isnan(odds), learnt, odds * tolerated)
    null_b = _nearest_null(bets, (trials_c, alternative / (1.0 + alternative)), (trials_b, rate_b))
    gain_c = alternative / _odds(np.minimum(ratio * null_b + margin, _MOST)) - 1.0
    loss_b = 1.0 - _odds(rate_b) / _odds(null_b)
    # Of one sign by construction; rounding must not change that, for the maximum relies on it.
    gain_c = np.where(is_harm, np.maximum(gain_c, 0.0), _within(gain_c, _TINY - 1.0, 0.0))
    loss_b = np.where(is_harm, _within(loss_b, 0.0, 1.0 - _TINY), np.minimum(loss_b, 0.0))
    largest = _log_largest_mean(bets, (trials_c, gain_c), (trials_b, loss_b))
    result: Array = events_c * np.log1p(gain_c) + events_b * np.log1p(-loss_b) - largest
    return result


def log_mean(logs: Array, log_weights: Array) -> Array:
    """Returns the logarithm of a weighted mean along the last axis, from logarithms."""
    terms = logs + log_weights
    top = terms.max(axis=-1, keepdims=True)
    total: Array = np.log(np.exp(terms - top).sum(axis=-1)) + top[..., 0]
    return total


def log_prior(weights: Sequence[float]) -> Array:
    """Returns the logarithms of weights, made to sum to 1."""
    array = np.asarray(weights, dtype=np.float64)
    logs: Array = np.log(array / array.sum())
    return logs


def _within(value: float | Array, low: float, high: float | Array) -> Array:
    """Returns the value, or the nearer end; like `numpy.clip`, but faster on small arrays."""
    limited: Array = np.minimum(np.maximum(value, low), high)
    return limited


def _odds(rate: Array) -> Array:
    return rate / (1.0 - rate)


def _nearest_null(
    bets: Bets, candidate: tuple[float | Array, Array], baseline: tuple[float | Array, Array]
) -> Array:
    """Returns the baseline's rate q of the member of the null that is nearest to the alternative.

    It minimises the Kullback-Leibler divergence N_c·KL(p_c' ‖ r·q + d) + N_b·KL(p_b' ‖ q), where

        m_c r (r·q + d − p_c') ÷ (r·q + d) + m_b (q − p_b') ÷ q = 0

    with m_c = N_c ÷ (1 − r·q − d) and m_b = N_b ÷ (1 − q). For given m that is a quadratic
    equation; a few rounds find both. For rare events the first one does.
    """
    (trials_c, rate_c), (trials_b, rate_b) = candidate, baseline
    ratio, margin, _, is_harm = bets
    highest = _within((_MOST - margin) / ratio, _TINY, _MOST)
    q = np.minimum(rate_b, highest)
    for _ in range(_ROUNDS):
        mass_c = trials_c / (1.0 - np.minimum(ratio * q + margin, _MOST)) * ratio
        mass_b = trials_b / (1.0 - q)
        square = np.maximum((mass_c + mass_b) * ratio, 1e-300)
        linear = mass_c * (margin - rate_c) + mass_b * (margin - ratio * rate_b)
        constant = mass_b * rate_b * margin
        root = np.sqrt(linear * linear + 4.0 * square * constant)
        # The form that does not subtract like numbers.
        q = np.where(
            linear > 0,
            2.0 * constant / np.maximum(linear + root, 1e-300),
            (root - linear) / (2.0 * square),
        )
        q = _within(np.where(is_harm, np.maximum(q, rate_b), np.minimum(q, rate_b)), _TINY, highest)
    return q


def _log_largest_mean(
    bets: Bets, candidate: tuple[float | Array, Array], baseline: tuple[float | Array, Array]
) -> Array:
    """Returns the largest log-mean of a^x · b^y over the null's rates of the baseline.

    The log-mean N_c log(1 + A (r q + d)) + N_b log(1 − B q) with A = a − 1 and B = 1 − b of one
    sign is concave in q; its slope vanishes at (N_c A r − N_b B (1 + A d)) ÷ (A B r (N_c + N_b)).
    """
    (trials_c, gain_c), (trials_b, loss_b) = candidate, baseline
    ratio, margin = bets.ratio, bets.margin
    slope = trials_c * gain_c * ratio - trials_b * loss_b * (1.0 + gain_c * margin)
    curvature = gain_c * loss_b * ratio * (trials_c + trials_b)
    highest = _within((1.0 - margin) / ratio, 0.0, 1.0)
    flat = curvature <= 0.0
    q = slope / np.where(flat, 1.0, curvature)
    q = np.where(flat, np.where(slope > 0.0, highest, 0.0), _within(q, 0.0, highest))
    total: Array = trials_c * np.log1p(gain_c * (ratio * q + margin)) + trials_b * np.log1p(
        -loss_b * q
    )
    return total


SAFE_ODDS: Final = (0.01, 0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
"""How much smaller than tolerated the candidate's odds are, in each of the safety bets."""

SAFE_PRIOR: Final = log_prior((2, 2, 2, 2, 1, 1, 1))
"""The logarithms of the stakes of the safety bets."""
