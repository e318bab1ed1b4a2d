"""The state of the rollouts as Prometheus metrics.

It is read when Prometheus asks, so it costs an evaluation nothing, and a rollout that is deleted
leaves no series behind. A rollout that has ended keeps two, its description and its phase: weights,
evidence and harm are those of a rollout in progress. So the number of series is bounded by the
rollouts in progress, each with at most ten candidates and twenty objectives.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment
from tidegate.rollout.engine.stages import GateKind, plan_of
from tidegate.rollout.engine.status import ENDED, Phase, RolloutStatus
from tidegate.rollout.spec.model import RolloutSpec
from tidegate.router.registry import RolloutRecord

__all__ = ["RolloutCollector", "publishing"]

_ROLLOUT: Final = ("namespace", "name")
_CANDIDATE: Final = (*_ROLLOUT, "candidate")
_OBJECTIVE: Final = (*_CANDIDATE, "objective")

# Name after `tidegate_rollout_`, help, labels. In the order in which `/metrics` shows them.
_GAUGES: Final = (
    (
        "info",
        "1 for each rollout, with its host, strategy and versions.",
        (*_ROLLOUT, "host", "strategy", "baseline", "candidates"),
    ),
    ("phase", "1 for the phase of each rollout.", (*_ROLLOUT, "phase")),
    (
        "reason",
        "1 for what the gate of a rollout in progress waits for, or why it is paused, in one word.",
        (*_ROLLOUT, "reason"),
    ),
    ("problem", "1 if a rollout in progress cannot be evaluated as it should be.", _ROLLOUT),
    ("stage", "The current stage, from 1; 0 before the first.", _ROLLOUT),
    ("stages", "How many stages the rollout has; 0 before the first.", _ROLLOUT),
    (
        "duration_seconds",
        "Time since a rollout in progress first changed traffic.",
        _ROLLOUT,
    ),
    (
        "progression_duration_seconds",
        "The part of it that counts for decide.within: without pauses.",
        _ROLLOUT,
    ),
    (
        "manual_pause_duration_seconds",
        "For how long a rollout has waited for a person; 0 if it does not.",
        _ROLLOUT,
    ),
    ("weight_percent", "The share of each version that is intended.", (*_ROLLOUT, "version")),
    (
        "written_weight_percent",
        "The share of each version that the mesh's objects say, as they were read last.",
        (*_ROLLOUT, "version"),
    ),
    (
        "lost_requests",
        "Requests that are not in the evidence because their records were lost, by an estimate.",
        _ROLLOUT,
    ),
    (
        "harm_spent_requests",
        "Extra bad requests that count against the harm budget, by the best estimate.",
        _ROLLOUT,
    ),
    ("harm_budget_requests", "The harm budget of a ramp.", _ROLLOUT),
    (
        "harm_e_value",
        "The e-value against a candidate that meets its objectives.",
        _CANDIDATE,
    ),
    ("harm_threshold", "The e-value from which harm is proven.", _CANDIDATE),
    (
        "extra_bad_requests",
        "Bad requests beyond those that the baseline's rate explains, by the best estimate.",
        _CANDIDATE,
    ),
    (
        "sample_ratio_e_value",
        "The e-value against the intended shares of the requests.",
        _CANDIDATE,
    ),
    (
        "sample_ratio_threshold",
        "The e-value from which a sample-ratio mismatch is proven.",
        _CANDIDATE,
    ),
    (
        "objective_verdict",
        "1 for what is proven about an objective.",
        (*_OBJECTIVE, "verdict"),
    ),
    (
        "objective_harm_e_value",
        "The e-value against a candidate that is acceptable.",
        _OBJECTIVE,
    ),
    (
        "objective_harm_threshold",
        "The e-value from which an objective alone proves harm.",
        _OBJECTIVE,
    ),
    (
        "objective_safe_e_value",
        "The e-value against a candidate that is at or past the limit of what is tolerated.",
        _OBJECTIVE,
    ),
    (
        "objective_safe_threshold",
        "The e-value from which an objective is met.",
        _OBJECTIVE,
    ),
    (
        "objective_effect",
        "The best estimate of the compared quantity: a ratio, a distance or a number.",
        _OBJECTIVE,
    ),
    (
        "objective_effect_low",
        "Lower end of the effect's confidence sequence.",
        _OBJECTIVE,
    ),
    (
        "objective_effect_high",
        "Upper end of the effect's confidence sequence.",
        _OBJECTIVE,
    ),
    ("objective_effect_limit", "The effect that is tolerated.", _OBJECTIVE),
    (
        "objective_value",
        "The rate, quantile or number of each version; durations in seconds.",
        (*_OBJECTIVE, "version"),
    ),
    (
        "objective_trials",
        "Requests, or users, of each version that an objective has counted.",
        (*_OBJECTIVE, "version"),
    ),
)
_COUNTERS: Final = (
    (
        "requests",
        "Requests, or users, of each version that were counted as evidence by this process.",
        (*_ROLLOUT, "version"),
    ),
)


class RolloutCollector(Collector):
    """The state of the rollouts.

    Args:
        records: The rollouts; iterated on the thread of the HTTP server.
        clock: Gives the time in seconds since the epoch.
    """

    def __init__(
        self, records: Iterable[RolloutRecord], clock: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Names the metrics."""
        return iter(_Families().all())

    def collect(self) -> Iterator[Metric]:
        """Gives the metrics with their values."""
        families = _Families()
        for each in self._records:
            families.add(each, self._clock())
        return iter(families.all())


@contextlib.contextmanager
def publishing(records: Iterable[RolloutRecord]) -> Iterator[None]:
    """Adds the state of the rollouts to ``/metrics`` while the context is open."""
    collector = RolloutCollector(records)
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)


class _Families:
    """The metrics of one scrape."""

    def __init__(self) -> None:
        self._gauges = {
            name: GaugeMetricFamily(f"tidegate_rollout_{name}", text, labels=labels)
            for name, text, labels in _GAUGES
        }
        self._counters = {
            name: CounterMetricFamily(f"tidegate_rollout_{name}", text, labels=labels)
            for name, text, labels in _COUNTERS
        }

    def all(self) -> list[Metric]:
        return [*self._gauges.values(), *self._counters.values()]

    def add(self, record: RolloutRecord, now_s: float) -> None:
        rollout, status = record.rollout, record.status
        labels = (rollout.metadata.namespace, rollout.metadata.name)
        spec = rollout.spec
        candidates = ",".join(spec.candidate_names)
        strategy = spec.strategy.kind
        self._gauge("info", (*labels, record.host, strategy, spec.baseline, candidates), 1)
        self._gauge("phase", (*labels, status.phase.value), 1)
        if status.phase in ENDED:
            return
        self._gauge("reason", (*labels, status.reason), 1)
        self._gauge("problem", labels, 1 if record.problem else 0)
        self._gauge("lost_requests", labels, status.lost_requests)
        self._add_progress(labels, spec, status, now_s)
        self._add_weights(labels, record)
        self._add_harm(labels, spec, status)
        for candidate, assessment in status.assessments.items():
            self._add_assessment((*labels, candidate), spec.baseline, assessment)

    def _gauge(self, name: str, labels: tuple[str, ...], value: float | None) -> None:
        if value is not None:
            self._gauges[name].add_metric(labels, value)

    def _add_progress(
        self, labels: tuple[str, ...], spec: RolloutSpec, status: RolloutStatus, now_s: float
    ) -> None:
        begun = status.original is not None
        self._gauge("stage", labels, status.stage + 1 if begun else 0)
        stages = 0 if status.original is None else len(plan_of(spec, status.original).stages)
        self._gauge("stages", labels, stages)
        if status.started_s is None:
            return
        self._gauge("duration_seconds", labels, max(0.0, now_s - status.started_s))
        # A pause stops the clock where it began.
        until_s = now_s if status.pause_began_s is None else status.pause_began_s
        clock_s = status.started_s if status.clock_s is None else status.clock_s
        self._gauge("progression_duration_seconds", labels, max(0.0, until_s - clock_s))
        since_s = _waits_for_person_since(spec, status)
        waited_s = 0.0 if since_s is None else max(0.0, now_s - since_s)
        self._gauge("manual_pause_duration_seconds", labels, waited_s)

    def _add_weights(self, labels: tuple[str, ...], record: RolloutRecord) -> None:
        status = record.status
        for name, split in (
            ("weight_percent", status.desired),
            ("written_weight_percent", status.observed),
        ):
            shares: Mapping[str, float] = {} if split is None else split.weights
            for version, percent in shares.items():
                self._gauge(name, (*labels, version), percent)
        for version, count in record.counted.items():
            self._counters["requests"].add_metric((*labels, version), count)

    def _add_harm(self, labels: tuple[str, ...], spec: RolloutSpec, status: RolloutStatus) -> None:
        self._gauge("harm_spent_requests", labels, status.harm_spent - status.harm_forgiven)
        canary = spec.strategy.canary
        if canary is not None and canary.ramp is not None:
            self._gauge("harm_budget_requests", labels, canary.ramp.harm_budget)

    def _add_assessment(self, labels: tuple[str, ...], baseline: str, found: Assessment) -> None:
        self._gauge("harm_e_value", labels, found.harm_e)
        self._gauge("harm_threshold", labels, found.harm_threshold)
        self._gauge("extra_bad_requests", labels, found.extra_bad_requests)
        self._gauge("sample_ratio_e_value", labels, found.sample_ratio.e)
        self._gauge("sample_ratio_threshold", labels, found.sample_ratio.threshold)
        for each in found.objectives:
            self._add_objective(labels, baseline, each)

    def _add_objective(
        self, labels: tuple[str, ...], baseline: str, found: ObjectiveAssessment
    ) -> None:
        candidate = labels[-1]
        labels = (*labels, found.metric)
        self._gauge("objective_verdict", (*labels, found.verdict.value), 1)
        for name, value in (
            ("harm_e_value", found.harm_e),
            ("harm_threshold", found.harm_threshold),
            ("safe_e_value", found.safe_e),
            ("safe_threshold", found.safe_threshold),
            ("effect", found.effect),
            ("effect_low", found.effect_low),
            ("effect_high", found.effect_high),
            ("effect_limit", found.effect_limit),
        ):
            self._gauge(f"objective_{name}", labels, value)
        for version, value, trials in (
            (baseline, found.baseline_value, found.baseline_trials),
            (candidate, found.candidate_value, found.candidate_trials),
        ):
            self._gauge("objective_value", (*labels, version), value)
            self._gauge("objective_trials", (*labels, version), trials)


def _waits_for_person_since(spec: RolloutSpec, status: RolloutStatus) -> float | None:
    """Since when a rollout has waited for a person; None if it does not."""
    if status.phase is Phase.PAUSED:
        return status.pause_began_s
    if status.phase is not Phase.PROGRESSING or status.original is None or not status.is_settled:
        return None
    gate = plan_of(spec, status.original).stages[status.stage].gate
    return status.stage_since_s if gate.kind is GateKind.APPROVAL else None
