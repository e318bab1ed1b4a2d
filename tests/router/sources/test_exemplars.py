"""Exemplars: a few calls of each version stand for the others, in bounded memory."""

from tidegate.evidence.window import MetricName
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.rollout.spec.objectives import Signal
from tidegate.router.sources.exemplars import MAX_BAD, MAX_SLOW, Exemplars
from tidegate.router.sources.request import FinishedRequest

MEASURES = (
    Measure(
        metric=MetricName("grpcFailures"),
        signal=Signal.GRPC_FAILURES,
        kind=MeasureKind.RATE,
        codes=frozenset({"UNAVAILABLE"}),
    ),
    Measure(metric=MetricName("latency 50%"), signal=Signal.LATENCY, kind=MeasureKind.HISTOGRAM),
)


def request(number, version="v2", duration_s=0.01, code="OK", trace=True):
    return FinishedRequest(
        version=version,
        start_s=float(number),
        duration_s=duration_s,
        code=code,
        ok=code == "OK",
        trace_id=f"{number:032x}" if trace else "",
        span_id=f"{number:016x}" if trace else "",
    )


def numbers(exemplars):
    return [int(each.trace_id, 16) for each in exemplars.all()]


def test_the_last_bad_calls_come_first_and_then_the_slowest():
    exemplars = Exemplars(MEASURES)
    for number in range(1, 101):
        bad = number % 10 == 0
        exemplars.add(request(number, duration_s=1 / number, code="UNAVAILABLE" if bad else "OK"))
    assert numbers(exemplars) == [70, 80, 90, 100, 1, 2]
    assert exemplars.all()[0].why == "grpcFailures: UNAVAILABLE in 0.0143 s"
    assert exemplars.all()[-1].why == "latency 0.5 s"


def test_each_version_has_its_own_and_memory_is_bounded():
    exemplars = Exemplars(MEASURES)
    for number in range(1, 1_001):
        code = "UNAVAILABLE" if number % 3 == 0 else "OK"
        exemplars.add(request(number, version=f"v{number % 2}", code=code))
    found = exemplars.all()
    assert len(found) == 2 * (MAX_BAD + MAX_SLOW)
    assert {each.version for each in found} == {"v0", "v1"}


def test_calls_that_are_not_traced_are_no_exemplars():
    exemplars = Exemplars(MEASURES)
    exemplars.add(request(1, code="UNAVAILABLE", trace=False))
    assert exemplars.all() == ()


def test_other_weights_forget_slow_calls_and_keep_bad_ones():
    exemplars = Exemplars(MEASURES)
    exemplars.add(request(1, code="UNAVAILABLE"))
    exemplars.add(request(2))
    exemplars.begin_epoch()
    assert numbers(exemplars) == [1]


def test_calls_of_equal_duration_are_no_problem():
    exemplars = Exemplars(MEASURES)
    for number in range(1, 10):
        exemplars.add(request(number))
    assert len(exemplars.all()) == MAX_SLOW
