"""A queue in which no client can crowd out another.

Each client has a queue of its own, and the clients take turns, one image a turn (round robin). A
client that sends a thousand images delays its own images and not those of others. The queue never
hands out expired or cancelled images, and they cost their client no turn. It is plain data: it has
no lock, no clock and no thread. The caller provides the current time.

A priority orders the images of one client, so it takes no turn from another client. Level 1 goes
first. A level that others overtook `MAX_OVERTAKES` times in a row has the next turn, so that no
level starves.
"""

from collections import OrderedDict, deque
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["DEFAULT_PRIORITY", "LOWEST_PRIORITY", "MAX_OVERTAKES", "FairQueue", "QueueItem"]

DEFAULT_PRIORITY: Final = 2
"""The level of a request that names none."""

LOWEST_PRIORITY: Final = 3
"""The level that goes last; 1 goes first."""

MAX_OVERTAKES: Final = 8
"""How often in a row higher levels may overtake a level."""


class QueueItem(Protocol):
    """An item that may wait in the queue."""

    @property
    def client(self) -> str:
        """The client in whose queue it waits."""
        ...

    @property
    def priority(self) -> int:
        """Its level, from 1, which goes first, to `LOWEST_PRIORITY`."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether no client waits for it any more."""
        ...

    @property
    def deadline_s(self) -> float:
        """The time after which it must not run, on the clock of :meth:`FairQueue.pop`."""
        ...


Item = TypeVar("Item", bound=QueueItem)


class _PriorityLevel(Generic[Item]):
    """The items of one client and priority, in order of arrival.

    Attributes:
        items: The waiting items.
        overtaken: How many items of higher levels left since this level last had a turn.
    """

    __slots__ = ("items", "overtaken")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.overtaken = 0


class _ClientQueue(Generic[Item]):
    """The items of one client, by priority."""

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        # Levels without items are removed.
        self._levels: dict[int, _PriorityLevel[Item]] = {}

    def __len__(self) -> int:
        return sum(len(level.items) for level in self._levels.values())

    def push(self, item: Item) -> None:
        level = self._levels.get(item.priority)
        if level is None:
            level = self._levels[item.priority] = _PriorityLevel()
        level.items.append(item)

    def pop(self, now_s: float, expired: list[Item]) -> tuple[Item | None, int]:
        """Removes the next item that may run; also returns how many items have left the queue."""
        left = 0
        while self._levels:
            priority = self._next_priority()
            level = self._levels[priority]
            before = len(level.items)
            item = _next_of(level.items, now_s, expired)
            left += before - len(level.items)
            if not level.items:
                del self._levels[priority]
            if item is not None:
                level.overtaken = 0
                for lower, other in self._levels.items():
                    other.overtaken += lower > priority
                return item, left
        return None, left

    def ahead_of(self, priority: int, count: int) -> int:
        """Counts the items that leave until ``count`` new items of a priority have all left.

        The new items are included. This is an upper bound: a lower level may have a turn or not.
        """
        going = count
        for other, level in sorted(self._levels.items()):
            waiting = len(level.items)
            # Higher levels go ahead; a lower one has a turn after every MAX_OVERTAKES items.
            going += waiting if other <= priority else min(waiting, going // MAX_OVERTAKES + 1)
        return going

    def _next_priority(self) -> int:
        if len(self._levels) == 1:
            return next(iter(self._levels))
        starving = [
            priority for priority, level in self._levels.items() if level.overtaken >= MAX_OVERTAKES
        ]
        return max(starving) if starving else min(self._levels)


class FairQueue(Generic[Item]):
    """One queue for each client; the clients take turns."""

    __slots__ = ("_clients", "_length")

    def __init__(self) -> None:
        self._clients: OrderedDict[str, _ClientQueue[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """Counts the waiting items, abandoned ones included."""
        return self._length

    def push(self, item: Item) -> None:
        """Appends an item to its client's queue, behind the others of its priority."""
        own_queue = self._clients.get(item.client)
        if own_queue is None:
            own_queue = self._clients[item.client] = _ClientQueue()
        own_queue.push(item)
        self._length += 1

    def pop(self, now_s: float) -> tuple[Item | None, list[Item]]:
        """Removes the next item that may still run.

        Args:
            now_s: The time.

        Returns:
            The item, or ``None`` when no item waits, and the items that it skipped because their
            deadline has passed. Abandoned items are dropped and not returned.
        """
        expired: list[Item] = []
        while self._clients:
            client, own_queue = next(iter(self._clients.items()))
            item, left = own_queue.pop(now_s, expired)
            self._length -= left
            if own_queue:
                self._clients.move_to_end(client)
            else:
                del self._clients[client]
            if item is not None:
                return item, expired
        return None, expired

    def ahead_of(self, client: str, count: int, priority: int = DEFAULT_PRIORITY) -> int:
        """Counts the items that leave until ``count`` new items of a client have all left.

        It assumes that every client that waits now continues to send, as clients do under
        overload: short queues are refilled and keep their turns. The new items are included, and
        so are abandoned items that have not been dropped yet. Items that the client itself may
        send later with a higher priority are not.

        Args:
            client: The client that would push the items.
            count: The number of items.
            priority: Their priority.
        """
        own = self._clients.get(client)
        turns = leaving = count if own is None else own.ahead_of(priority, count)
        for name in self._clients:
            if name == client:
                # Clients after it in the rotation have one turn fewer.
                turns -= 1
            else:
                leaving += turns
        return leaving


def _next_of(items: deque[Item], now_s: float, expired: list[Item]) -> Item | None:
    while items:
        item = items.popleft()
        if item.abandoned:
            continue
        if item.deadline_s > now_s:
            return item
        expired.append(item)
    return None
