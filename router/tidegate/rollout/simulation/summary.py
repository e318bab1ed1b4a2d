"""What many runs say together: shares of the ends, and how long and how costly they were."""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

import msgspec

from tidegate.rollout.simulation.runs import End, Run, Scenario, run_once

__all__ = ["Quantiles", "Summary", "run_many", "summary_of"]

# A process takes half a second to start.
_RUNS_PER_PROCESS: Final = 10


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """The 10th, 50th and 90th percentile of a number over runs."""

    p10: float
    p50: float
    p90: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What runs say together.

    Attributes:
        runs: How many there were.
        ends: How many ended each way, by the value of `End`.
        time_s: Seconds from the start to the end, by the value of `End`.
        extra_bad: Bad requests that users got beyond those the baseline would have given them.
        extra_bad_mean: Their mean.
        candidate_requests: Requests that the candidates answered.
        approvals: How often a person approved a step, on average.
        reasons: The reason of one run of each end, by the value of `End`.
    """

    runs: int
    ends: dict[str, int]
    time_s: dict[str, Quantiles]
    extra_bad: Quantiles
    extra_bad_mean: float
    candidate_requests: Quantiles
    approvals: float
    reasons: dict[str, str]


def run_many(
    scenario: Scenario, runs: int, seed: int, on_run: Callable[[], None] = lambda: None
) -> tuple[Run, ...]:
    """Simulates many rollouts, on all cores. The same seed gives the same runs.

    Args:
        scenario: What to simulate.
        runs: How many.
        seed: Decides the requests.
        on_run: Called after each run.
    """
    seeds = [seed * 1_000_003 + number for number in range(runs)]
    processes = min(os.cpu_count() or 1, math.ceil(runs / _RUNS_PER_PROCESS))
    if processes == 1:
        found = []
        for each in seeds:
            found.append(run_once(scenario, each))
            on_run()
        return tuple(found)
    # A fresh process, since the command line may have threads.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_once, scenario, each) for each in seeds]
        for future in futures:
            future.add_done_callback(lambda _: on_run())
        return tuple(future.result() for future in futures)


def summary_of(runs: Sequence[Run]) -> Summary:
    """Returns what runs say together."""
    ends = Counter(each.end for each in runs)
    by_end = {end: [each for each in runs if each.end is end] for end in End if ends[end]}
    return Summary(
        runs=len(runs),
        ends={end.value: ends[end] for end in End},
        time_s={
            end.value: _quantiles([run.time_s for run in found]) for end, found in by_end.items()
        },
        extra_bad=_quantiles([each.extra_bad for each in runs]),
        extra_bad_mean=sum(each.extra_bad for each in runs) / len(runs),
        candidate_requests=_quantiles([each.candidate_requests for each in runs]),
        approvals=sum(each.approvals for each in runs) / len(runs),
        reasons={end.value: found[len(found) // 2].reason for end, found in by_end.items()},
    )


def _quantiles(numbers: Sequence[float]) -> Quantiles:
    ordered = sorted(numbers)

    def at(share: float) -> float:
        return float(ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))])

    return Quantiles(p10=at(0.1), p50=at(0.5), p90=at(0.9))
