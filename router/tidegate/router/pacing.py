"""Spreads the turns of many rollouts over the event loop.

If 1,000 turns are due at once, as on a machine that is too slow for them, the event loop would run
all of them before it looks at anything else. A renewal of the lease needs several of its rounds, so
the lease would be lost, and the next leader would lose it as well. With a pace each round begins
one turn, and all other tasks run in between.
"""

import asyncio
import math
from typing import Final

__all__ = ["MOMENTS", "Pace", "next_turn"]

MOMENTS: Final = 10
"""At how many moments of an interval rollouts are looked at."""


class Pace:
    """Lets one turn begin in each round of the event loop, in the order in which they ask."""

    def __init__(self) -> None:
        self._first = asyncio.Lock()

    async def wait(self) -> None:
        """Waits until this turn may begin; returns in a round in which no other one begins."""
        async with self._first:
            await asyncio.sleep(0)


def next_turn(due: float, interval_s: float, now: float) -> float:
    """Returns when the next turn after now is due, by the clock of the event loop.

    Many rollouts share the moments at which they are looked at. Mostly there is nothing to do, and
    to wake up for each of them takes longer than to see that.

    Args:
        due: When the last turn was due.
        interval_s: The time from one turn to the next.
        now: The time.
    """
    if now >= due:
        due += interval_s * (1 + (now - due) // interval_s)
    moment_s = interval_s / MOMENTS
    # What is at a moment already stays there, whatever its last bits are.
    return math.ceil(due / moment_s - 1e-6) * moment_s
