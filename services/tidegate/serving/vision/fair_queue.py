"""A queue in which no client can crowd out another.

Each client has a line of its own and the lines take turns, one image a turn (round robin), so a
client that sends a thousand images waits for its own images and not the others for it. What has
expired or was cancelled is never handed out and costs its client no turn. The queue is plain data:
it has no lock, no clock and no thread, and is given the time.
"""

from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Queued"]


class Queued(Protocol):
    """What may wait in the queue."""

    @property
    def client(self) -> str:
        """Whose line it waits in."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether nobody wants it any more."""
        ...

    @property
    def deadline_s(self) -> float:
        """The time after which it must not be run, in the clock of :meth:`FairQueue.pop`."""
        ...


Item = TypeVar("Item", bound=Queued)


class FairQueue(Generic[Item]):
    """Lines of images, one line for each client, that take turns."""

    __slots__ = ("_length", "_lines")

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Item]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """Items that wait, those abandoned since they came included."""
        return self._length

    def push(self, item: Item) -> None:
        """Puts an item at the end of its client's line."""
        line = self._lines.get(item.client)
        if line is None:
            line = self._lines[item.client] = deque()
        line.append(item)
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
        while self._lines:
            client, line = next(iter(self._lines.items()))
            item = self._next_of(line, now_s, expired)
            if line:
                self._lines.move_to_end(client)
            else:
                del self._lines[client]
            if item is not None:
                return item, expired
        return None, expired

    def ahead_of(self, client: str, count: int) -> int:
        """How many items leave the queue before ``count`` new ones of a client have all left.

        It is foreseen that every client that waits now goes on sending, as clients do when there is
        too much to do: lines that are short now are refilled and take their turns. The new items
        themselves are counted, and so are abandoned ones that have not been dropped yet.

        Args:
            client: who would push.
            count: how many.
        """
        turns = leaving = len(self._lines.get(client, ())) + count
        for name in self._lines:
            if name == client:
                # The lines behind have had one turn less when its last one leaves.
                turns -= 1
            else:
                leaving += turns
        return leaving

    def _next_of(self, line: deque[Item], now_s: float, expired: list[Item]) -> Item | None:
        while line:
            item = line.popleft()
            self._length -= 1
            if item.abandoned:
                continue
            if item.deadline_s > now_s:
                return item
            expired.append(item)
        return None
