"""Prometheus metrics of the router: what it does, and the state of its rollouts."""

from tidegate.router.metrics.counters import (
    APPLY_FAILURES,
    APPLY_SECONDS,
    EVALUATION_FAILURES,
    EVALUATION_SECONDS,
    EVALUATIONS,
    LATENESS,
    STATUS_WRITES,
    count_events,
)
from tidegate.router.metrics.rollouts import RolloutCollector, publishing

__all__ = [
    "APPLY_FAILURES",
    "APPLY_SECONDS",
    "EVALUATIONS",
    "EVALUATION_FAILURES",
    "EVALUATION_SECONDS",
    "LATENESS",
    "STATUS_WRITES",
    "RolloutCollector",
    "count_events",
    "publishing",
]
