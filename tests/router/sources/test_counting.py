"""What counts of one request for each measure: trials, bad events, numbers and categories."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from source_traffic import measure, request

from tidegate.evidence.buckets import BUCKETS, lower_edge, upper_edge
from tidegate.evidence.window import Counted
from tidegate.rollout.measures import MeasureKind
from tidegate.rollout.spec.objectives import FAILURE_CODES, Signal
from tidegate.router.sources import counting
from tidegate.router.sources.counting import OTHER_CATEGORY, VersionCounts, merged

FAILURES = measure(Signal.GRPC_FAILURES)
SLOW = measure(Signal.LATENCY, above=0.2)
LATENCY = measure(Signal.LATENCY, quantile=True)
LATE_TOKEN = measure(Signal.TIME_TO_FIRST_TOKEN, above=0.2)
EARLY, LATE = 0.1, 0.3


def traffic(measures, *requests):
    counts = VersionCounts(tuple(measures))
    for each in requests:
        counts.add(each)
    return counts.traffic()


def rate(measured, *requests):
    counted = traffic([measured], *requests).rates.get(measured.metric, Counted(0, 0))
    return counted.trials, counted.events


def bucket(measured, one):
    """The edges of the bucket of a request, or nothing."""
    buckets = traffic([measured], one).histograms.get(measured.metric)
    if buckets is None:
        return None
    assert (len(buckets), sum(buckets)) == (BUCKETS, 1)
    number = buckets.index(1)
    return lower_edge(number), upper_edge(number)


@pytest.mark.parametrize("code", FAILURE_CODES)
def test_a_code_of_the_measure_is_a_failure(code):
    assert rate(FAILURES, request(code=code), request()) == (2, 1)


@pytest.mark.parametrize(
    "code",
    ["CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED"],
)
def test_the_callers_cancellation_deadline_and_bad_input_are_no_failures(code):
    assert rate(FAILURES, request(code=code)) == (1, 0)


def test_a_timeout_of_the_proxy_is_a_failure():
    late = request(code="DEADLINE_EXCEEDED", proxy_timeout=True)
    assert rate(FAILURES, late) == (1, 1)
    # Codes that the objective names are meant exactly.
    assert rate(measure(Signal.GRPC_FAILURES, codes=["INTERNAL"]), late) == (1, 0)
    named = measure(Signal.GRPC_FAILURES, codes=["DEADLINE_EXCEEDED"])
    assert rate(named, late, request(code="DEADLINE_EXCEEDED")) == (2, 2)


def test_an_http_request_is_no_trial_of_grpc_codes():
    answered = request(code="", ok=True)
    assert rate(FAILURES, answered) == rate(measure(Signal.DEADLINE_EXCEEDED), answered) == (0, 0)
    assert rate(SLOW, answered) == (1, 0)


def test_a_passed_deadline_is_counted_whoever_set_it():
    passed = [request(code="DEADLINE_EXCEEDED", proxy_timeout=each) for each in (True, False)]
    assert rate(measure(Signal.DEADLINE_EXCEEDED), *passed, request()) == (3, 2)


@pytest.mark.parametrize(
    ("duration_s", "code", "counted"),
    [
        (EARLY, "OK", (1, 0)),
        (LATE, "OK", (1, 1)),
        (0.2, "OK", (1, 0)),
        (EARLY, "CANCELLED", (0, 0)),
        (LATE, "CANCELLED", (1, 1)),
        (EARLY, "DEADLINE_EXCEEDED", (0, 0)),
        (LATE, "DEADLINE_EXCEEDED", (1, 1)),
        (EARLY, "INVALID_ARGUMENT", (0, 0)),
        (EARLY, "UNAVAILABLE", (0, 0)),
        (LATE, "UNAVAILABLE", (1, 1)),
    ],
)
def test_a_latency_of_a_call_that_ended_early_counts_only_past_the_bound(duration_s, code, counted):
    assert rate(SLOW, request(duration_s=duration_s, code=code)) == counted


def test_a_quantile_takes_a_passed_deadline_as_the_least_that_the_latency_can_be():
    low, high = bucket(LATENCY, request(duration_s=LATE, code="DEADLINE_EXCEEDED"))
    assert low < LATE <= high
    assert bucket(LATENCY, request(duration_s=LATE, code="CANCELLED")) is None
    assert bucket(LATENCY, request(duration_s=LATE, code="INTERNAL")) is None


def test_time_to_first_token_is_the_first_byte_of_a_stream():
    stream = {"streams": True, "messages": 3, "first_byte_s": LATE, "duration_s": 9.0}
    assert rate(LATE_TOKEN, request(**stream), request(**stream | {"first_byte_s": 0.1})) == (2, 1)
    # It is known even if the stream failed later.
    assert rate(LATE_TOKEN, request(code="INTERNAL", **stream)) == (1, 1)


def test_time_to_first_token_of_a_unary_call_is_the_servers():
    unary = {"messages": 1, "first_byte_s": 9.0, "duration_s": 9.0}
    assert rate(LATE_TOKEN, request(first_token_s=EARLY, **unary)) == (1, 0)
    assert rate(LATE_TOKEN, request(**unary)) == (0, 0)


@pytest.mark.parametrize(("duration_s", "counted"), [(EARLY, (0, 0)), (LATE, (1, 1))])
@pytest.mark.parametrize("code", ["CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE"])
def test_a_stream_without_a_first_token_counts_only_past_the_bound(duration_s, code, counted):
    # The first byte is that of the error.
    ended = request(
        duration_s=duration_s, code=code, streams=True, messages=0, first_byte_s=duration_s
    )
    assert rate(LATE_TOKEN, ended) == counted
    assert rate(LATE_TOKEN, request(duration_s=duration_s, code=code, messages=0)) == (0, 0)


def test_time_between_tokens_is_averaged_over_the_answer():
    measured = measure(Signal.INTER_TOKEN_LATENCY, above=0.05)
    stream = {"streams": True, "messages": 5, "first_byte_s": 0.2}
    at_bound = request(duration_s=0.2 + 4 * 0.05 - 1e-9, tokens=5, **stream)
    above = request(duration_s=0.2 + 4 * 0.06, tokens=5, **stream)
    assert rate(measured, at_bound, above) == (2, 1)
    assert rate(measured, request(duration_s=9.0, tokens=1, **stream)) == (0, 0)
    assert rate(measured, request(duration_s=9.0, tokens=5, messages=1, first_byte_s=0.2)) == (0, 0)
    assert rate(measured, request(duration_s=9.0, tokens=5, code="INTERNAL", **stream)) == (0, 0)


@pytest.mark.parametrize(
    ("answer", "counted"),
    [
        ({"tokens": 0, "characters": 0}, (1, 1)),
        ({"tokens": 0}, (1, 1)),
        ({"tokens": 1, "characters": 0}, (1, 1)),
        ({"tokens": 1, "characters": 4}, (1, 0)),
        ({"tokens": 1}, (1, 0)),
        ({}, (0, 0)),
        ({"tokens": 0, "code": "INTERNAL"}, (0, 0)),
    ],
)
def test_an_answer_without_text_is_empty(answer, counted):
    assert rate(measure(Signal.EMPTY_ANSWERS), request(**answer)) == counted


def test_an_answer_that_ended_at_the_limit_of_tokens_is_truncated():
    answers = [request(finish=each) for each in ("length", "stop", "", "abort")]
    assert rate(measure(Signal.TRUNCATED_ANSWERS), *answers) == (3, 1)
    failed = request(finish="length", code="INTERNAL")
    assert rate(measure(Signal.TRUNCATED_ANSWERS), failed) == (0, 0)


def test_confidence_and_load_count_where_the_server_reports_them():
    unsure = measure(Signal.CONFIDENCE, below=0.5)
    answers = [request(confidence=each) for each in (0.4, 0.5, None)]
    assert rate(unsure, *answers, request(confidence=0.1, code="INTERNAL")) == (2, 1)
    busy = measure(Signal.ENDPOINT_LOAD, above=0.9)
    assert rate(busy, *(request(utilization=each) for each in (0.9, 1.5, None))) == (2, 1)


def test_labels_and_finish_reasons_are_categories():
    labels, finishes = measure(Signal.PREDICTION_DRIFT), measure(Signal.FINISH_REASON_DRIFT)
    answers = [
        request(label="285"),
        request(label="285", finish="stop"),
        request(label="967", code="INTERNAL"),
        request(),
    ]
    assert traffic([labels, finishes], *answers).categories == {
        "predictionDrift": {"285": 2},
        "finishReasonDrift": {"stop": 1},
    }


def test_categories_are_bounded(monkeypatch):
    monkeypatch.setattr(counting, "MAX_CATEGORIES", 3)
    labels = measure(Signal.PREDICTION_DRIFT)
    counted = traffic([labels], *(request(label=str(number)) for number in range(10)))
    assert counted.categories == {"predictionDrift": {"0": 1, "1": 1, "2": 1, OTHER_CATEGORY: 7}}


MEASURES = (
    FAILURES,
    SLOW,
    LATENCY,
    LATE_TOKEN,
    measure(Signal.LATENCY, below=0.05),
    measure(Signal.DEADLINE_EXCEEDED),
    measure(Signal.EMPTY_ANSWERS),
    measure(Signal.CONFIDENCE, quantile=True),
    measure(Signal.PREDICTION_DRIFT),
    measure(Signal.FINISH_REASON_DRIFT),
    measure(Signal.INTER_TOKEN_LATENCY, quantile=True),
)
seconds = st.floats(0, 1000, allow_nan=False)
maybe = lambda values: st.none() | values  # noqa: E731
requests = st.builds(
    request,
    version=st.just("v1"),
    start_s=seconds,
    duration_s=seconds,
    code=st.sampled_from(["OK", "OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "NOT_FOUND"]),
    proxy_timeout=st.booleans(),
    first_byte_s=maybe(seconds),
    messages=maybe(st.integers(0, 5)),
    streams=st.booleans(),
    tokens=maybe(st.integers(0, 5)),
    characters=maybe(st.integers(0, 5)),
    finish=st.sampled_from(["", "stop", "length"]),
    first_token_s=maybe(seconds),
    label=st.sampled_from(["", "1", "2"]),
    confidence=maybe(st.floats(0, 1)),
    utilization=maybe(st.floats(0, 3)),
)


@given(st.lists(requests, max_size=40), st.integers(0, 40))
def test_counts_add_up_however_they_are_split(given_requests, at):
    whole = traffic(MEASURES, *given_requests)
    parts = []
    for part in (given_requests[:at], given_requests[at:]):
        counts = VersionCounts(MEASURES)
        for each in part:
            counts.add(each)
        parts.append(counts)
    assert merged(parts, MEASURES).traffic() == whole


@given(st.lists(requests, max_size=40))
def test_no_measure_has_more_events_than_trials_or_more_trials_than_requests(given_requests):
    counted = traffic(MEASURES, *given_requests)
    assert counted.requests == len(given_requests)
    for each in counted.rates.values():
        assert 0 <= each.events <= each.trials <= len(given_requests)
    for buckets in counted.histograms.values():
        assert sum(buckets) <= len(given_requests)
    for categories in counted.categories.values():
        assert sum(categories.values()) <= len(given_requests)


@given(requests, st.floats(0.001, 100))
def test_a_slower_answer_is_never_a_better_one(one, bound_s):
    """The slower of two calls that differ in nothing else has an event if the other has."""
    measured = measure(Signal.LATENCY, above=bound_s)
    slower = request(
        **{name: getattr(one, name) for name in ("code", "version")}, duration_s=math.inf
    )
    if rate(measured, one)[1]:
        assert rate(measured, slower)[1]


def test_the_kinds_of_measures_go_where_the_evidence_reads_them():
    counted = traffic(MEASURES, request(label="1", finish="stop", confidence=0.5, tokens=2))
    kinds = {each.metric: each.kind for each in MEASURES}
    for holder, kind in (
        (counted.rates, MeasureKind.RATE),
        (counted.histograms, MeasureKind.HISTOGRAM),
        (counted.categories, MeasureKind.CATEGORY),
    ):
        assert {kinds[metric] for metric in holder} == {kind}
