"""The stream of finished requests, from every Envoy to everyone in the controller who wants it.

Each subscriber has a queue of its own, which is bounded. When one is full, whoever publishes waits
for room, and so does the access log stream behind it: it is read no further, gRPC's flow control
stops the Envoy, and the Envoy keeps its entries (some tens of megabytes, seen with 1.40) and then
drops and counts them (``access_logs.grpc_access_log.logs_dropped``). Nothing is lost unseen.

A subscriber that has stopped reading may not stop the others for ever, so it is waited for no
longer than its own patience. Once that is over, what finds no room in its queue is dropped for it
alone, at once, and counted, until it reads again. With no patience it never makes anyone wait.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Self

from prometheus_client import Counter

from tidegate.mesh.telemetry.request_record import RequestRecord

__all__ = ["RecordSubscription", "RequestLog"]

_LOST: Final = Counter(
    "tidegate_mesh_request_records_lost_total",
    "Requests that a subscriber of the request log did not get, because it read too slowly.",
    ("subscriber",),
)


class RecordSubscription:
    """What one subscriber has yet to read: an asynchronous iterator that ends never.

    Attributes:
        name: whose it is, for the metric.
        lost: how many records it did not get.
    """

    def __init__(self, name: str, capacity: int, max_wait_s: float) -> None:
        self.name = name
        self.lost = 0
        self._capacity = capacity
        self._max_wait_s = max_wait_s
        self._lost = _LOST.labels(name)
        self._waiting: deque[RequestRecord] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._is_dropping = max_wait_s <= 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestRecord:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        record = self._waiting.popleft()
        self._is_dropping = self._max_wait_s <= 0
        self._room.set()
        return record

    def close(self) -> None:
        """Takes no more; whoever waits for room goes on."""
        self._closed = True
        self._room.set()

    def offer(self, records: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
        """Takes what there is room for.

        Returns:
            The records, from the first one that found no room and is still to be waited for.
        """
        if self._closed:
            return ()
        taken = min(len(records), self._capacity - len(self._waiting))
        if taken:
            self._waiting.extend(records[:taken])
            self._arrived.set()
        left = records[taken:]
        if left and self._is_dropping:
            self._lose(len(left))
            return ()
        return left

    async def put(self, records: Sequence[RequestRecord]) -> None:
        """Takes all of them, as room comes, or loses what it had no room for in time."""
        left = self.offer(records)
        try:
            async with asyncio.timeout(self._max_wait_s):
                while left:
                    self._room.clear()
                    await self._room.wait()
                    left = self.offer(left)
        except TimeoutError:
            self._is_dropping = True
            self._lose(len(left))

    def _lose(self, count: int) -> None:
        self.lost += count
        self._lost.inc(count)


class RequestLog:
    """Gives every published record to every subscriber."""

    def __init__(self) -> None:
        self._subscriptions: list[RecordSubscription] = []

    @contextmanager
    def subscribe(
        self, name: str, *, capacity: int = 10_000, max_wait_s: float = 0.0
    ) -> Iterator[RecordSubscription]:
        """Subscribes while the context is open.

        Args:
            name: whose subscription it is, for the metric.
            capacity: how many records may wait to be read.
            max_wait_s: how long everyone waits for this subscriber when its queue is full; not at
                all by default.

        Yields:
            The records, from now on.
        """
        subscription = RecordSubscription(name, capacity, max_wait_s)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            subscription.close()

    async def publish(self, records: Sequence[RequestRecord]) -> None:
        """Gives records to all; returns when each subscriber has taken or lost them.

        Who has room gets them at once, whoever else has to be waited for.
        """
        behind = [
            (subscription, left)
            for subscription in self._subscriptions
            if (left := subscription.offer(records))
        ]
        if behind:
            async with asyncio.TaskGroup() as group:
                for subscription, left in behind:
                    group.create_task(subscription.put(left))
