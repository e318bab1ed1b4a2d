"""Rollouts in simulated time: the real engine and evidence, with traffic that a test describes.

`RolloutRun` is the shell of the engine in miniature. It keeps the status, carries out the actions
on a simulated host, and makes windows of traffic by drawing from the rates of each version.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from tidegate.evidence.buckets import BUCKETS, bucket_of
from tidegate.evidence.window import Counted, MetricName, TrafficWindow, VersionName, VersionTraffic
from tidegate.rollout.engine.advance import advance
from tidegate.rollout.engine.inputs import ApplySplit, Command, CommandKind, Inputs, Outcome
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.spec import Rollout
from tidegate.rollout.traffic import Applied, HostTraffic, Knowledge, TrafficSplit

if TYPE_CHECKING:
    from tidegate.rollout.engine.history import Event, EventKind

START_S = 1_000_000.0

# Of few requests: a wide margin, short pauses, and no approval.
_SHORT_CANARY = """
apiVersion: tidegate.dev/v1alpha1
kind: Rollout
metadata: {name: vision-int8, namespace: models}
spec:
  host: vision
  baseline: v1
  candidate: v2
  strategy:
    canary:
      steps:
        - weight: 1
        - pause: {for: 1m}
        - weight: 10
        - pause: {untilEvidence: true}
        - weight: 50
  objectives:
    - {signal: grpcFailures, tolerate: 1.2x, margin: 1%}
  decide: {within: 30m}
"""


def rollout_of(text: str = _SHORT_CANARY, **spec: Any) -> Rollout:
    """A rollout of YAML text, with fields of its spec replaced."""
    document = yaml.safe_load(text)
    document["spec"] |= spec
    return Rollout.model_validate(document)


@dataclass
class Version:
    """How a version behaves: the probability of each bad event, and the labels of its answers."""

    rates: Mapping[str, float] = field(default_factory=dict)
    latency_s: Callable[[random.Random], float] | None = None
    labels: Mapping[str, float] = field(default_factory=dict)


HEALTHY = {"v1": Version(), "v2": Version()}
FAILING = {"v1": Version(), "v2": Version({"grpcFailures": 0.2})}
EVIDENCE = {"canary": {"steps": [{"weight": 50}]}}
APPROVAL = {"canary": {"steps": [{"weight": 10}, {"pause": {"untilApproved": True}}]}}


class RolloutRun:
    """A rollout in simulated time.

    Args:
        rollout: The rollout.
        versions: How each version behaves.
        requests_per_s: The host's requests per second.
        seed: Seed of the traffic.
    """

    def __init__(
        self,
        rollout: Rollout,
        versions: Mapping[str, Version] | None = None,
        *,
        requests_per_s: float = 100.0,
        seed: int = 1,
    ) -> None:
        self.rollout = rollout
        self.versions = dict(versions or HEALTHY)
        self.requests_per_s = requests_per_s
        self.now_s = START_S
        self.status = RolloutStatus()
        self.events: list[Event] = []
        self.actions: list[ApplySplit] = []
        self.owner = ""
        self.split = TrafficSplit(weights={"v1": 100.0})
        self.ready = tuple(self.versions)
        self.blocked_by = ""
        self.fail_with = ""
        self.is_permanent = False
        self.split_windows = 1
        self._pending: ApplySplit | None = None
        self._random = random.Random(seed)

    def step(self, seconds: float = 1.0, command: CommandKind | None = None) -> None:
        """Lets time pass, takes one step, and carries out its action by the next step."""
        outcome = self._act()
        windows = tuple(self._windows(seconds)) if seconds else ()
        self.now_s += seconds
        inputs = Inputs(
            windows=windows,
            traffic=HostTraffic(
                host="vision.models.svc.cluster.local",
                split=self.split,
                versions=tuple(self.versions),
                ready=self.ready,
                owner=self.owner,
            ),
            traffic_s=self.now_s,
            outcome=outcome,
            command=None if command is None else Command(kind=command),
            blocked_by=self.blocked_by,
        )
        step = advance(self.rollout, self.status, inputs, self.now_s)
        self.status = step.status
        self.events += step.events
        self.actions += step.actions
        self._pending = step.actions[0] if step.actions else None

    def run(self, seconds: float, interval_s: float = 1.0) -> None:
        """Takes a step each interval for a time."""
        for _ in range(round(seconds / interval_s)):
            self.step(interval_s)

    def run_until(self, *reasons: str, seconds: float = 7200.0, interval_s: float = 1.0) -> None:
        """Takes steps until the phase or the reason is one of these.

        Raises:
            AssertionError: The time is up.
        """
        for _ in range(round(seconds / interval_s)):
            if self.status.reason in reasons or self.status.phase.value in reasons:
                return
            self.step(interval_s)
        raise AssertionError(f"after {seconds:g} s: {self.status.phase}: {self.status.message}")

    def weight(self, version: str = "v2") -> float:
        """The share of a version in force, in percent."""
        return self.split.weights.get(version, 0.0)

    def _act(self) -> Outcome | None:
        action, self._pending = self._pending, None
        if action is None:
            return None
        if self.fail_with:
            permanent = self.is_permanent
            return Outcome(id=action.id, error=self.fail_with, permanent=permanent)
        self.split = action.split
        self.owner = "" if action.release else self.rollout.key
        applied = Applied(
            since_s=self.now_s, requested_s=self.now_s - 0.02, known=Knowledge.ACKNOWLEDGED
        )
        return Outcome(id=action.id, applied=applied)

    def _windows(self, seconds: float) -> Iterator[TrafficWindow]:
        for _ in range(self.split_windows):
            yield self._window(seconds, self.requests_per_s / self.split_windows)

    def _window(self, seconds: float, requests_per_s: float) -> TrafficWindow:
        shares = {VersionName(n): w / 100 for n, w in self.split.weights.items()}
        shares |= {VersionName(n): p / 100 for n, p in self.split.mirrors.items()}
        total = requests_per_s * seconds
        versions = {
            name: self._traffic(str(name), self._count(total * share))
            for name, share in shares.items()
            if share
        }
        return TrafficWindow(
            start_s=self.now_s, end_s=self.now_s + seconds, shares=shares, versions=versions
        )

    def _traffic(self, name: str, requests: int) -> VersionTraffic:
        version = self.versions.get(name, Version())
        rates = {
            MetricName(metric): Counted(
                requests, sum(self._random.random() < rate for _ in range(requests))
            )
            for metric, rate in ({"grpcFailures": 0.0} | dict(version.rates)).items()
        }
        histograms = {}
        if version.latency_s is not None:
            counts = [0] * BUCKETS
            for _ in range(requests):
                counts[bucket_of(version.latency_s(self._random))] += 1
            histograms[MetricName("latency 90%")] = tuple(counts)
        labels: dict[str, int] = {}
        if version.labels:
            names, weights = list(version.labels), list(version.labels.values())
            for label in self._random.choices(names, weights, k=requests):
                labels[label] = labels.get(label, 0) + 1
        categories = {MetricName("predictionDrift"): labels} if labels else {}
        return VersionTraffic(
            requests=requests, rates=rates, histograms=histograms, categories=categories
        )

    def _count(self, expected: float) -> int:
        whole = int(expected)
        return whole + (self._random.random() < expected - whole)


def kinds(run: RolloutRun) -> "list[EventKind]":
    """The kinds of a run's events, in order."""
    return [each.kind for each in run.events]


def started(
    strategy: Mapping[str, Any] = EVIDENCE,
    versions: Mapping[str, Version] | None = None,
    **spec: Any,
) -> RolloutRun:
    """A run whose first split is in force."""
    run = RolloutRun(rollout_of(strategy=strategy, **spec), versions)
    run.step()
    run.step()
    assert run.status.phase is Phase.PROGRESSING
    assert run.status.is_settled
    return run
