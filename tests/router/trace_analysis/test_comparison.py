"""Comparisons: what differs is found, and noise is not taken for a difference."""

import random

import pytest
from made_traces import many_calls, vision_call

from tidegate.trace_analysis.calls import Call, calls_of
from tidegate.trace_analysis.comparison import compare
from tidegate.trace_analysis.stages import Stage, StageKind

SERVICE = "tidegate-vision"


def compared(traces):
    by_version = {"1-fp32": [], "1-int8": []}
    for each in traces:
        (call,) = calls_of(each, SERVICE)
        by_version[call.version].append(call)
    return compare("1-fp32", by_version["1-fp32"], "1-int8", by_version["1-int8"])


def verdicts(comparison):
    return {(each.what, each.quantile): each.verdict for each in comparison.differences}


def test_a_slower_stage_is_found_and_others_are_not():
    found = compared(many_calls(1_500, slower_us=1_500))
    said = verdicts(found)
    assert said["call", 0.5] == said["tidegate-vision inference", 0.5] == "more"
    others = {
        said[f"tidegate-vision {stage}", quantile]
        for stage in ("queue", "decode", "batch")
        for quantile in (0.5, 0.95)
    }
    assert others == {"noise"}
    median = next(each for each in found.differences if each.what == "call")
    assert median.low < 1_500 < median.high


def test_the_means_of_stages_add_up():
    found = compared(many_calls(400, slower_us=1_500))
    assert sum(found.mean_by_stage_us.values()) == pytest.approx(found.mean_us)
    assert next(iter(found.mean_by_stage_us)) == "tidegate-vision inference"


def test_a_faster_version_is_said_to_be_faster():
    found = compared(many_calls(1_500, slower_us=1_500, versions=("1-int8", "1-fp32")))
    assert verdicts(found)["call", 0.5] == "less"


def test_few_calls_decide_nothing():
    said = verdicts(compared(many_calls(30, slower_us=100_000)))
    assert said["call", 0.99] == "too few calls"
    assert said["call", 0.5] == "more"


def test_failed_calls_are_compared_and_their_times_are_not():
    def calls():
        for number in range(1, 401):
            version = ("1-fp32", "1-int8")[number % 2]
            failed = version == "1-int8" and number % 4 == 1
            yield vision_call(
                *(number, (1, 1, 1, 50_000 if failed else 5_000)),
                version=version,
                start_us=number * 10_000,
                status="UNAVAILABLE" if failed else "OK",
            )

    found = compared(calls())
    assert verdicts(found)["failed calls", None] == "more"
    assert verdicts(found)["call", 0.5] == "noise"
    assert verdicts(found)["call", 0.95] != "more"


def test_whether_both_versions_ran_at_the_same_time_is_told():
    assert compared(many_calls(200)).overlap > 0.9
    one_after_the_other = (
        vision_call(
            *(number, (1, 1, 1, 1)),
            version="1-fp32" if number < 100 else "1-int8",
            start_us=number * 1_000,
        )
        for number in range(1, 201)
    )
    assert compared(one_after_the_other).overlap == 0.0


STAGES = [Stage(name, StageKind.COMPUTE) for name in ("decode", "inference")]


def slow_moments(seed, slower=1.0):
    """The calls of two versions in turns by chance, on a machine that is slow for moments.

    Args:
        seed: Of the random numbers.
        slower: How much slower the second version is.
    """
    chance = random.Random(seed)
    slow = 0.0
    calls = [], []
    for number in range(1, 601):
        slow = 0.95 * slow + chance.gauss(0, 0.2)
        which = chance.random() < 0.5
        times = [round(1_000 * 2.0 ** (slow + chance.gauss(0, 0.1))) for _ in STAGES]
        times[1] = round(times[1] * slower**which)
        calls[which].append(
            Call(
                trace_id=f"{number:032x}",
                start_us=number * 1_000,
                duration_us=sum(times),
                spans=3,
                operation="",
                model="",
                version="",
                subset="",
                batch_size=None,
                status="OK",
                stages=dict(zip(STAGES, times, strict=True)),
                stacks={},
                skew_us=0,
                has_caller=True,
            )
        )
    return calls


def says_they_differ(seed, slower=1.0):
    first, second = slow_moments(seed, slower)
    return not {"more", "less"}.isdisjoint(verdicts(compare("a", first, "b", second)).values())


def test_equal_versions_hardly_ever_differ():
    # If one of twenty differed by chance, 7 or more of 40 would in less than one of 200 runs.
    assert sum(says_they_differ(seed) for seed in range(40)) <= 6


def test_moments_that_slow_both_do_not_hide_a_difference():
    assert sum(says_they_differ(seed, slower=1.5) for seed in range(10)) >= 9


def test_versions_that_ran_one_after_the_other_on_such_a_machine_hardly_ever_differ():
    def differ(seed):
        both = sorted(
            (*slow_moments(seed)[0], *slow_moments(seed)[1]), key=lambda call: call.start_us
        )
        first, second = both[:300], both[300:]
        return not {"more", "less"}.isdisjoint(verdicts(compare("a", first, "b", second)).values())

    assert sum(map(differ, range(40))) <= 6
