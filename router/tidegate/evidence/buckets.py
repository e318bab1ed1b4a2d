"""The buckets in which measured numbers are counted: seconds, tokens, tokens per second.

All histograms share one grid. Its edges grow by the same factor, eight to a doubling (9 % each), so
a quantile is known to 9 % and a comparison of scales moves by whole buckets. An edge belongs to
the bucket below it, as in Prometheus (``le``).
"""

import math
from typing import Final

__all__ = ["BUCKETS", "PER_DOUBLING", "bucket_of", "lower_edge", "upper_edge"]

PER_DOUBLING: Final = 8
"""Buckets in a factor of two."""

_LOWEST_EXPONENT: Final = -17  # 2**-17 s is 8 µs
_HIGHEST_EXPONENT: Final = 20  # 2**20 s is twelve days; 2**20 is a million tokens

BUCKETS: Final = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) * PER_DOUBLING + 2
"""The number of buckets, with one below and one above the grid."""


def bucket_of(value: float) -> int:
    """Returns the bucket of a number; those outside of the grid go to the first or last bucket."""
    if value <= 2.0**_LOWEST_EXPONENT:
        return 0
    place = math.ceil((math.log2(value) - _LOWEST_EXPONENT) * PER_DOUBLING - 1e-9)
    return min(place, BUCKETS - 1)


def lower_edge(bucket: int) -> float:
    """Returns the number above which a bucket begins."""
    return 0.0 if bucket == 0 else upper_edge(bucket - 1)


def upper_edge(bucket: int) -> float:
    """Returns the largest number of a bucket."""
    if bucket >= BUCKETS - 1:
        return math.inf
    return math.exp2(_LOWEST_EXPONENT + bucket / PER_DOUBLING)
