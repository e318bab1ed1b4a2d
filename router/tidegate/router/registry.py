"""The rollouts as the router has them now, and who waits for them to change.

A watcher is not sent each change: it is told which rollouts have changed since it last asked, and
looks at them itself. So a watcher that is slow misses no rollout and no event, and never holds more
than one entry for each rollout.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.status import ENDED
from tidegate.router.store import Stored

__all__ = ["LAST_EVENTS", "Registry", "RolloutRecord", "Watcher"]

LAST_EVENTS: Final = 20
"""How many events a rollout is shown with; the store has all of them."""


class RolloutRecord:
    """A rollout as the router has it now. Everything but `problem` and evidence is on the disk.

    Args:
        stored: The rollout as the store has it.
        events: Its last events.

    Attributes:
        rollout: The rollout.
        status: Its status.
        successor: The rollout that replaces it once its traffic is back at the baseline.
        file: The file that it came from; empty if it came from a call.
        file_rollout: The rollout as that file held it, as JSON.
        problem: Why it could not be evaluated; empty if it could.
        last_events: Its last events, in order.
        host: The full name of its host, as the traffic says; before that, as its spec does.
        counted: The requests of each version that were counted as evidence since this process runs
            it.
    """

    def __init__(self, stored: Stored, events: tuple[Event, ...] = ()) -> None:
        self.rollout = stored.rollout
        self.status = stored.status
        self.successor = stored.successor
        self.file = stored.file
        self.file_rollout = stored.file_rollout
        self.problem = ""
        self.last_events: deque[Event] = deque(events, maxlen=LAST_EVENTS)
        self.host = stored.rollout.spec.host
        self.counted: Counter[str] = Counter()

    @property
    def key(self) -> str:
        """The rollout's identity, ``namespace/name``."""
        return self.rollout.key

    @property
    def has_ended(self) -> bool:
        """Whether it does nothing more by itself."""
        return self.status.phase in ENDED and self.successor is None


class Watcher:
    """Which rollouts have changed since they were last taken."""

    def __init__(self) -> None:
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()

    def note(self, key: str) -> None:
        """Notes that a rollout has changed or is gone."""
        self._changed[key] = None
        self._wake.set()

    async def take(self) -> tuple[str, ...]:
        """Returns the rollouts that have changed, the first to change first; waits for one."""
        await self._wake.wait()
        self._wake.clear()
        changed, self._changed = tuple(self._changed), {}
        return changed


class Registry:
    """All rollouts by key."""

    def __init__(self) -> None:
        self._records: dict[str, RolloutRecord] = {}
        self._watchers: set[Watcher] = set()

    def __iter__(self) -> Iterator[RolloutRecord]:
        """The rollouts by namespace and name; safe on any thread."""
        records = list(self._records.values())
        return iter(sorted(records, key=lambda each: each.key))

    def get(self, key: str) -> RolloutRecord | None:
        """Returns a rollout, or None."""
        return self._records.get(key)

    def named(self, name: str) -> tuple[RolloutRecord, ...]:
        """Returns the rollouts of a name, in every namespace."""
        return tuple(each for each in self if each.rollout.metadata.name == name)

    def add(self, record: RolloutRecord) -> None:
        """Adds a rollout."""
        self._records[record.key] = record
        self.changed(record.key)

    def remove(self, key: str) -> None:
        """Removes a rollout."""
        del self._records[key]
        self.changed(key)

    def changed(self, key: str) -> None:
        """Tells the watchers that a rollout has changed."""
        for watcher in self._watchers:
            watcher.note(key)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watcher]:
        """Gives a watcher while the context is open."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
