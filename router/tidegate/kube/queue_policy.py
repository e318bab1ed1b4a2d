"""Which key a queue gives next, and when: a function of what was added and of the time.

- A key is given to one worker at a time. What is added meanwhile is given once, afterwards.
- Fresh edits come before resyncs, so that a restart with a thousand objects does not delay the edit
  of a person. Of so many keys in a row one is a resync, so that edits never starve resyncs.
- A key that failed comes back after a delay that doubles. All retries together pass a token bucket,
  because a thousand keys that fail by one cause would otherwise retry as one crowd.
- An edit ends the delay of its key: the edit may be the cure. A resync does not.
"""

import enum
import heapq
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from tidegate.kube.backoff import QUEUE_BACKOFF, Backoff

__all__ = ["Priority", "QueuePolicy", "QueueSettings", "TokenBucket"]

_EDITS_IN_A_ROW: Final = 8


class Priority(enum.IntEnum):
    """How urgent a key is; less is more urgent."""

    EDIT = 0
    RESYNC = 1


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How a queue retries.

    Attributes:
        backoff: Between the attempts of one key.
        retries_per_s: Of all keys together, in the long run.
        burst: How many retries may come at once.
    """

    backoff: Backoff = QUEUE_BACKOFF
    retries_per_s: float = 10.0
    burst: int = 100


class TokenBucket:
    """Spreads events: a burst may come at once, the others at a rate.

    Args:
        per_s: The rate.
        burst: How many may come at once.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._at_s = float("-inf")

    def reserve_s(self, now_s: float) -> float:
        """Reserves a place, and gives how long to wait for it."""
        self._refill(now_s)
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._per_s)

    def takes(self, now_s: float) -> bool:
        """Takes a token if one is there."""
        self._refill(now_s)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _refill(self, now_s: float) -> None:
        if now_s > self._at_s:
            self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._per_s)
            self._at_s = now_s


class QueuePolicy:
    """The state of a queue. Its methods take the time, which must not go back.

    Args:
        settings: How it retries.
    """

    def __init__(self, settings: QueueSettings | None = None) -> None:
        self._settings = settings or QueueSettings()
        self._ready: dict[Priority, OrderedDict[str, None]] = {
            priority: OrderedDict() for priority in Priority
        }
        # When each delayed key comes, and a heap of the same, which may hold outdated times.
        self._due_s: dict[str, tuple[float, Priority]] = {}
        self._heap: list[tuple[float, str]] = []
        self._running: set[str] = set()
        self._again: dict[str, Priority] = {}
        self._failures: dict[str, int] = {}
        self._retries = TokenBucket(self._settings.retries_per_s, self._settings.burst)
        self._edits_in_a_row = 0

    def __len__(self) -> int:
        """How many keys wait, delayed ones included."""
        return self.ready + len(self._due_s) + len(self._again)

    @property
    def ready(self) -> int:
        """How many keys a worker could take now, but for delayed ones that have become due."""
        return sum(len(keys) for keys in self._ready.values())

    def add(self, key: str, priority: Priority) -> None:
        """Adds a key; it is merged with what waits under the same key."""
        if key in self._running:
            self._again[key] = min(priority, self._again.get(key, priority))
            return
        if key in self._due_s and key in self._failures and priority is Priority.RESYNC:
            return
        self._due_s.pop(key, None)
        edits, resyncs = self._ready[Priority.EDIT], self._ready[Priority.RESYNC]
        if priority is Priority.EDIT:
            resyncs.pop(key, None)
            edits.setdefault(key, None)
        elif key not in edits:
            resyncs.setdefault(key, None)

    def add_after(self, key: str, priority: Priority, due_s: float) -> None:
        """Adds a key at a later time; it comes earlier if it is added in between.

        Args:
            key: The key.
            priority: Its priority then.
            due_s: When.
        """
        if any(key in keys for keys in self._ready.values()):
            return
        known = self._due_s.get(key)
        if known is None or due_s < known[0]:
            self._due_s[key] = (due_s, priority)
            heapq.heappush(self._heap, (due_s, key))

    def take(self, now_s: float) -> str | None:
        """Gives the next key to a worker; None if none is due."""
        self._promote(now_s)
        edits, resyncs = self._ready[Priority.EDIT], self._ready[Priority.RESYNC]
        turn_of_resync = self._edits_in_a_row >= _EDITS_IN_A_ROW and resyncs
        if edits and not turn_of_resync:
            self._edits_in_a_row += 1
            key, _ = edits.popitem(last=False)
        elif resyncs:
            self._edits_in_a_row = 0
            key, _ = resyncs.popitem(last=False)
        else:
            return None
        self._running.add(key)
        return key

    def next_due_s(self) -> float | None:
        """When the next delayed key comes; None if none is delayed."""
        self._drop_outdated()
        return self._heap[0][0] if self._heap else None

    def done(self, key: str) -> None:
        """Takes note that a worker is through with a key; its failures are forgotten."""
        self._failures.pop(key, None)
        self._end(key)

    def failed(self, key: str, now_s: float, draw: float) -> float:
        """Takes note that a key failed, and gives how long it waits.

        Args:
            key: The key.
            now_s: The time.
            draw: A random number from 0 to 1.
        """
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = self._settings.backoff.delay_s(failures, draw)
        delay_s = max(delay_s, self._retries.reserve_s(now_s))
        self.add_after(key, Priority.RESYNC, now_s + delay_s)
        self._end(key)
        return delay_s

    def forget(self, key: str) -> None:
        """Drops a key that is gone; a worker that has it goes on."""
        self._failures.pop(key, None)
        self._due_s.pop(key, None)
        self._again.pop(key, None)
        for keys in self._ready.values():
            keys.pop(key, None)

    def _end(self, key: str) -> None:
        self._running.discard(key)
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, again)

    def _promote(self, now_s: float) -> None:
        while (due_s := self.next_due_s()) is not None and due_s <= now_s:
            _, key = heapq.heappop(self._heap)
            _, priority = self._due_s.pop(key)
            self.add(key, priority)

    def _drop_outdated(self) -> None:
        while self._heap:
            due_s, key = self._heap[0]
            known = self._due_s.get(key)
            if known is not None and known[0] == due_s:
                return
            heapq.heappop(self._heap)
