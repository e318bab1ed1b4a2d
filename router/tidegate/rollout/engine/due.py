"""When time alone makes a step do something.

A step is a function of the status, of what came in, and of the time. If one changed nothing, later
ones with the same inputs change nothing either until the time that `next_due_s` tells. So a rollout
that waits for a person costs nothing meanwhile.
"""

import math
from typing import Final

from tidegate.rollout.engine.stages import GateKind, plan_of
from tidegate.rollout.engine.status import Phase, RolloutStatus
from tidegate.rollout.spec.model import Rollout

__all__ = ["COUNTDOWN", "next_due_s"]

COUNTDOWN: Final = 1 / 60
"""How old the time left in a message may be, as a part of it: of an hour, a minute."""

_COUNTED_DOWN: Final = frozenset({GateKind.TIME, GateKind.WATCH, GateKind.TEST})


def next_due_s(rollout: Rollout, status: RolloutStatus, now_s: float) -> float:
    """Returns when a step may do something although nothing comes in.

    Args:
        rollout: The rollout.
        status: Its status after a step that changed nothing.
        now_s: The time of that step, in seconds since the epoch.

    Returns:
        The time in seconds since the epoch; infinity if there is none, and `now_s` if every step
        may do something.
    """
    tries_s = status.next_try_s if status.next_try_s > now_s else math.inf
    if status.phase is not Phase.PROGRESSING or status.forced or status.original is None:
        return tries_s
    plan = plan_of(rollout.spec, status.original)
    gate = plan.stages[status.stage].gate
    opens_s = math.inf
    if status.is_settled:
        if gate.kind is GateKind.APPROVAL:
            return tries_s
        if gate.kind is GateKind.RAMP:
            # Its weight depends on how long the last one has been in force.
            return now_s
        if gate.kind in _COUNTED_DOWN and gate.seconds is not None:
            since_s = now_s if status.stage_since_s is None else status.stage_since_s
            left_s = gate.seconds - (now_s - since_s)
            # The step says how much time is left.
            opens_s = now_s + left_s * COUNTDOWN if left_s > 0 else math.inf
    limit_s = math.inf
    if plan.time_limit_s is not None and status.clock_s is not None:
        limit_s = status.clock_s + plan.time_limit_s
    return min(tries_s, opens_s, limit_s)
