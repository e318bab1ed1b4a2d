"""Spreads the turns of many rollouts over the event loop.

If 1,000 turns are due at once, as on a machine that is too slow for them, the event loop would run
all of them before it looks at anything else. A renewal of the lease needs several of its rounds, so
the lease would be lost, and the next leader would lose it as well. With a pace each round begins
one turn, and all other tasks run in between.
"""

import asyncio

__all__ = ["Pace"]


class Pace:
    """Lets one turn begin in each round of the event loop, in the order in which they ask."""

    def __init__(self) -> None:
        self._first = asyncio.Lock()

    async def wait(self) -> None:
        """Waits until this turn may begin; returns in a round in which no other one begins."""
        async with self._first:
            await asyncio.sleep(0)
