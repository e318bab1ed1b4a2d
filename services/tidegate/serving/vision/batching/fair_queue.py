"""A queue in which no client can crowd out another.

Each client has a line of its own and the lines take turns, one image a turn (round robin), so a
client that sends a thousand images waits for its own images and not the others for it. What has
expired or was cancelled is never handed out and costs its client no turn. The queue is plain data:
it has no lock, no clock and no thread, and is given the time.

A priority orders the images of one client, so it cannot be used against the others either: level 1
goes first. A level that others overtook `MAX_OVERTAKES` times in a row has the next turn, so that
no level starves.
"""

from collections import OrderedDict, deque
from typing import Final, Generic, Protocol, TypeVar

__all__ = ["DEFAULT_PRIORITY", "LOWEST_PRIORITY", "MAX_OVERTAKES", "FairQueue", "QueueItem"]

DEFAULT_PRIORITY: Final = 2
"""The level of what names none."""

LOWEST_PRIORITY: Final = 3
"""The level that goes last; 1 goes first."""

MAX_OVERTAKES: Final = 8
"""Items of higher levels that go ahead of a level in a row."""


class QueueItem(Protocol):
    """What may wait in the queue."""

    @property
    def client(self) -> str:
        """Whose line it waits in."""
        ...

    @property
    def priority(self) -> int:
        """Its level in the line, from 1, which goes first, to `LOWEST_PRIORITY`."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether nobody wants it any more."""
        ...

    @property
    def deadline_s(self) -> float:
        """The time after which it must not be run, in the clock of :meth:`FairQueue.pop`."""
        ...


Item = TypeVar("Item", bound=QueueItem)


class _PriorityLevel(Generic[Item]):
    """The items of one client and priority, in the order they came.

    Attributes:
        items: what waits.
        overtaken: items of higher levels that went ahead since one of these last went.
    """

    __slots__ = ("items", "overtaken")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.overtaken = 0


class _ClientQueue(Generic[Item]):
    """The items of one client, by priority."""

    __slots__ = ("_levels",)

    def __init__(self) -> None:
        # Of those that hold something.
        self._levels: dict[int, _PriorityLevel[Item]] = {}

    def __len__(self) -> int:
        return sum(len(level.items) for level in self._levels.values())

    def push(self, item: Item) -> None:
        level = self._levels.get(item.priority)
        if level is None:
            level = self._levels[item.priority] = _PriorityLevel()
        level.items.append(item)

    def pop(self, now_s: float, expired: list[Item]) -> tuple[Item | None, int]:
        """Takes the next item that may run, and says how many have left the line."""
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
        """How many go before ``count`` new items of a priority have all gone, these included.

        At most so many: lower levels may be about to have a turn each, or not.
        """
        going = count
        for other, level in sorted(self._levels.items()):
            waiting = len(level.items)
            # A level that is higher goes ahead; a lower one has a turn after every few that go.
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
    """Lines of images, one line for each client, that take turns."""

    __slots__ = ("_clients", "_length")

    def __init__(self) -> None:
        self._clients: OrderedDict[str, _ClientQueue[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """Items that wait, those abandoned since they came included."""
        return self._length

    def push(self, item: Item) -> None:
        """Puts an item into its client's line, behind those of its priority."""
        own_queue = self._clients.get(item.client)
        if own_queue is None:
            own_queue = self._clients[item.client] = _ClientQueue()
        own_queue.push(item)
        self._length += 1

    def pop(self, now_s: float) -> tuple[Item | None, list[Item]]:
        """Takes the next item that may still be run.

        Args:
            now_s: the time.

        Returns:
            The item, or ``None`` when nothing waits, and the items that were passed over because
            their deadline is past. Abandoned ones are dropped without being told.
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
        """How many items leave the queue before ``count`` new ones of a client have all left.

        It is foreseen that every client that waits now goes on sending, as clients do when there is
        too much to do: lines that are short now are refilled and take their turns. The new items
        themselves are counted, and so are abandoned ones that have not been dropped yet. What the
        client itself may send later with a higher priority is not.

        Args:
            client: who would push.
            count: how many.
            priority: of which level.
        """
        own = self._clients.get(client)
        turns = leaving = count if own is None else own.ahead_of(priority, count)
        for name in self._clients:
            if name == client:
                # The lines behind have had one turn less when its last one leaves.
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
