"""Weights: how a route divides its requests, and how a cohort stays together while weights move.

Envoy takes a number for each request, its remainder by the sum of the weights, and goes down the
list until the weights passed exceed it. By itself the number is random. With a hash of a header
instead, a user always has the same number; then a destination that comes first has the users below
its weight, and when it gets more weight of the same sum it keeps them all and gets others. So where
a hash decides, weights are brought to one constant sum, whatever sum they were written with.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

__all__ = ["STICKY_TOTAL", "for_random", "for_sticky"]

STICKY_TOTAL: Final = 1_000_000
"""The sum that weights are brought to where a hash decides: a ten-thousandth of a percent."""

# Envoy keeps the sum in 32 bits.
_GREATEST_TOTAL: Final = 2**32 - 1


def for_random(weights: Sequence[int]) -> tuple[int, ...]:
    """Weights as they are written, unless their sum is too great for Envoy."""
    if sum(weights) <= _GREATEST_TOTAL:
        return tuple(weights)
    return for_sticky(weights)


def for_sticky(weights: Sequence[int]) -> tuple[int, ...]:
    """Weights of the same proportions, of which the sum is always `STICKY_TOTAL`.

    Args:
        weights: as they are written, of which one is above 0.
    """
    total = sum(weights)
    bounds = (passed * STICKY_TOTAL // total for passed in accumulate(weights, initial=0))
    return tuple(upper - lower for lower, upper in pairwise(bounds))
