"""What is remembered of the traffic: running sums and products, of a size that does not grow."""

from typing import Final

import msgspec

from tidegate.evidence.limits import LimitState
from tidegate.evidence.mix import MixState
from tidegate.evidence.plan import EvidencePlan, LimitTest, MixTest, QuantileTest, RateTest, Test
from tidegate.evidence.processes import Clock
from tidegate.evidence.quantiles import QuantileState
from tidegate.evidence.rates import RateState
from tidegate.evidence.sample_ratio import SampleRatioState
from tidegate.evidence.window import MetricName

__all__ = ["EvidenceState", "ObjectiveState", "begin_objectives"]

ObjectiveState = RateState | QuantileState | MixState | LimitState

_STATES: Final[dict[type[Test], type[ObjectiveState]]] = {
    RateTest: RateState,
    QuantileTest: QuantileState,
    MixTest: MixState,
    LimitTest: LimitState,
}


class EvidenceState(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a comparison between two windows.

    Attributes:
        metrics: The objectives' measures, which tell whether the state belongs to a plan.
        objectives: What is remembered for each objective, in the plan's order.
        sample_ratio: What is remembered of the split.
        clock: How much of the change detector's stake is placed.
    """

    metrics: tuple[MetricName, ...] = ()
    objectives: tuple[ObjectiveState, ...] = ()
    sample_ratio: SampleRatioState = SampleRatioState()
    clock: Clock = Clock()


def begin_objectives(plan: EvidencePlan) -> tuple[ObjectiveState, ...]:
    """Returns the objectives' states before any traffic."""
    return tuple(_STATES[type(each.test)]() for each in plan.objectives)
