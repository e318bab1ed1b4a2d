"""Harm processes: a test from the start, and one that finds a change after a healthy start.

A test from the start must first repay the evidence that a healthy candidate has gathered. So the
change detector starts a new test in every window: it splits its stake over the starts in proportion
to the time that passes (a mixture over change points; compare Shin, Ramdas and Rinaldo 2024,
"E-detectors", which resets instead and controls only the time between false alarms). With the
stakes π_t, which sum to at most 1, the bet of one alternative holds

    S_t = (S_{t−1} + π_t) · e_t

and the stakes that are not yet placed are money in hand. Their sum is an e-process: its mean stays
at most 1, whatever the null's rates do. Averages of e-processes are e-processes.
"""

import math
from typing import Final

import msgspec
import numpy as np

from tidegate.evidence.bets import NOTHING, Array, log_mean

__all__ = ["Clock", "HarmEvidence", "capped_exp", "grow_changed", "harm_evidence"]

_LARGEST_LOG: Final = 690.0


class Clock(msgspec.Struct, frozen=True, array_like=True):
    """How much of the change detector's stake is placed.

    Attributes:
        latest_s: The end of the latest window, in seconds since the epoch; None before the first.
        placed: The part of the stake that is placed, from 0 to 1.
    """

    latest_s: float | None = None
    placed: float = 0.0

    def pass_window(self, start_s: float, end_s: float, within_s: float) -> tuple["Clock", float]:
        """Returns the clock after a window, and the stake to place before it."""
        since_s = start_s if self.latest_s is None else self.latest_s
        stake = min(max(end_s - since_s, 0.0) / within_s, 1.0 - self.placed)
        latest_s = end_s if self.latest_s is None else max(self.latest_s, end_s)
        return Clock(latest_s, self.placed + stake), stake


class HarmEvidence(msgspec.Struct, frozen=True):
    """The evidence of harm of one objective.

    Attributes:
        e: The e-value, of the test from the start and the change detector together.
        started_healthy: Whether most of it is the change detector's.
    """

    e: float
    started_healthy: bool


def grow_changed(changed: Array, growth: Array, stake: float) -> Array:
    """Returns the logarithms of S_t from those of S_{t−1}."""
    placed = math.log(stake) if stake > 0.0 else NOTHING
    return np.maximum(np.logaddexp(changed, placed) + growth, NOTHING)


def harm_evidence(
    start: Array, changed: Array, prior: Array, clock: Clock, detector_share: float
) -> HarmEvidence:
    """Returns the weighted average of the test from the start and the change detector."""
    from_start = capped_exp(float(log_mean(start, prior)))
    detector = capped_exp(float(log_mean(changed, prior))) + (1.0 - clock.placed)
    plain = (1.0 - detector_share) * from_start
    found = detector_share * detector
    return HarmEvidence(plain + found, found > plain and detector > 1.0)


def capped_exp(log: float) -> float:
    """Returns the exponential, at most 1e299, so that sums stay finite."""
    return math.exp(min(log, _LARGEST_LOG))
