"""Quantiles and shares with intervals that assume nothing about the distribution.

**Quantiles.** How many of n independent numbers are below a quantile q has a binomial distribution,
whatever the distribution of the numbers. So two order statistics enclose the quantile with a known
probability (David and Nagaraja 2003, "Order Statistics", 3rd ed., section 7.1).

**Shares** have the interval of Clopper and Pearson (1934, "The use of confidence or fiducial limits
illustrated in the case of the binomial", Biometrika 26), by the same distribution.

**Dependence.** Calls are not independent: those of one batch wait together, and a pause of the
machine slows all calls of a moment. Then n calls tell less than n independent ones. The numbers
are cut into √n blocks in the order of time, and the variance of the blocks' shares above the
quantile is compared with that of independent numbers (batch means; Heidelberger and Lewis 1984,
"Quantile estimation in dependent sequences", Operations Research 32). If it is larger by a factor,
n is divided by that factor.

Two samples of the same time share its slow moments, which then make no difference between them. So
for a comparison the blocks are cut by time, and the variance of the difference of both samples'
shares is compared with that of independent numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = ["Estimate", "Sample", "inflation", "quantile", "ranks", "share", "shared_inflation"]

_FEWEST_BLOCKS: Final = 5
_NEGLIGIBLE: Final = 1e-18
_BISECTIONS: Final = 60


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate.
        low: The interval's lower end; None if there are too few numbers for one.
        high: Its upper end.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Sample:
    """Numbers in the order of time.

    Attributes:
        times_us: When each was taken.
        numbers: The numbers, at least one.
    """

    times_us: Sequence[int]
    numbers: Sequence[float]


def quantile(
    numbers: Sequence[float], probability: float, error: float, inflated: float | None = None
) -> Estimate:
    """Estimates a quantile: the smallest number that a share of the numbers does not exceed.

    Args:
        numbers: The numbers in the order of time, at least one.
        probability: The share, above 0 and below 1.
        error: The probability that the quantile is outside the interval.
        inflated: By which factor dependence makes the variance larger; found in the numbers unless
            given.
    """
    ordered = sorted(numbers)
    count = len(ordered)
    value = ordered[max(math.ceil(probability * count) - 1, 0)]
    if inflated is None:
        inflated = inflation([number > value for number in numbers])
    effective = max(int(count / inflated), 1)
    low, high = ranks(effective, probability, error / 2.0)
    # The ranks are among fewer numbers; rounding goes outwards.
    low = low * count // effective
    high = -(-high * count // effective)
    return Estimate(
        value,
        ordered[low - 1] if low >= 1 else None,
        ordered[high - 1] if high <= count else None,
    )


def share(events: Sequence[bool], error: float, inflated: float | None = None) -> Estimate:
    """Estimates a probability from what happened.

    Args:
        events: Whether the event happened, in the order of time, at least one.
        error: The probability that the true one is outside the interval.
        inflated: As in `quantile`.
    """
    count, happened = len(events), sum(events)
    if inflated is None:
        inflated = inflation(events)
    effective = max(int(count / inflated), 1)
    scaled = happened * effective / count
    low_events, high_events = math.floor(scaled), math.ceil(scaled)
    low = _solve(lambda p: 1.0 - _below(low_events - 1, effective, p) > error / 2.0)
    high = _solve(lambda p: _below(high_events, effective, p) <= error / 2.0)
    return Estimate(
        happened / count,
        low if low_events else 0.0,
        high if high_events < effective else 1.0,
    )


def inflation(events: Sequence[bool]) -> float:
    """Returns by which factor dependence makes the variance of a share larger, at least 1.

    Args:
        events: Whether the event happened, in the order of time, at least one.
    """
    count = len(events)
    length = math.isqrt(count)
    blocks = count // length
    mean = sum(events) / count
    if blocks < _FEWEST_BLOCKS or mean in (0.0, 1.0):
        return 1.0
    shares = (
        sum(events[place : place + length]) / length for place in range(0, blocks * length, length)
    )
    variance = sum((each - mean) ** 2 for each in shares) / (blocks - 1)
    return max(variance / (mean * (1.0 - mean) / length), 1.0)


def shared_inflation(first: Sample, second: Sample) -> float:
    """Returns by which factor dependence makes the variance of a difference of shares larger.

    Args:
        first: Whether the event happened, as 1 or 0.
        second: The same for the other sample, which is of the same time.

    Returns:
        The factor, at least 1.
    """
    blocks = math.isqrt(min(len(first.numbers), len(second.numbers)))
    begin = min(first.times_us[0], second.times_us[0])
    width = (max(first.times_us[-1], second.times_us[-1]) - begin) / max(blocks, 1)
    means = [sum(each.numbers) / len(each.numbers) for each in (first, second)]
    independent = [mean * (1.0 - mean) for mean in means]
    if blocks < _FEWEST_BLOCKS or not width or not any(independent):
        return 1.0
    cut = [_blocks(each, begin, width, blocks) for each in (first, second)]
    ratios: list[float] = []
    for (count_1, sum_1), (count_2, sum_2) in zip(*cut, strict=True):
        if count_1 and count_2:
            expected = independent[0] / count_1 + independent[1] / count_2
            difference = sum_1 / count_1 - means[0] - (sum_2 / count_2 - means[1])
            ratios.append(difference * difference / expected)
    if len(ratios) < _FEWEST_BLOCKS:
        return 1.0
    # Each sample's mean is from the same numbers, so one block tells nothing.
    return max(sum(ratios) / (len(ratios) - 1), 1.0)


def _blocks(sample: Sample, begin: int, width: float, blocks: int) -> list[tuple[int, float]]:
    """Returns the count and the sum of the numbers in each block of time."""
    counts, sums = [0] * blocks, [0.0] * blocks
    for time_us, number in zip(sample.times_us, sample.numbers, strict=True):
        place = min(int((time_us - begin) / width), blocks - 1)
        counts[place] += 1
        sums[place] += number
    return list(zip(counts, sums, strict=True))


@lru_cache(maxsize=4096)
def ranks(count: int, probability: float, error: float) -> tuple[int, int]:
    """Returns the ranks, from 1, of numbers at or below and at or above a quantile.

    Rank 0 or count + 1 means that no number surely is.

    Args:
        count: How many numbers there are.
        probability: Of the quantile.
        error: The probability that a number is on the wrong side.
    """
    # At most this many numbers are below the quantile only with that probability.
    low, high = -1, count
    while high - low > 1:
        middle = (low + high) // 2
        if _below(middle, count, probability) <= error:
            low = middle
        else:
            high = middle
    first = low + 1
    # At least this many numbers are below the quantile only with that probability.
    low, high = 0, count + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _below(count - middle, count, 1.0 - probability) <= error:
            high = middle
        else:
            low = middle
    return first, high


def _below(most: int, count: int, probability: float) -> float:
    """The probability of at most so many events in independent trials."""
    if most < 0:
        return 0.0
    if most >= count or probability <= 0.0:
        return 1.0
    if probability >= 1.0:
        return 0.0
    if most > probability * count:
        return 1.0 - _below(count - most - 1, count, 1.0 - probability)
    # Terms fall from the largest, which is the last.
    term = math.exp(
        math.lgamma(count + 1)
        - math.lgamma(most + 1)
        - math.lgamma(count - most + 1)
        + most * math.log(probability)
        + (count - most) * math.log1p(-probability)
    )
    total, events = 0.0, most
    while term > _NEGLIGIBLE * total and events >= 0:
        total += term
        term *= events * (1.0 - probability) / ((count - events + 1) * probability)
        events -= 1
    return min(total, 1.0)


def _solve(holds_above: Callable[[float], bool]) -> float:
    """Returns the probability from which on a predicate holds."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if holds_above(middle):
            high = middle
        else:
            low = middle
    return high
