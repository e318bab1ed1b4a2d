"""What a candidate did to its callers, from the calls that they made. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Call", "Harm", "harm_of"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        ended_s: When it ended, in seconds since the load began.
        took_s: How long it took.
        version: The version that answered; empty if no server did.
        ok: Whether it succeeded.
    """

    ended_s: float
    took_s: float
    version: str
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What a candidate did.

    Attributes:
        calls: Calls of the callers, to any version.
        candidate_calls: Calls that the candidate answered, well or not.
        exposed_s: From the candidate's first answer, or from when it became bad, to its last.
        extra_failed: Its failed calls beyond the share that any version fails.
        slow: Its calls that took longer than the bound.
        lost: Calls that failed and that no server failed.
    """

    calls: int
    candidate_calls: int
    exposed_s: float
    extra_failed: float
    slow: int
    lost: int


def harm_of(
    calls: Iterable[Call], candidate: str, *, base: float, slow_s: float, bad_after_s: float = 0.0
) -> Harm:
    """Sums up what a candidate did.

    Args:
        calls: The calls of one host.
        candidate: The candidate's name.
        base: The share of calls that any version fails.
        slow_s: From how many seconds on a call is slow.
        bad_after_s: How long the candidate is good after its first answer.
    """
    total = lost = 0
    answered: list[Call] = []
    for each in calls:
        total += 1
        lost += not each.version
        if each.version == candidate:
            answered.append(each)
    first_s = min((each.ended_s for each in answered), default=0.0) + bad_after_s
    last_s = max((each.ended_s for each in answered), default=first_s)
    failed = sum(not each.ok for each in answered)
    return Harm(
        calls=total,
        candidate_calls=len(answered),
        exposed_s=max(0.0, last_s - first_s),
        extra_failed=failed - base * len(answered),
        slow=sum(each.took_s > slow_s for each in answered),
        lost=lost,
    )
