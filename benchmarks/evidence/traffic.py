"""Simulated traffic of many rollouts at once: what happens, and how many requests fail.

A scenario says how the base rate, the candidate's rate and its share of the requests change with
time. Each request goes to a version at random and fails at random, both independently; a window
holds the counts. All runs of a scenario are columns of the same arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

__all__ = ["Scenario", "Window", "drifting", "shares_of_steps", "stalling", "windows"]

_DRIFT_S: Final = 1200.0


class Window(NamedTuple):
    """The counts of one window of many runs; a column has one row for each run.

    Attributes:
        start_s: The start, in seconds since the rollout's start.
        end_s: The end.
        share: The candidate's share of the requests.
        trials_c: Requests of the candidate.
        events_c: Failures of the candidate.
        trials_b: Requests of the baseline.
        events_b: Failures of the baseline.
    """

    start_s: float
    end_s: float
    share: float
    trials_c: npt.NDArray[np.int64]
    events_c: npt.NDArray[np.int64]
    trials_b: npt.NDArray[np.int64]
    events_b: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scenario:
    """What happens in a rollout.

    Attributes:
        name: The name in the tables.
        baseline: The baseline's rate of failures at a time.
        candidate: The candidate's rate at a time, from the baseline's.
        share: The candidate's share of the requests at a time.
        rate: Requests in a second.
        lasts_s: How long the rollout lasts.
        window_s: How long a window is.
    """

    name: str
    baseline: Callable[[float], float]
    candidate: Callable[[float, float], float]
    share: Callable[[float], float]
    rate: float = 100.0
    lasts_s: float = 7200.0
    window_s: float = 10.0


def windows(scenario: Scenario, runs: int, rng: np.random.Generator) -> Iterator[Window]:
    """Yields the windows of many runs, in the order of time."""
    for index in range(round(scenario.lasts_s / scenario.window_s)):
        start_s = index * scenario.window_s
        rate_b = scenario.baseline(start_s)
        rate_c = scenario.candidate(start_s, rate_b)
        share = scenario.share(start_s)
        requests = rng.poisson(scenario.rate * scenario.window_s, runs)
        trials_c = rng.binomial(requests, share)
        trials_b = requests - trials_c
        yield Window(
            start_s,
            start_s + scenario.window_s,
            share,
            trials_c,
            rng.binomial(trials_c, rate_c),
            trials_b,
            rng.binomial(trials_b, rate_b),
        )


def drifting(rate: float, by: float = 0.9) -> Callable[[float], float]:
    """Returns a base rate that swings by a part of itself, in waves of twenty minutes."""
    return lambda time_s: rate * (1.0 + by * math.sin(2.0 * math.pi * time_s / _DRIFT_S))


def stalling(
    rate: float, in_stall: float, every_s: float, lasting_s: float
) -> Callable[[float], float]:
    """Returns a base rate with stalls, the first of them in the middle of the first period."""
    return lambda time_s: in_stall if 0 <= time_s % every_s - every_s / 2 < lasting_s else rate


def shares_of_steps(steps: tuple[float, ...], lasts_s: float) -> Callable[[float], float]:
    """Returns the shares of equally long steps."""
    return lambda time_s: steps[min(int(time_s / lasts_s * len(steps)), len(steps) - 1)]
