"""Prometheus metrics of the rollouts.

The state of the rollouts is read when Prometheus asks, so it costs an evaluation nothing, and a
rollout that is deleted leaves no series behind.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tidegate.router.registry import RolloutRecord

__all__ = [
    "APPLY_FAILURES",
    "APPLY_SECONDS",
    "EVALUATIONS",
    "EVALUATION_FAILURES",
    "LATENESS",
    "RolloutCollector",
    "publishing",
]

_ROLLOUT: Final = ("namespace", "name")

EVALUATIONS = Counter(
    "tidegate_rollout_evaluations",
    "Evaluations of rollouts. One to which nothing is new is not evaluated.",
)
EVALUATION_FAILURES = Counter(
    "tidegate_rollout_evaluation_failures", "Evaluations that ended with an error, which is logged."
)
LATENESS = Histogram(
    "tidegate_rollout_evaluation_lateness_seconds",
    "Time from when an evaluation was due to its start.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
APPLY_SECONDS = Histogram(
    "tidegate_rollout_apply_seconds",
    "Time from the start of a change of traffic until it was in force.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
APPLY_FAILURES = Counter(
    "tidegate_rollout_apply_failures", "Changes of traffic that failed; the rollout tries again."
)


class RolloutCollector(Collector):
    """The state of the rollouts.

    Args:
        records: The rollouts; iterated on the thread of the HTTP server.
    """

    def __init__(self, records: Iterable[RolloutRecord]) -> None:
        self._records = records

    def describe(self) -> Iterator[Metric]:
        """Names the metrics."""
        return iter(_families())

    def collect(self) -> Iterator[Metric]:
        """Gives the metrics with their values."""
        families = _families()
        phase, stage, weight, harm, threshold, extra = families
        for each in self._records:
            labels = [each.rollout.metadata.namespace, each.rollout.metadata.name]
            status = each.status
            phase.add_metric([*labels, status.phase.value], 1)
            stage.add_metric(labels, status.stage + 1 if status.original is not None else 0)
            desired = {} if status.desired is None else status.desired.weights
            for version, percent in desired.items():
                weight.add_metric([*labels, version], percent)
            for candidate, assessment in status.assessments.items():
                harm.add_metric([*labels, candidate], assessment.harm_e)
                threshold.add_metric([*labels, candidate], assessment.harm_threshold)
                extra.add_metric([*labels, candidate], assessment.extra_bad_requests)
        return iter(families)


@contextlib.contextmanager
def publishing(records: Iterable[RolloutRecord]) -> Iterator[None]:
    """Adds the state of the rollouts to ``/metrics`` while the context is open."""
    collector = RolloutCollector(records)
    REGISTRY.register(collector)
    try:
        yield
    finally:
        REGISTRY.unregister(collector)


def _families() -> tuple[GaugeMetricFamily, ...]:
    return (
        GaugeMetricFamily(
            "tidegate_rollout_phase",
            "1 for the phase of each rollout.",
            labels=(*_ROLLOUT, "phase"),
        ),
        GaugeMetricFamily(
            "tidegate_rollout_stage",
            "The current stage, from 1; 0 before the first.",
            labels=_ROLLOUT,
        ),
        GaugeMetricFamily(
            "tidegate_rollout_weight_percent",
            "The intended share of each version.",
            labels=(*_ROLLOUT, "version"),
        ),
        GaugeMetricFamily(
            "tidegate_rollout_harm_e_value",
            "The e-value against a candidate that meets its objectives.",
            labels=(*_ROLLOUT, "candidate"),
        ),
        GaugeMetricFamily(
            "tidegate_rollout_harm_threshold",
            "The e-value from which harm is proven.",
            labels=(*_ROLLOUT, "candidate"),
        ),
        GaugeMetricFamily(
            "tidegate_rollout_extra_bad_requests",
            "Bad requests beyond those that the baseline's rate explains, by the best estimate.",
            labels=(*_ROLLOUT, "candidate"),
        ),
    )
