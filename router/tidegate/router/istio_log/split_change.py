"""Since when requests follow a new split, told by their versions alone: pure.

Somebody else's routes carry no mark of a split, so the versions of requests have to show it. At
some unknown request the shares change from *before* to *after*. Each request is independent of the
others, because Envoy draws its version by chance. Two questions are answered, each with half of
the permitted error:

1. **Has the change happened?** A mixture over all moments of the change is a martingale as long as
   nothing has changed. By Ville's inequality (Ville, 1939) it ever reaches 1/error with a
   probability below the error, however often one looks (Shiryaev, 1963, for the mixture).
2. **By when, at the latest?** A moment j is ruled out when some other moment explains the requests
   better by the factor exp(h). Before and after the true moment, the likelihood ratio is a
   martingale in that direction. So the true moment is ever ruled out with a probability below
   2 exp(-h). The answer is the latest moment that is not ruled out.

A version that leaves or appears makes a ratio of 0 or of infinity, so single requests tell a lot.
Requests of other versions tell nothing.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["MAX_CALLS", "changed_since"]

MAX_CALLS: Final = 20_000
"""Most requests that one answer looks at."""


def changed_since(
    calls: Iterable[tuple[float, str]],
    before: Mapping[str, float],
    after: Mapping[str, float],
    error: float,
) -> float | None:
    """Returns since when requests follow the new split.

    Args:
        calls: Start and version of requests through one proxy, in the order of their starts. None
            that started in between may be missing for a reason that depends on its version.
        before: The share of each version before, from 0 to 1.
        after: The share of each version after, from 0 to 1.
        error: With which probability, at most, the answer may be earlier than the truth.

    Returns:
        The start of the first request that follows the new split for certain; None if the requests
        do not show it yet.
    """
    ratios = {
        name: _log_ratio(before.get(name, 0), after.get(name, 0)) for name in {**before, **after}
    }
    bound = math.log(4 / error)
    detected = False
    detection = 2 / error
    mixture = 0.0
    number = 0
    # The starts, and the sum of the ratios before each, since the last request that must be old.
    starts: list[float] = []
    sums: list[float] = []
    total = 0.0
    for start_s, version in calls:
        ratio = ratios.get(version)
        if ratio is None or number >= MAX_CALLS:
            continue
        number += 1
        if ratio == -math.inf:
            starts, sums, total, mixture, detected = [], [], 0.0, 0.0, False
            continue
        if total < math.inf:
            starts.append(start_s)
            sums.append(total)
        total += ratio
        if not detected:
            mixture = (mixture + 1 / (number * (number + 1))) * _exp(ratio)
            detected = mixture + 1 / (number + 1) >= detection
    if not detected:
        return None
    limit = min(*sums, total) + bound
    if total < limit:
        # Perhaps nothing has changed before the next request.
        return None
    return next(
        start for start, sum_ in zip(reversed(starts), reversed(sums), strict=True) if sum_ < limit
    )


def _log_ratio(before: float, after: float) -> float | None:
    if before <= 0 and after <= 0:
        return None
    if before <= 0:
        return math.inf
    return math.log(after / before) if after > 0 else -math.inf


def _exp(ratio: float) -> float:
    return math.inf if ratio > 700 else math.exp(ratio)
