"""Windows of simulated traffic, for the tests of the evidence."""

import numpy as np

from tidegate.evidence.buckets import BUCKETS, bucket_of
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import EvidencePlan, Objective, RateTest
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic

EPOCH_S = 1_000_000.0
FAILURES = Objective(metric="failures", test=RateTest(ratio=1.2, margin=0.001))


def plan_of(*objectives, **given):
    return EvidencePlan(
        baseline="v1", candidate="v2", objectives=objectives or (FAILURES,), **given
    )


def window_of(index, candidate, baseline, share=0.1, lasts_s=5.0, lost=0):
    """Returns a window of the two versions' traffic."""
    return TrafficWindow(
        start_s=EPOCH_S + lasts_s * index,
        end_s=EPOCH_S + lasts_s * (index + 1),
        shares={"v1": 1.0 - share, "v2": share},
        versions={"v1": baseline, "v2": candidate},
        lost=lost,
    )


def failing(trials, events):
    """Returns traffic of which some fails."""
    return VersionTraffic(requests=trials, rates={"failures": Counted(trials, events)})


def rate_window(index, candidate, baseline, share=0.1, lasts_s=5.0):
    """Returns a window of failures, from trials and events of both versions."""
    return window_of(index, failing(*candidate), failing(*baseline), share, lasts_s)


def timed(values):
    """Returns traffic with a latency for each request."""
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return VersionTraffic(requests=len(values), histograms={"latency": tuple(counts)})


def labelled(counts):
    """Returns traffic with a count of answers by label."""
    return VersionTraffic(requests=sum(counts.values()), categories={"labels": counts})


def observed(plan, windows):
    """Returns the state after windows."""
    state = begin(plan)
    for each in windows:
        state = observe(plan, state, each)
    return state


def assessed(plan, windows):
    """Returns what the evidence says after windows."""
    return assess(plan, observed(plan, windows))


def decided(plan, windows):
    """Returns how a rollout that is looked at after each window ends: the first decision."""
    state = begin(plan)
    for each in windows:
        state = observe(plan, state, each)
        said = assess(plan, state)
        if said.abort or said.promote:
            return "abort" if said.abort else "promote"
    return "open"


def simulated_rates(rng, count, rates, share=0.1, requests=500):
    """Yields windows in which each request fails at random.

    Args:
        rng: The source of chance.
        count: How many windows.
        rates: Returns the rates of candidate and baseline in a window, from its index.
        share: The candidate's share.
        requests: Requests in a window.
    """
    for index in range(count):
        trials_c = int(rng.binomial(requests, share))
        trials_b = requests - trials_c
        rate_c, rate_b = rates(index)
        yield rate_window(
            index,
            (trials_c, int(rng.binomial(trials_c, rate_c))),
            (trials_b, int(rng.binomial(trials_b, rate_b))),
            share,
        )


def simulated_latencies(rng, count, median_s, share=0.1, requests=500, spread=0.4):
    """Yields windows with lognormal latencies.

    Args:
        rng: The source of chance.
        count: How many windows.
        median_s: Returns the medians of candidate and baseline in a window, from its index.
        share: The candidate's share.
        requests: Requests in a window.
        spread: The standard deviation of the latency's logarithm.
    """
    for index in range(count):
        trials_c = int(rng.binomial(requests, share))
        medians = median_s(index)
        drawn = [
            median * np.exp(spread * rng.standard_normal(trials))
            for median, trials in zip(medians, (trials_c, requests - trials_c), strict=True)
        ]
        yield window_of(index, timed(drawn[0]), timed(drawn[1]), share)
