"""A `TrafficObserver` without requests: it answers as a test says.

observer = TrafficObserverDouble()
observer.refuse_next("v2: no healthy upstream")
with observer.held():
    …  # no change comes into force
"""

import asyncio
import contextlib

from tidegate.rollout.traffic import Knowledge
from tidegate.traffic.observing import NotServedError, Sighting


class TrafficObserverDouble:
    """Implements `TrafficObserver`.

    Attributes:
        changes: The changes that it was asked about, in order.
        known: How its answers say that a change is known to be in force.
    """

    def __init__(self):
        self.changes = []
        self.known = Knowledge.OBSERVED
        self._refusals = []
        self._open = asyncio.Event()
        self._open.set()
        self._asked = asyncio.Event()

    async def in_force(self, change):
        self.changes.append(change)
        self._asked.set()
        await self._open.wait()
        if self._refusals and (text := self._refusals.pop(0)):
            raise NotServedError(text)
        return Sighting(since_s=change.written_s + 0.1, known=self.known, detail="seen")

    def refuse_next(self, text, after=0):
        """Finds the next change not served, or one after some others."""
        self._refusals = [""] * after + [text]

    @contextlib.contextmanager
    def held(self):
        """No change comes into force while the context is open."""
        self._open.clear()
        self._asked.clear()
        try:
            yield
        finally:
            self._open.set()

    async def is_asked(self):
        """Returns once a change is written while the observer is held."""
        async with asyncio.timeout(10):
            await self._asked.wait()
