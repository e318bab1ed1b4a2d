"""The test of a gauge: is it past its limit, and for how long?

A gauge, such as the result of a PromQL query, is one number and no count of trials, so nothing can
be said about error rates: the limit alone decides. A gauge that is missing or NaN is no data. A
reading stays valid for a while, because a window without it is normal: the windows of an epoch that
has ended have no gauges.
"""

import math
from typing import Final

import msgspec

from tidegate.evidence.plan import LimitTest

__all__ = ["LimitState"]

_VALID_FOR_S: Final = 60.0


class LimitState(msgspec.Struct, frozen=True, tag="limit"):
    """What is remembered for a limit.

    Attributes:
        value: The last reading; None without one.
        read_s: When it was read, in seconds since the epoch.
        past_since_s: Since when every reading is past the limit; None if the last one is within.
        readings: How many readings there were.
    """

    value: float | None = None
    read_s: float = 0.0
    past_since_s: float | None = None
    readings: int = 0

    def observe(self, test: LimitTest, value: float | None, end_s: float) -> "LimitState":
        """Returns the state after a window.

        Args:
            test: The test.
            value: The reading; None or NaN if there is none.
            end_s: The window's end.
        """
        if value is None or math.isnan(value):
            return LimitState() if end_s - self.read_s > _VALID_FOR_S else self
        if end_s < self.read_s:
            return self
        past = value > test.limit if test.large_is_bad else value < test.limit
        since_s = None
        if past:
            since_s = end_s if self.past_since_s is None else self.past_since_s
        return LimitState(_finite(value), end_s, since_s, self.readings + 1)

    def is_missed(self, test: LimitTest) -> bool:
        """Whether the gauge has been past the limit for long enough."""
        return self.past_since_s is not None and self.read_s - self.past_since_s >= test.for_s

    def is_met(self) -> bool:
        """Whether the last reading is within the limit."""
        return self.value is not None and self.past_since_s is None


def _finite(value: float) -> float:
    """Returns the value, or the largest number instead of infinity, which JSON lacks."""
    return max(min(value, 1e300), -1e300)
