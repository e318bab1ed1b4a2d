"""Prometheus as a source of evidence: Istio's counters, by version.

It serves where the mesh's access log cannot be had. It knows less:

- The version is the label ``destination_version``, so a subset must be named like it.
- Requests count when they end, in steps of a scrape. A step that touches a change of weights, or
  the `SETTLE_S` seconds after it, counts nowhere: its requests may have started under other
  weights.
- There are no answers, users or mirrored copies. The measures that need them are refused by name.
- A bound of a latency must be a bucket's edge, and a quantile is as coarse as the buckets.
- A deadline counts whoever set it, and is no failure.

A query that matches nothing makes no window. So it is no data, and never a pass.
"""

import math
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Final, Self

import aiohttp
import grpc

from tidegate.evidence.buckets import BUCKETS, bucket_of
from tidegate.evidence.window import (
    Counted,
    MetricName,
    TrafficWindow,
    VersionName,
    VersionTraffic,
)
from tidegate.prometheus import PrometheusApi, PrometheusError, Series
from tidegate.rollout.measures import Measure, MeasureKind
from tidegate.rollout.spec.objectives import Signal
from tidegate.router.sources.counters import CounterReader, Increase
from tidegate.router.sources.gauges import read_gauges, with_gauges
from tidegate.router.sources.source import Epoch, Exemplar, UnsupportedError, Watched
from tidegate.runtime.logging import get_logger

__all__ = ["EDGES_S", "SETTLE_S", "PrometheusSource", "problems_of"]

_log = get_logger(__name__)

SETTLE_S: Final = 10.0
"""How long after a change of weights requests may still end that started before it."""

EDGES_S: Final = (
    *(0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""The edges of the buckets of Istio's histograms, in seconds."""

_REQUESTS: Final = "istio_requests_total"
_DURATIONS: Final = "istio_request_duration_milliseconds_bucket"
_SUPPORTED: Final = frozenset(
    {Signal.GRPC_FAILURES, Signal.DEADLINE_EXCEEDED, Signal.LATENCY, Signal.PROMQL}
)
_CODES: Final = {str(code.value[0]): code.name for code in grpc.StatusCode}
_LOOKBACK_S: Final = 600.0
_OVERLAP_S: Final = 60.0


def problems_of(watched: Watched) -> Iterator[str]:
    """Yields what Prometheus cannot count of a rollout, in words."""
    for measure in watched.measures:
        if measure.signal not in _SUPPORTED:
            known = ", ".join(sorted(_SUPPORTED))
            yield (
                f"{measure.signal} needs the source accessLog; Prometheus has no such counter. "
                f"It has {known}"
            )
        elif measure.below is not None and measure.signal is Signal.LATENCY:
            yield f"{measure.metric}: Prometheus counts latencies above a bound only; use above"
        elif measure.signal is Signal.LATENCY and measure.above not in (None, *EDGES_S):
            yield (
                f"{measure.metric}: Prometheus counts latencies above the edges of its buckets "
                f"only; use {_nearest_edges(measure.above or 0.0)}"
            )
    if watched.sticky is not None:
        yield "sticky needs the source accessLog: Prometheus counts requests and not users"
    if watched.mirrored:
        yield "mirroring needs the source accessLog: Prometheus has no pairs of requests and copies"
    if not watched.url:
        yield "prometheus has no address; set evidence.url, or --prometheus-url of the router"


class PrometheusSource:
    """Counts traffic from Istio's counters in a Prometheus."""

    def __init__(self) -> None:
        self._rollouts: dict[str, _Rollout] = {}
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Asks Prometheus while the context is open."""
        async with aiohttp.ClientSession() as self._session:
            yield self
        self._session = None

    def check(self, watched: Watched) -> None:
        """Makes sure that Prometheus can count what a rollout asks for.

        Raises:
            UnsupportedError: It cannot.
        """
        problems = list(problems_of(watched))
        if problems:
            raise UnsupportedError("; ".join(problems))

    def watch(self, key: str, watched: Watched) -> None:
        """Counts for a rollout from now on; replaces what was watched under its key.

        Raises:
            UnsupportedError: Prometheus cannot count what the rollout asks for.
        """
        self.check(watched)
        self._rollouts[key] = _Rollout(watched)

    def resume(self, host: str, since_s: float, requests_per_s: float) -> bool:
        """Counts nothing that ended before; a counter does not say when requests began."""
        del host, since_s, requests_per_s
        return False

    def begin_change(self, key: str, now_s: float) -> None:
        """Says that the weights are about to change: the current epoch ends at `now_s`."""
        self._rollouts[key].begin_change(now_s)

    def begin_epoch(self, key: str, epoch: Epoch) -> None:
        """Says that new weights are in force."""
        self._rollouts[key].begin_epoch(epoch)

    async def take(self, key: str, now_s: float) -> tuple[TrafficWindow, ...]:
        """Returns what was counted since the last call, one window for each epoch with traffic."""
        rollout = self._rollouts[key]
        assert self._session is not None, "not running"  # noqa: S101 - a fault of the caller
        api = PrometheusApi(self._session, rollout.watched.url)
        problems: tuple[str, ...] = ()
        try:
            windows = await rollout.take(api, now_s)
        except PrometheusError as error:
            windows, problems = (), (str(error),)
        else:
            gauges = await read_gauges(api, rollout.watched, now_s)
            windows = with_gauges(windows, gauges, rollout.lasting, now_s)
            problems = gauges.problems
            if rollout.problem:
                problems = (rollout.problem, *problems)
        if problems and problems != rollout.problems:
            _log.warning("no evidence from Prometheus", rollout=key, problems=problems)
        rollout.problems = problems
        return windows

    def has_news(self, key: str) -> bool:
        """Whether there is something to take: only Prometheus knows."""
        del key
        return True

    def exemplars(self, key: str) -> tuple[Exemplar, ...]:
        """Returns none: Prometheus has counts, and no calls."""
        del key
        return ()

    def forget(self, key: str) -> None:
        """Counts no longer for a rollout."""
        self._rollouts.pop(key, None)

    def problem(self, key: str) -> str:
        """Says why evidence is missing now; empty if nothing is known to be missing."""
        return "; ".join(self._rollouts[key].problems)


class _Span:
    """An epoch, and when it ended."""

    __slots__ = ("end_s", "epoch")

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.end_s = math.inf

    def has(self, increase: Increase) -> bool:
        return increase.from_s >= self.epoch.since_s + SETTLE_S and increase.to_s <= self.end_s


class _Rollout:
    """The counters of one rollout."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.problem = ""
        self.problems: tuple[str, ...] = ()
        self._spans: list[_Span] = []
        self._requests = CounterReader()
        self._durations = CounterReader()
        self._reporter = ""
        self._needs_durations = any(each.signal is Signal.LATENCY for each in watched.measures)

    @property
    def lasting(self) -> Epoch | None:
        """The epoch that lasts; None while the weights change."""
        if not self._spans or self._spans[-1].end_s < math.inf:
            return None
        return self._spans[-1].epoch

    def begin_change(self, at_s: float) -> None:
        if self._spans:
            self._spans[-1].end_s = min(self._spans[-1].end_s, at_s)

    def begin_epoch(self, epoch: Epoch) -> None:
        self.begin_change(epoch.requested_s)
        self._spans.append(_Span(epoch))

    async def take(self, api: PrometheusApi, now_s: float) -> tuple[TrafficWindow, ...]:
        """Reads new samples; returns a window for each epoch with traffic.

        Raises:
            PrometheusError: Prometheus does not answer.
        """
        # Both are asked before either counts as read: a failure in between costs nothing.
        counters = await self._samples(api, _REQUESTS, self._requests, now_s)
        buckets = []
        if self._needs_durations:
            buckets = await self._samples(api, _DURATIONS, self._durations, now_s)
        self._note_reporter({each.labels.get("reporter", "") for each in counters})
        requests = self._requests.read(filter(self._is_reported, counters))
        durations = self._durations.read(filter(self._is_reported, buckets))
        windows = []
        for span in self._spans:
            counted = [each for each in requests if span.has(each)]
            if counted:
                timed = [each for each in durations if span.has(each)]
                windows.append(_window(self.watched, span.epoch, counted, timed))
        # A scrape may come a while after the end of its epoch.
        self._spans = [each for each in self._spans if each.end_s > now_s - _LOOKBACK_S]
        return tuple(windows)

    async def _samples(
        self, api: PrometheusApi, metric: str, reader: CounterReader, now_s: float
    ) -> list[Series]:
        since_s = _LOOKBACK_S if reader.read_s is None else now_s - reader.read_s + _OVERLAP_S
        selector = f'{metric}{{destination_service="{self.watched.host}"}}'
        return await api.samples(selector, since_s, now_s)

    def _is_reported(self, series: Series) -> bool:
        return series.labels.get("reporter", "") == self._reporter

    def _note_reporter(self, reporters: set[str]) -> None:
        """Decides for one side: with sidecars, client and server both count a request."""
        if not self._reporter:
            self._reporter = next(
                (each for each in ("source", "destination") if each in reporters), ""
            )
        self.problem = ""
        if not reporters:
            self.problem = (
                f'{_REQUESTS} has no series with destination_service="{self.watched.host}"; look '
                "whether Prometheus scrapes the proxies"
            )


def _window(
    watched: Watched, epoch: Epoch, requests: list[Increase], durations: list[Increase]
) -> TrafficWindow:
    versions = {}
    for name in (watched.baseline, *watched.candidates):
        own = [each for each in requests if each.labels.get("destination_version") == name]
        if own:
            timed = [each for each in durations if each.labels.get("destination_version") == name]
            versions[VersionName(name)] = _traffic(watched.measures, own, timed)
    return TrafficWindow(
        start_s=min(each.from_s for each in requests),
        end_s=max(each.to_s for each in requests),
        shares={VersionName(name): share for name, share in epoch.shares.items()},
        versions=versions,
    )


def _traffic(
    measures: Iterable[Measure], requests: list[Increase], durations: list[Increase]
) -> VersionTraffic:
    by_code: dict[str, float] = {}
    for each in requests:
        code = _code(each)
        by_code[code] = by_code.get(code, 0.0) + each.by
    rates: dict[MetricName, Counted] = {}
    histograms: dict[MetricName, tuple[int, ...]] = {}
    for measure in measures:
        if measure.kind is MeasureKind.HISTOGRAM:
            histograms[measure.metric] = _histogram(durations)
        elif measure.signal is Signal.LATENCY:
            rates[measure.metric] = _slow(durations, measure.above or 0.0)
        elif measure.kind is MeasureKind.RATE:
            codes = measure.codes or frozenset({"DEADLINE_EXCEEDED"})
            trials = sum(count for code, count in by_code.items() if code)
            events = sum(count for code, count in by_code.items() if code in codes)
            rates[measure.metric] = Counted(round(trials), round(events))
    return VersionTraffic(requests=round(sum(by_code.values())), rates=rates, histograms=histograms)


def _code(increase: Increase) -> str:
    """The gRPC code of a counter; empty for HTTP requests."""
    if increase.labels.get("request_protocol") not in (None, "grpc"):
        return ""
    return _CODES.get(increase.labels.get("grpc_response_status", ""), "")


def _is_ok(increase: Increase) -> bool:
    code = _code(increase)
    if code:
        return code == "OK"
    return increase.labels.get("response_code", "").startswith(("1", "2", "3"))


def _slow(durations: list[Increase], bound_s: float) -> Counted:
    """Trials are answers, and calls without one that lasted longer than the bound."""
    answers = fast_answers = failed = fast_failed = 0.0
    for each in durations:
        edge_s = _edge_s(each)
        whole = edge_s == math.inf
        fast = math.isclose(edge_s, bound_s)
        if _is_ok(each):
            answers += each.by * whole
            fast_answers += each.by * fast
        else:
            failed += each.by * whole
            fast_failed += each.by * fast
    slow_failed = max(0.0, failed - fast_failed)
    events = max(0.0, answers - fast_answers) + slow_failed
    return Counted(round(answers + slow_failed), round(events))


def _histogram(durations: list[Increase]) -> tuple[int, ...]:
    """Puts the answers of a bucket at its upper edge; Istio's buckets are coarse."""
    below: dict[float, float] = {}
    for each in durations:
        edge_s = _edge_s(each)
        if _is_ok(each) and not math.isnan(edge_s):
            below[edge_s] = below.get(edge_s, 0.0) + each.by
    buckets = [0] * BUCKETS
    before = 0.0
    for edge_s in sorted(below):
        place = BUCKETS - 1 if edge_s == math.inf else bucket_of(edge_s)
        buckets[place] += round(max(0.0, below[edge_s] - before))
        before = max(before, below[edge_s])
    return tuple(buckets)


def _edge_s(increase: Increase) -> float:
    try:
        return float(increase.labels.get("le", "")) / 1000
    except ValueError:
        return math.nan


def _nearest_edges(bound_s: float) -> str:
    below = [each for each in EDGES_S if each < bound_s][-1:]
    above = [each for each in EDGES_S if each > bound_s][:1]
    return " or ".join(f"{each * 1000:g}ms" for each in (*below, *above))
