"""Begin, observe, assess: how objectives combine, what is no data, and what is refused."""

import math

import msgspec
import numpy as np
import pytest
from evidence_traffic import (
    EPOCH_S,
    FAILURES,
    assessed,
    decided,
    failing,
    labelled,
    observed,
    plan_of,
    rate_window,
    timed,
    window_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.evidence.assessment import Assessment, Verdict
from tidegate.evidence.buckets import BUCKETS
from tidegate.evidence.checks import EvidenceError
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import (
    EvidencePlan,
    Importance,
    LimitTest,
    MixTest,
    Objective,
    QuantileTest,
    RateTest,
)
from tidegate.evidence.state import EvidenceState
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic

LATENCY = Objective(metric="latency", test=QuantileTest(quantile=0.99, ratio=1.2))
LABELS = Objective(metric="labels", test=MixTest(distance=0.05))
GPU = Objective(metric="gpu", test=LimitTest(limit=0.9, for_s=60.0))
EVERY_TEST = (FAILURES, LATENCY, LABELS, GPU)


def rated(name, importance=Importance.ABORT, **given):
    return Objective(metric=name, test=RateTest(ratio=1.2, margin=0.001), importance=importance)


def counted(index, **events):
    """Returns a window of 50 and 450 requests, with the candidate's events by measure."""
    rates = {name: Counted(50, count) for name, count in events.items()}
    none = {name: Counted(450, 0) for name in events}
    return window_of(
        index, VersionTraffic(requests=50, rates=rates), VersionTraffic(requests=450, rates=none)
    )


def rich_window(index, rng):
    traffic = []
    for trials in (int(rng.integers(0, 60)), int(rng.integers(0, 500))):
        labels = rng.multinomial(trials, np.full(70, 1 / 70)).tolist()
        traffic.append(
            VersionTraffic(
                requests=trials,
                rates={"failures": Counted(trials, int(rng.binomial(trials, 0.1)))},
                histograms={"latency": timed(rng.exponential(1.0, trials)).histograms["latency"]},
                categories={"labels": {f"label {i}": n for i, n in enumerate(labels) if n}},
                gauges={"gpu": float(rng.random())} if trials % 2 else {},
            )
        )
    return window_of(index, *traffic)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"false_abort": 0.0}, "false_abort: 0.0 is no error rate"),
        ({"bad_promotion": 1.5}, "bad_promotion: 1.5 is no error rate"),
        ({"detector_share": -0.1}, "detector_share: -0.1 is no share"),
        ({"within_s": 0.0}, "within_s: 0.0 is no duration"),
        ({"candidate": "v1"}, "candidate: v1 is the baseline"),
        ({"objectives": (FAILURES, FAILURES)}, r"objectives\[1\].metric: failures is there twice"),
    ],
)
def test_plan_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(EvidenceError, match=message):
        begin(msgspec.structs.replace(plan_of(), **changes))


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (RateTest(ratio=0.0), "test.ratio: 0.0 is out of range"),
        (RateTest(ratio=math.nan), "test.ratio: nan is out of range"),
        (RateTest(margin=1.1), "test.margin: 1.1 is out of range"),
        (QuantileTest(quantile=1.0), "test.quantile: 1.0 is out of range"),
        (QuantileTest(quantile=0.5, ratio=-1.0), "test.ratio: -1.0 is out of range"),
        (MixTest(distance=-0.1), "test.distance: -0.1 is out of range"),
        (LimitTest(limit=math.nan, for_s=60.0), "test.limit: nan is no number"),
        (LimitTest(limit=1.0, for_s=-1.0), "test.for_s: -1.0 is no duration"),
    ],
)
def test_objective_that_makes_no_sense_is_refused(test, message):
    with pytest.raises(EvidenceError, match=rf"objectives\[0\].{message}"):
        begin(plan_of(Objective(metric="failures", test=test)))


@pytest.mark.parametrize(
    ("traffic", "message"),
    [
        (failing(10, 11), r"versions\['v2'\].rates\['failures'\].events: 11 is not between 0 and"),
        (failing(-1, -1), r"versions\['v2'\].requests: -1 is negative"),
        (
            VersionTraffic(histograms={"latency": (1, 2)}),
            rf"histograms\['latency'\]: has 2 buckets; give all {BUCKETS}",
        ),
        (
            VersionTraffic(histograms={"latency": (-1, *[0] * (BUCKETS - 1))}),
            r"histograms\['latency'\]: -1 is negative",
        ),
        (labelled({"cat": -2, "dog": 3}), r"categories\['labels'\]\['cat'\]: -2 is negative"),
    ],
)
def test_traffic_that_makes_no_sense_is_refused(traffic, message):
    with pytest.raises(EvidenceError, match=message):
        observed(plan_of(*EVERY_TEST), [window_of(0, traffic, failing(90, 0))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"end_s": EPOCH_S - 1}, "end_s: 999999.0 is before start_s"),
        ({"start_s": math.nan}, "start_s, end_s: nan"),
        ({"shares": {"v2": 1.2}}, r"shares\['v2'\]: 1.2 is no share"),
        ({"lost": -1}, "lost: -1 is negative"),
    ],
)
def test_window_that_makes_no_sense_is_refused(changes, message):
    good = rate_window(0, (10, 0), (90, 0))
    with pytest.raises(EvidenceError, match=message):
        observed(plan_of(), [msgspec.structs.replace(good, **changes)])


@pytest.mark.parametrize("other", [(LATENCY,), (FAILURES, LATENCY)])
def test_state_of_another_plan_is_refused(other):
    state = begin(plan_of())
    with pytest.raises(EvidenceError, match="are the objectives of another plan"):
        assess(plan_of(*other), state)
    with pytest.raises(EvidenceError, match="begin anew"):
        observe(plan_of(*other), state, rate_window(0, (10, 0), (90, 0)))


# No data


def test_nothing_is_no_data_and_decides_nothing():
    said = assessed(plan_of(*EVERY_TEST), [])
    assert {each.verdict for each in said.objectives} == {Verdict.NO_DATA}
    assert not any((said.promote, said.abort, said.pause, said.sample_ratio.mismatch))
    assert said.excess_rate_high == 1.0
    assert said.harm_e == 1.0
    assert "failures has no data: v2 has 0 of the 20 that are needed" in said.reason


def test_windows_without_the_versions_change_nothing_but_the_clock():
    plan = plan_of(*EVERY_TEST)
    empty = TrafficWindow(start_s=EPOCH_S, end_s=EPOCH_S + 5, shares={}, versions={})
    state = observed(plan, [empty])
    said = assess(plan, state)
    assert said == assess(plan, begin(plan))
    assert state.clock.placed > 0.0


def test_candidate_alone_is_no_data_however_much_it_fails():
    windows = [rate_window(i, (500, 100), (0, 0), 1.0) for i in range(20)]
    said = assessed(plan_of(), windows)
    assert said.objectives[0].verdict is Verdict.NO_DATA
    assert "v1 has none to compare with" in said.objectives[0].detail
    assert not said.abort


def test_few_trials_are_no_data_unless_harm_is_proven():
    few = assessed(plan_of(), [rate_window(0, (19, 0), (900, 0), 0.02)])
    assert few.objectives[0].verdict is Verdict.NO_DATA
    failing_fast = assessed(plan_of(), [rate_window(i, (6, 6), (300, 0), 0.02) for i in range(3)])
    assert failing_fast.objectives[0].verdict is Verdict.MISSED
    assert failing_fast.abort


def test_objective_without_data_keeps_the_candidate_from_promotion():
    plan = plan_of(FAILURES, rated("empty answers"))
    healthy = [rate_window(i, (500, 0), (500, 0), 0.5) for i in range(20)]
    said = assessed(plan, healthy)
    assert said.objectives[0].verdict is Verdict.MET
    assert not said.promote
    assert said.reason.startswith("empty answers has no data")


# How objectives combine


def test_one_missed_objective_of_several_aborts():
    plan = plan_of(rated("a"), rated("b"), rated("c"))
    windows = [counted(i, a=0, b=10, c=0) for i in range(5)]
    said = assessed(plan, windows)
    assert said.abort
    assert [each.verdict for each in said.objectives].count(Verdict.MISSED) == 1
    assert said.reason.startswith("v2 is worse: b: ")
    assert said.harm_e == pytest.approx(sum(each.harm_e for each in said.objectives) / 3)


def test_weak_evidence_of_several_objectives_adds_up():
    plan = plan_of(rated("a"), rated("b"))
    state = begin(plan)
    for index in range(100):
        state = observe(plan, state, counted(index, a=1, b=1))
        said = assess(plan, state)
        if said.abort:
            break
    assert said.abort
    assert all(each.harm_e >= 100.0 for each in said.objectives)


def test_threshold_of_one_objective_grows_with_those_of_the_same_importance():
    plan = plan_of(rated("a"), rated("b"), GPU, rated("c", Importance.PAUSE))
    said = assessed(plan, [])
    assert [each.harm_threshold for each in said.objectives] == [200.0, 200.0, 200.0, 100.0]
    assert said.harm_threshold == 100.0
    assert [each.safe_threshold for each in said.objectives] == [20.0] * 4


@pytest.mark.parametrize("importance", [Importance.PAUSE, Importance.REPORT])
def test_objective_of_less_importance_does_not_abort(importance):
    plan = plan_of(FAILURES, rated("extra", importance))
    windows = [
        window_of(
            i,
            VersionTraffic(
                requests=500,
                rates={"failures": Counted(500, 0), "extra": Counted(500, 100)},
            ),
            VersionTraffic(
                requests=500, rates={"failures": Counted(500, 0), "extra": Counted(500, 0)}
            ),
            0.5,
        )
        for i in range(20)
    ]
    said = assessed(plan, windows)
    assert said.objectives[1].verdict is Verdict.MISSED
    assert not said.abort
    assert said.pause is (importance is Importance.PAUSE)
    assert said.promote is (importance is Importance.REPORT)
    assert said.extra_bad_requests == 0.0


def test_without_an_objective_that_decides_nothing_is_promoted():
    plan = plan_of(rated("failures", Importance.REPORT))
    healthy = [rate_window(i, (500, 0), (500, 0), 0.5) for i in range(20)]
    assert not assessed(plan, healthy).promote
    without = EvidencePlan(baseline="v1", candidate="v2", objectives=())
    assert not assessed(without, healthy).promote


def test_promotion_needs_every_objective():
    plan = plan_of(FAILURES, rated("slow"))
    windows = [
        window_of(
            i,
            VersionTraffic(
                requests=500, rates={"failures": Counted(500, 0), "slow": Counted(500, 5)}
            ),
            VersionTraffic(
                requests=500, rates={"failures": Counted(500, 0), "slow": Counted(500, 4)}
            ),
            0.5,
        )
        for i in range(10)
    ]
    said = assessed(plan, windows)
    assert said.objectives[0].verdict is Verdict.MET
    assert said.objectives[1].verdict is Verdict.OPEN
    assert not said.promote


def test_false_aborts_are_few_over_all_objectives_together():
    rng = np.random.default_rng(1)
    plan = plan_of(
        *(Objective(metric=name, test=RateTest()) for name in "abc"),
        false_abort=0.1,
        bad_promotion=1e-9,
        within_s=150.0,
    )
    aborts = 0
    for _ in range(80):
        windows = []
        for index in range(30):
            rates = [
                {name: Counted(n, int(rng.binomial(n, 0.05))) for name in "abc"} for n in (100, 300)
            ]
            traffic = [VersionTraffic(requests=0, rates=each) for each in rates]
            windows.append(window_of(index, *traffic, 0.25))
        aborts += decided(plan, windows) == "abort"
    # A binomial of 80 and 10 % is above 17 with a probability below 0.1 %.
    assert aborts <= 17


# The split


def test_wrong_split_is_seen_and_decides_nothing_itself():
    said = assessed(plan_of(), [rate_window(i, (250, 0), (250, 0), 0.1) for i in range(5)])
    assert said.sample_ratio.mismatch
    assert said.sample_ratio.intended == pytest.approx(0.1)
    assert said.sample_ratio.observed == pytest.approx(0.5)


def test_window_with_lost_records_does_not_blame_the_split():
    windows = [window_of(i, failing(250, 0), failing(250, 0), 0.1, lost=100) for i in range(20)]
    assert not assessed(plan_of(), windows).sample_ratio.mismatch


def test_copies_of_a_tenth_of_the_requests_are_a_right_split():
    windows = [
        TrafficWindow(
            start_s=EPOCH_S + i,
            end_s=EPOCH_S + i + 1,
            shares={"v1": 1.0, "v2": 0.1},
            versions={"v1": failing(1000, 0), "v2": failing(100, 0)},
        )
        for i in range(50)
    ]
    assert not assessed(plan_of(), windows).sample_ratio.mismatch


# What is remembered


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 6))
def test_state_and_assessment_round_trip_through_json(seed, count):
    rng = np.random.default_rng(seed)
    plan = plan_of(*EVERY_TEST)
    state = observed(plan, [rich_window(i, rng) for i in range(count)])
    assert msgspec.json.decode(msgspec.json.encode(state), type=EvidenceState) == state
    said = assess(plan, state)
    assert msgspec.json.decode(msgspec.json.encode(said), type=Assessment) == said
    assert msgspec.json.decode(msgspec.json.encode(plan), type=EvidencePlan) == plan


def test_state_that_was_stored_and_read_goes_on_the_same():
    rng = np.random.default_rng(2)
    plan = plan_of(*EVERY_TEST)
    windows = [rich_window(i, rng) for i in range(10)]
    stored = begin(plan)
    for each in windows:
        stored = msgspec.json.decode(
            msgspec.json.encode(observe(plan, stored, each)), type=EvidenceState
        )
    assert stored == observed(plan, windows)


def test_state_does_not_grow():
    rng = np.random.default_rng(3)
    plan = plan_of(*EVERY_TEST)
    state, sizes = begin(plan), []
    for index in range(60):
        state = observe(plan, state, rich_window(index, rng))
        sizes.append(len(msgspec.json.encode(state)))
    assert sizes[-1] < 1.1 * sizes[10]
    assert sizes[-1] < 16_000


def test_every_number_stays_finite():
    plan = plan_of(*EVERY_TEST)
    harsh = [
        window_of(
            i,
            VersionTraffic(
                requests=10**8,
                rates={"failures": Counted(10**8, 10**8)},
                histograms={"latency": (*[0] * (BUCKETS - 1), 10**8)},
                categories={"labels": {"b": 10**8}},
                gauges={"gpu": math.inf},
            ),
            VersionTraffic(
                requests=10**8,
                rates={"failures": Counted(10**8, 0)},
                histograms={"latency": (10**8, *[0] * (BUCKETS - 1))},
                categories={"labels": {"a": 10**8}},
            ),
            0.5,
        )
        for i in range(20)
    ]
    state = observed(plan, harsh)
    encoded = msgspec.json.encode((state, assess(plan, state)))
    assert b"null,null" not in encoded
    assert msgspec.json.decode(msgspec.json.encode(state), type=EvidenceState) == state
    said = assess(plan, state)
    numbers = [(each.harm_e, each.safe_e) for each in said.objectives]
    assert np.isfinite(numbers).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 12), rate=st.sampled_from([0.0, 0.01, 0.5]))
def test_decisions_follow_from_the_numbers(seed, count, rate):
    rng = np.random.default_rng(seed)
    plan = plan_of(*EVERY_TEST, rated("pausing", Importance.PAUSE))
    windows = []
    for index in range(count):
        window = rich_window(index, rng)
        trials = window.versions["v2"].requests
        rates = {"pausing": Counted(trials, int(rng.binomial(trials, rate)))}
        changed = msgspec.structs.replace(window.versions["v2"], rates=rates)
        windows.append(msgspec.structs.replace(window, versions={**window.versions, "v2": changed}))
    said = assessed(plan, windows)
    for each in said.objectives:
        assert (each.verdict is Verdict.MISSED) == (each.harm_e >= each.harm_threshold)
        if each.verdict is Verdict.MET:
            assert each.safe_e >= each.safe_threshold
            assert each.candidate_trials
        assert each.detail
    missed = [each for each in said.objectives if each.verdict is Verdict.MISSED]
    assert said.abort or not any(each.importance is Importance.ABORT for each in missed)
    assert not (said.promote and (said.abort or said.pause or missed))
    assert 0.0 <= said.excess_rate_high <= 1.0
    assert said.extra_bad_requests >= 0.0
    assert said.reason
