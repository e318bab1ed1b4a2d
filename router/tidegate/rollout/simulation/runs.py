"""Runs of a rollout on synthetic traffic: the engine, an instant mesh, and simulated time.

A run takes a step every few simulated seconds, and fewer as time goes on: a step is at most two
percent of the time that has passed. Requests are Poisson and divided by the split that is in force;
a change of the split takes a second, as on a mesh that acknowledges it.
"""

import enum
from collections.abc import Iterator
from typing import Final

import msgspec
import numpy as np

from tidegate.evidence.window import Counted, TrafficWindow, VersionName, VersionTraffic
from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.inputs import ApplySplit, Command, CommandKind, Inputs, Outcome
from tidegate.rollout.engine.status import ENDED, PauseCause, Phase, RolloutStatus
from tidegate.rollout.measures import Measure, MeasureKind, measures_of
from tidegate.rollout.simulation.behaviour import Behaviour
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.traffic import Applied, HostTraffic, Knowledge, TrafficSplit

__all__ = ["End", "Point", "Run", "Scenario", "run_once"]

_APPLY_S: Final = 1.0
_GROWTH: Final = 0.02
_MOST_STEPS: Final = 200_000
# Simulated time begins here; the engine takes times since the epoch.
_START_S: Final = 1e9


class End(enum.Enum):
    """How a run ended."""

    PROMOTED = "promoted"
    ABORTED = "aborted"
    PAUSED = "paused"
    COMPLETED = "completed"
    OPEN = "still open"


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate.

    Attributes:
        rollout: The rollout.
        baseline: How the baseline behaves.
        candidates: How each candidate behaves, by name.
        requests_per_s: The host's requests per second.
        step_s: Seconds between two steps of the engine at first.
        limit_s: When a run is given up.
        approve_after_s: How long a person takes to approve a step.
    """

    rollout: Rollout
    baseline: Behaviour
    candidates: dict[str, Behaviour]
    requests_per_s: float
    step_s: float = 5.0
    limit_s: float = 86400.0
    approve_after_s: float = 0.0


class Point(msgspec.Struct, frozen=True, array_like=True):
    """A moment of a run.

    Attributes:
        time_s: Seconds from the start.
        weight: The first candidate's share of the requests in percent.
        extra_bad: Extra bad requests so far, as they truly were.
    """

    time_s: float
    weight: float
    extra_bad: float


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one run.

    Attributes:
        end: How it ended.
        time_s: When, in seconds from the start.
        reason: Why, in words.
        extra_bad: Bad requests that users got beyond those the baseline would have given them.
        candidate_requests: Requests that the candidates answered.
        approvals: How often a person approved a step.
        points: Its course; a point for each change of the weight, and now and then.
    """

    end: End
    time_s: float
    reason: str
    extra_bad: float
    candidate_requests: int
    approvals: int
    points: tuple[Point, ...]


def run_once(scenario: Scenario, seed: int) -> Run:
    """Simulates one rollout from its start to its end.

    Args:
        scenario: What to simulate.
        seed: Decides the requests.
    """
    return _Course(scenario, np.random.default_rng(seed)).run()


class _Course:
    """One run."""

    def __init__(self, scenario: Scenario, random: np.random.Generator) -> None:
        spec = scenario.rollout.spec
        self._scenario = scenario
        self._spec = spec
        self._measures = measures_of(spec)
        self._random = random
        self._versions = {spec.baseline: scenario.baseline, **scenario.candidates}
        self._split = TrafficSplit(weights={spec.baseline: 100.0})
        self._status = RolloutStatus()
        self._extra_bad = 0.0
        self._candidate_requests = 0
        self._approvals = 0
        self._points: list[Point] = []

    def run(self) -> Run:
        """Runs it."""
        scenario, now_s, step_s = self._scenario, 0.0, self._scenario.step_s
        outcome: Outcome | None = None
        asked_s: float | None = None
        for _ in range(_MOST_STEPS):
            approves = asked_s is not None and now_s - asked_s >= scenario.approve_after_s
            window = None if outcome is not None or now_s == 0 else self._window(now_s, step_s)
            step = advance(
                scenario.rollout,
                self._status,
                Inputs(
                    windows=() if window is None else (window,),
                    traffic=self._traffic(),
                    traffic_s=_START_S + now_s,
                    outcome=outcome,
                    command=Command(kind=CommandKind.PROMOTE) if approves else None,
                ),
                _START_S + now_s,
            )
            self._approvals += approves
            self._status, outcome = step.status, None
            self._note(now_s)
            if end := self._end(now_s):
                return end
            waits = self._status.reason == "WaitingForApproval"
            asked_s = None if not waits else now_s if asked_s is None or approves else asked_s
            for action in step.actions:
                outcome = self._apply(action, now_s)
            step_s = max(scenario.step_s, now_s * _GROWTH)
            now_s += _APPLY_S if outcome is not None else step_s
        return self._ended(End.OPEN, now_s)

    def _apply(self, action: ApplySplit, now_s: float) -> Outcome:
        self._split = action.split
        applied = Applied(
            since_s=_START_S + now_s + _APPLY_S,
            requested_s=_START_S + now_s,
            known=Knowledge.ACKNOWLEDGED,
        )
        return Outcome(id=action.id, applied=applied)

    def _traffic(self) -> HostTraffic:
        versions = (self._spec.baseline, *self._spec.candidate_names)
        begun = self._status.started_s is not None
        return HostTraffic(
            host=self._spec.host,
            split=self._split,
            versions=versions,
            ready=versions,
            owner=self._scenario.rollout.key if begun else "",
        )

    def _window(self, now_s: float, step_s: float) -> TrafficWindow:
        weights = self._split.weights
        names = list(self._versions)
        shares = np.array([weights.get(name, 0.0) / 100 for name in names])
        total = self._random.poisson(self._scenario.requests_per_s * step_s)
        counts = self._random.multinomial(total, shares / shares.sum())
        answered = dict(zip(names, (int(each) for each in counts), strict=True))
        told = {name: weight / 100 for name, weight in weights.items() if weight}
        for name, percent in self._split.mirrors.items():
            told[name] = percent / 100
            answered[name] = int(self._random.binomial(answered[self._spec.baseline], told[name]))
        found = {}
        for name, count in answered.items():
            if name in told:
                is_user = name not in self._split.mirrors
                found[VersionName(name)] = self._version(name, count, now_s, is_user=is_user)
        return TrafficWindow(
            start_s=_START_S + now_s - step_s,
            end_s=_START_S + now_s,
            shares={VersionName(name): share for name, share in told.items()},
            versions=found,
        )

    def _version(self, name: str, count: int, now_s: float, *, is_user: bool) -> VersionTraffic:
        behaviour, random = self._versions[name], self._random
        rates, histograms, categories, gauges = {}, {}, {}, {}
        extra = 0.0
        for measure in self._measures:
            match measure.kind:
                case MeasureKind.RATE:
                    bad = int(random.binomial(count, behaviour.rate(measure, now_s)))
                    rates[measure.metric] = Counted(count, bad)
                    extra += bad - count * self._scenario.baseline.rate(measure, now_s)
                case MeasureKind.HISTOGRAM:
                    drawn = random.multinomial(count, behaviour.buckets(measure, now_s))
                    histograms[measure.metric] = tuple(drawn.tolist())
                case MeasureKind.CATEGORY:
                    drawn = random.multinomial(count, behaviour.mix(measure, now_s))
                    categories[measure.metric] = _labelled(measure, drawn.tolist())
                case MeasureKind.GAUGE:
                    value = behaviour.gauge(measure, now_s)
                    if value is not None:
                        gauges[measure.metric] = value
        if is_user and name != self._spec.baseline:
            self._extra_bad += extra
            self._candidate_requests += count
        return VersionTraffic(
            requests=count,
            rates=rates,
            histograms=histograms,
            categories=categories,
            gauges=gauges,
        )

    def _note(self, now_s: float) -> None:
        weight = self._split.weights.get(self._spec.candidate_names[0], 0.0)
        last = self._points[-1] if self._points else None
        if last is None or weight != last.weight or now_s - last.time_s >= last.time_s / 20:
            self._points.append(Point(now_s, weight, self._extra_bad))

    def _end(self, now_s: float) -> Run | None:
        status = self._status
        if status.phase in ENDED:
            return self._ended(_ENDS.get(status.phase, End.ABORTED), now_s)
        if status.phase is Phase.PAUSED and status.pause_cause is not PauseCause.USER:
            return self._ended(End.PAUSED, now_s)
        if now_s >= self._scenario.limit_s:
            return self._ended(End.OPEN, now_s)
        return None

    def _ended(self, end: End, now_s: float) -> Run:
        weight = self._split.weights.get(self._spec.candidate_names[0], 0.0)
        self._points.append(Point(now_s, weight, self._extra_bad))
        return Run(
            end=end,
            time_s=now_s,
            reason=self._status.decision or self._status.message,
            extra_bad=self._extra_bad,
            candidate_requests=self._candidate_requests,
            approvals=self._approvals,
            points=tuple(self._points),
        )


_ENDS: Final = {
    Phase.PROMOTED: End.PROMOTED,
    Phase.ABORTED: End.ABORTED,
    Phase.COMPLETED: End.COMPLETED,
}


def _labelled(measure: Measure, counts: list[int]) -> dict[str, int]:
    return {f"{measure.signal.value}-{at}": count for at, count in _counted(counts)}


def _counted(counts: list[int]) -> Iterator[tuple[int, int]]:
    return ((at, count) for at, count in enumerate(counts) if count)
