"""The ramp: how large a share of a candidate the harm budget allows.

The worst that can happen until the engine looks and acts again is that every request which the
candidate gets has a bad event, as far as the evidence cannot rule that out. The evidence bounds the
candidate's rate of extra bad events from above (`Assessment.excess_rate_high`). The ramp gives the
candidate the share at which this worst case costs half of what is left of the budget. So the
candidate begins with little, and its share grows about as fast as the number of its requests: each
good request lowers the bound.

How many bad requests the candidate has cost is an estimate, and chance alone can make it larger
than the budget. So a spent budget takes the candidate's traffic away only if there is evidence of
harm too (`STOP_E`); otherwise the candidate keeps its start weight until the evidence is clear.
"""

from typing import Final

from tidegate.rollout.spec.strategies import Ramp

__all__ = ["HORIZON_S", "STOP_E", "next_weight"]

HORIZON_S: Final = 10.0
"""How long the engine may take to look again and to act, in seconds: an evaluation, a change of
weights, and requests that end late."""

STOP_E: Final = 20.0
"""The e-value of harm from which a spent budget stops the candidate. A candidate that meets every
objective ever reaches it with a probability of at most one in twenty."""

_SPENT_AT_ONCE: Final = 0.5
# A change of weights cuts the evidence's window, so small ones are not worth it.
_LEAST_GROWTH: Final = 1.25
# The first estimates of the traffic are rough, so one step does not rely on them too much.
_MOST_GROWTH: Final = 3.0
_DWELL_S: Final = 3.0


def next_weight(
    ramp: Ramp,
    weight: float,
    *,
    budget_left: float,
    requests_per_s: float,
    excess_rate_high: float,
    harm_e: float,
    in_force_for_s: float,
) -> float:
    """Returns the candidate's next share in percent; the present one if it should stay.

    Args:
        ramp: The limits.
        weight: The present share in percent.
        budget_left: Extra bad requests that the rollout may still cost.
        requests_per_s: The host's requests per second; 0 if unknown.
        excess_rate_high: Upper bound of the candidate's rate of extra bad events.
        harm_e: The e-value of harm.
        in_force_for_s: How long the present share has been in force, in seconds.
    """
    if budget_left <= 0:
        return 0.0 if harm_e >= STOP_E else min(weight, ramp.start_weight)
    if requests_per_s <= 0:
        return weight
    worst = requests_per_s * HORIZON_S * max(excess_rate_high, 1e-6)
    allowed = 100 * _SPENT_AT_ONCE * budget_left / worst
    allowed = min(allowed, weight * _MOST_GROWTH)
    target = _rounded(min(max(allowed, ramp.start_weight), ramp.max_weight))
    if target < weight:
        # Less only if clearly less: the bound moves a little with every window.
        return target if target * _LEAST_GROWTH <= weight else weight
    if in_force_for_s < _DWELL_S:
        return weight
    grows = target >= weight * _LEAST_GROWTH or (target == ramp.max_weight and target > weight)
    return target if grows else weight


def _rounded(weight: float) -> float:
    """Two digits, rounded down, at most three decimals."""
    if weight >= 10:
        return float(int(weight))
    return max(int(weight * 10) / 10 if weight >= 1 else int(weight * 1000) / 1000, 0.001)
