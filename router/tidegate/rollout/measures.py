"""What a source of evidence counts for a rollout: one measure for each objective."""

import enum

import msgspec

from tidegate.evidence.window import MetricName
from tidegate.rollout.spec.model import RolloutSpec
from tidegate.rollout.spec.objectives import FAILURE_CODES, Objective, Signal, SignalKind

__all__ = ["Measure", "MeasureKind", "measures_of"]


class MeasureKind(enum.Enum):
    """The part of `VersionTraffic` that holds a measure."""

    RATE = "rate"
    HISTOGRAM = "histogram"
    CATEGORY = "category"
    GAUGE = "gauge"


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What to count for one objective.

    Attributes:
        metric: The key in the windows.
        signal: What is measured of a request.
        kind: Where the count goes.
        above: A request is a bad event if its number is above this; None for other measures. In
            seconds for a duration.
        below: A request is a bad event if its number is below this; None for other measures.
        codes: The gRPC codes that are a bad event, by name.
        query: The PromQL query of a gauge.
    """

    metric: MetricName
    signal: Signal
    kind: MeasureKind
    above: float | None = None
    below: float | None = None
    codes: frozenset[str] = frozenset()
    query: str = ""


def measures_of(spec: RolloutSpec) -> tuple[Measure, ...]:
    """Returns what to count for a rollout, in the order of its objectives."""
    return tuple(_measure(each) for each in spec.objectives)


def _measure(objective: Objective) -> Measure:
    return Measure(
        metric=objective.metric,
        signal=objective.signal,
        kind=_kind(objective),
        above=None if objective.above is None else objective.above.value,
        below=None if objective.below is None else objective.below.value,
        codes=frozenset(objective.codes or FAILURE_CODES)
        if objective.signal is Signal.GRPC_FAILURES
        else frozenset(),
        query=objective.query or "",
    )


def _kind(objective: Objective) -> MeasureKind:
    match objective.signal.kind:
        case SignalKind.QUERY:
            return MeasureKind.GAUGE
        case SignalKind.CATEGORY:
            return MeasureKind.CATEGORY
        case _:
            return MeasureKind.RATE if objective.quantile is None else MeasureKind.HISTOGRAM
