"""Counts what a version's requests did: one request becomes counts for each measure.

Each measure has its own trials, the requests in which the measured thing could have happened:

- ``grpcFailures`` and ``deadlineExceeded``: every gRPC call. A failure is a code of the measure. A
  caller's cancellation, deadline or bad input is no failure unless the objective names its code; a
  timeout of the proxy is one.
- ``latency``: every request that was answered. A request that ended early, by its caller or by an
  error, counts only if it had already passed the bound: how long its answer would have taken is
  unknown. A quantile takes the duration of a call whose deadline passed, as the least it can be.
- ``timeToFirstToken``: every answer with a first token. Of a stream that is its first byte; of a
  unary call the server's own time. A stream that ended before its first message counts as a latency
  does.
- Tokens, finish reasons, labels and scores: every answer that has them and is OK.
- ``endpointLoad``: every answer with a load report.

This module knows no clock and no network. Categories beyond `MAX_CATEGORIES` count as one.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from tidegate.evidence.buckets import BUCKETS, bucket_of
from tidegate.evidence.window import Counted, MetricName, VersionTraffic
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.rollout.spec.objectives import FAILURE_CODES, Signal
from tidegate.router.sources.request import FinishedRequest

__all__ = [
    "MAX_CATEGORIES",
    "OTHER_CATEGORY",
    "VersionCounts",
    "category_of",
    "event_of",
    "merged",
    "number_of",
]

MAX_CATEGORIES: Final = 4096
"""Most categories of a measure, such as labels."""

OTHER_CATEGORY: Final = "other"
"""The category of all categories beyond the most."""

_DEFAULT_CODES: Final = frozenset(FAILURE_CODES)


def event_of(measure: Measure, request: FinishedRequest) -> bool | None:
    """Whether the bad event of a measure happened in a request; None if the request is no trial."""
    match measure.signal:
        case Signal.GRPC_FAILURES:
            return _failed(measure.codes, request) if request.code else None
        case Signal.DEADLINE_EXCEEDED:
            return _passed_deadline(request) if request.code else None
        case Signal.EMPTY_ANSWERS:
            return _is_empty(request)
        case Signal.TRUNCATED_ANSWERS:
            return request.finish == "length" if request.ok and request.finish else None
        case Signal.ANSWER_DISAGREEMENT | Signal.PROMQL:
            return None
    number = number_of(measure.signal, request)
    if measure.below is not None:
        return None if number is None else number < measure.below
    above = measure.above
    if above is None:
        return None
    if number is not None:
        return number > above
    least = _least(measure.signal, request)
    return True if least is not None and least > above else None


def number_of(signal: Signal, request: FinishedRequest) -> float | None:
    """The number of a signal, in seconds for a duration; None if the request has none."""
    match signal:
        case Signal.LATENCY:
            return request.duration_s if request.ok else None
        case Signal.TIME_TO_FIRST_TOKEN:
            return _first_token_s(request)
        case Signal.INTER_TOKEN_LATENCY:
            return _inter_token_s(request)
        case Signal.TOKENS_PER_ANSWER:
            return request.tokens if request.ok else None
        case Signal.CONFIDENCE:
            return request.confidence if request.ok else None
        case Signal.ENDPOINT_LOAD:
            return request.utilization
        case _:
            return None


def category_of(signal: Signal, request: FinishedRequest) -> str:
    """The category of a request; empty if the request is no trial."""
    if not request.ok:
        return ""
    match signal:
        case Signal.PREDICTION_DRIFT:
            return request.label
        case Signal.FINISH_REASON_DRIFT:
            return request.finish
        case _:
            return ""


class VersionCounts:
    """What a version's requests did, as counts that grow.

    Args:
        measures: What to count.

    Attributes:
        requests: The requests that were added.
    """

    __slots__ = ("_categories", "_histograms", "_measures", "_rates", "requests")

    def __init__(self, measures: Sequence[Measure]) -> None:
        self.requests = 0
        self._measures = measures
        # Lists of trials and events.
        self._rates: dict[MetricName, list[int]] = {}
        self._histograms: dict[MetricName, list[int]] = {}
        self._categories: dict[MetricName, dict[str, int]] = {}

    def add(self, request: FinishedRequest) -> None:
        """Counts a request."""
        self.requests += 1
        for measure in self._measures:
            if measure.kind is MeasureKind.RATE:
                event = event_of(measure, request)
                if event is not None:
                    self.add_trial(measure.metric, event=event)
            elif measure.kind is MeasureKind.CATEGORY:
                category = category_of(measure.signal, request)
                if category:
                    self._add_category(measure.metric, category, 1)
            elif measure.kind is MeasureKind.HISTOGRAM:
                self._add_number(measure, request)

    def add_trial(self, metric: MetricName, *, event: bool) -> None:
        """Counts one trial of a rate."""
        counted = self._rates.get(metric)
        if counted is None:
            counted = self._rates[metric] = [0, 0]
        counted[0] += 1
        counted[1] += event

    def merge(self, other: "VersionCounts") -> None:
        """Adds other counts of the same measures."""
        self.requests += other.requests
        for metric, (trials, events) in other._rates.items():
            counted = self._rates.setdefault(metric, [0, 0])
            counted[0] += trials
            counted[1] += events
        for metric, buckets in other._histograms.items():
            own = self._histograms.setdefault(metric, [0] * BUCKETS)
            for bucket, count in enumerate(buckets):
                own[bucket] += count
        for metric, categories in other._categories.items():
            for category, count in categories.items():
                self._add_category(metric, category, count)

    def traffic(self) -> VersionTraffic:
        """Returns the counts as a value."""
        return VersionTraffic(
            requests=self.requests,
            rates={metric: Counted(*counted) for metric, counted in self._rates.items()},
            histograms={metric: tuple(each) for metric, each in self._histograms.items()},
            categories={metric: dict(each) for metric, each in self._categories.items()},
        )

    def _add_number(self, measure: Measure, request: FinishedRequest) -> None:
        number = number_of(measure.signal, request)
        if number is None and request.code == "DEADLINE_EXCEEDED":
            number = _least(measure.signal, request)
        if number is None:
            return
        buckets = self._histograms.get(measure.metric)
        if buckets is None:
            buckets = self._histograms[measure.metric] = [0] * BUCKETS
        buckets[bucket_of(number)] += 1

    def _add_category(self, metric: MetricName, category: str, count: int) -> None:
        categories = self._categories.setdefault(metric, {})
        if category not in categories and len(categories) >= MAX_CATEGORIES:
            category = OTHER_CATEGORY
        categories[category] = categories.get(category, 0) + count


def merged(parts: Iterable[VersionCounts], measures: Sequence[Measure]) -> VersionCounts:
    """Returns the sum of counts of the same measures."""
    total = VersionCounts(measures)
    for each in parts:
        total.merge(each)
    return total


def _passed_deadline(request: FinishedRequest) -> bool:
    # To a unary call, Envoy answers its own timeout with UNAVAILABLE.
    return request.code == "DEADLINE_EXCEEDED" or request.proxy_timeout


def _failed(codes: frozenset[str], request: FinishedRequest) -> bool:
    if request.code in codes:
        return True
    return request.proxy_timeout and codes == _DEFAULT_CODES


def _is_empty(request: FinishedRequest) -> bool | None:
    # The token that ends an answer is one of its tokens, so an answer without text may have one.
    if not request.ok or request.tokens is None:
        return None
    return request.tokens == 0 or request.characters == 0


def _least(signal: Signal, request: FinishedRequest) -> float | None:
    """What a duration is at least, of a request that ended before it was over."""
    if request.ok:
        return None
    if signal is Signal.LATENCY:
        return request.duration_s
    if signal is Signal.TIME_TO_FIRST_TOKEN and request.streams and request.messages == 0:
        return request.duration_s
    return None


def _first_token_s(request: FinishedRequest) -> float | None:
    if not request.streams:
        return request.first_token_s if request.ok else None
    # The first byte of a stream without a message is that of its error.
    return request.first_byte_s if request.ok or request.messages else None


def _inter_token_s(request: FinishedRequest) -> float | None:
    tokens, first_byte_s = request.tokens, request.first_byte_s
    if not request.ok or not request.streams or tokens is None or first_byte_s is None:
        return None
    return max(0.0, request.duration_s - first_byte_s) / (tokens - 1) if tokens > 1 else None
