import msgspec
import pytest

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.checks import EvidenceError
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import EvidencePlan, Objective, RateTest
from tidegate.evidence.state import EvidenceState
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic

FAILURES = Objective(metric="failures", test=RateTest(ratio=1.2, margin=0.001))


def plan(*objectives, **given):
    return EvidencePlan(
        baseline="v1", candidate="v2", objectives=objectives or (FAILURES,), **given
    )


def window(index, candidate, baseline, share=0.1):
    counts = {"v1": baseline, "v2": candidate}
    return TrafficWindow(
        start_s=1000.0 + 5 * index,
        end_s=1005.0 + 5 * index,
        shares={"v1": 1 - share, "v2": share},
        versions={
            name: VersionTraffic(requests=trials, rates={"failures": Counted(trials, events)})
            for name, (trials, events) in counts.items()
        },
    )


def judged(judged_plan, windows):
    state = begin(judged_plan)
    for each in windows:
        state = observe(judged_plan, state, each)
    return assess(judged_plan, state)


def test_candidate_that_fails_is_aborted_with_the_numbers():
    assessment = judged(plan(), [window(i, (50, 3), (450, 0)) for i in range(6)])
    assert assessment.abort
    assert not assessment.promote
    assert assessment.objectives[0].verdict is Verdict.MISSED
    assert "6 % of 300 on v2" in assessment.reason


def test_candidate_that_never_fails_is_promoted():
    assessment = judged(plan(), [window(i, (500, 0), (500, 0), 0.5) for i in range(9)])
    assert assessment.promote
    assert not assessment.abort


def test_nothing_is_no_data_and_neither_promotes_nor_aborts():
    assessment = judged(plan(), [])
    assert assessment.objectives[0].verdict is Verdict.NO_DATA
    assert not any((assessment.promote, assessment.abort, assessment.pause))
    assert assessment.excess_rate_high == 1.0


def test_stall_that_slows_both_versions_alike_does_not_blame_the_candidate():
    healthy = [window(i, (50, 0), (450, 0)) for i in range(20)]
    stall = [window(20 + i, (50, 25), (450, 225)) for i in range(20)]
    assert not judged(plan(), healthy + stall).abort


def test_state_round_trips_through_json():
    state = observe(plan(), begin(plan()), window(0, (50, 3), (450, 1)))
    assert msgspec.json.decode(msgspec.json.encode(state), type=EvidenceState) == state


def test_more_events_than_trials_are_refused_by_name():
    with pytest.raises(EvidenceError, match=r"versions\['v2'\]\.rates\['failures'\]\.events: 11"):
        judged(plan(), [window(0, (10, 11), (90, 0))])
