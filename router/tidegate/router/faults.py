"""Fault points: the places at which a crash could lose, repeat or skip a step.

Each write and each action of the router passes some of them. In production they do nothing. Tests
kill the process at each one and check what the next process makes of it.
"""

import enum
from collections.abc import Callable

__all__ = ["FaultPoint", "OnFaultPoint", "pass_by"]


class FaultPoint(enum.Enum):
    """A place between two effects."""

    WRITE_BEGUN = "a transaction has begun"
    ROLLOUT_WRITTEN = "the transaction holds the rollout, and not yet its status"
    STATUS_WRITTEN = "the transaction holds the status, and not yet the events"
    EVENTS_WRITTEN = "the transaction holds everything, and is not yet committed"
    COMMITTED = "the transaction is committed, and nobody knows it yet"
    STEP_TAKEN = "the new status counts, and its actions have not begun"
    CHANGE_BEGUN = "the source knows that the weights change, and no weight has changed"
    SPLIT_APPLIED = "the split is in force, and the source does not know it yet"
    OUTCOME_NOTED = "the outcome of an action is known, and not yet in the status"


OnFaultPoint = Callable[[FaultPoint], None]
"""Called at each fault point, on any thread."""


def pass_by(point: FaultPoint) -> None:
    """Does nothing."""
    del point
