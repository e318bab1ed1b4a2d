"""The request log: passes the records of finished requests to subscribers in the controller.

Each subscriber has its own bounded queue. When a queue is full, the publisher waits for room, and
the access log stream is read no further. gRPC's flow control then stops the Envoy, which buffers
its entries (some tens of megabytes, seen with 1.40), and finally drops and counts them
(``access_logs.grpc_access_log.logs_dropped``). So every loss is counted.

A subscriber that stops reading must not block the others for ever: publishers wait for it no longer
than its `max_wait_s`. After that, records that do not fit its queue are dropped for this subscriber
only, at once, and counted, until it reads again. With `max_wait_s` 0 publishers never wait.

Records of mirrored copies go only to subscribers that ask for them: nobody else may count a request
twice.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Self

from prometheus_client import Counter

from tidegate.mesh.telemetry.request_record import RequestRecord

__all__ = ["RecordSubscription", "RequestLog"]

_LOST: Final = Counter(
    "tidegate_mesh_request_records_lost_total",
    "Request records that a subscriber missed because it read too slowly.",
    ("subscriber",),
)


def _is_no_copy(record: RequestRecord) -> bool:
    return not record.mirrored


class RecordSubscription:
    """The queue of one subscriber: an asynchronous iterator over records that never ends.

    Attributes:
        name: Name of the subscriber, for the metric.
        lost: Number of records that it missed.
    """

    def __init__(
        self,
        name: str,
        capacity: int,
        max_wait_s: float,
        wanted: Callable[[RequestRecord], bool],
    ) -> None:
        self.name = name
        self.lost = 0
        self._wanted = wanted
        self._capacity = capacity
        self._max_wait_s = max_wait_s
        self._lost = _LOST.labels(name)
        self._queue: deque[RequestRecord] = deque()
        self._has_records = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_dropping = max_wait_s <= 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._queue)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestRecord:
        while not self._queue:
            self._has_records.clear()
            await self._has_records.wait()
        record = self._queue.popleft()
        self._is_dropping = self._max_wait_s <= 0
        self._has_room.set()
        return record

    async def next_batch(self, limit: int) -> list[RequestRecord]:
        """Waits for records, and returns those that are ready.

        Args:
            limit: The most records to return.
        """
        batch = [await anext(self)]
        while self._queue and len(batch) < limit:
            batch.append(self._queue.popleft())
        return batch

    def close(self) -> None:
        """Accepts no more records and releases the publishers that wait for room."""
        self._closed = True
        self._has_room.set()

    def wanted(self, records: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
        """Returns the records that this subscriber asked for."""
        return [record for record in records if self._wanted(record)]

    def offer(self, records: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
        """Queues the records that fit.

        Returns:
            The remaining records, for which the publisher is to wait.
        """
        if self._closed:
            return ()
        taken = min(len(records), self._capacity - len(self._queue))
        if taken:
            self._queue.extend(records[:taken])
            self._has_records.set()
        left = records[taken:]
        if left and self._is_dropping:
            self._drop(len(left))
            return ()
        return left

    async def put(self, records: Sequence[RequestRecord]) -> None:
        """Queues all records as room appears, and drops those that do not fit in time."""
        left = self.offer(records)
        try:
            async with asyncio.timeout(self._max_wait_s):
                while left:
                    self._has_room.clear()
                    await self._has_room.wait()
                    left = self.offer(left)
        except TimeoutError:
            self._is_dropping = True
            self._drop(len(left))

    def _drop(self, count: int) -> None:
        self.lost += count
        self._lost.inc(count)


class RequestLog:
    """Passes every published record to every subscriber.

    Args:
        keep: Gets all records first, to keep some of them for subscribers that come later.
    """

    def __init__(self, keep: Callable[[Sequence[RequestRecord]], None] | None = None) -> None:
        self._subscriptions: list[RecordSubscription] = []
        self._keep = keep

    @contextmanager
    def subscribe(
        self,
        name: str,
        *,
        capacity: int = 10_000,
        max_wait_s: float = 0.0,
        wanted: Callable[[RequestRecord], bool] = _is_no_copy,
    ) -> Iterator[RecordSubscription]:
        """Subscribes while the context is open.

        Args:
            name: Name of the subscriber, for the metric.
            capacity: Most records that may wait to be read.
            max_wait_s: How long publishers wait for this subscriber when its queue is full, in
                seconds. By default they do not wait.
            wanted: Which records the subscriber gets; by default all but mirrored copies.

        Yields:
            The records that are published from now on.
        """
        subscription = RecordSubscription(name, capacity, max_wait_s, wanted)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            subscription.close()

    async def publish(self, records: Sequence[RequestRecord]) -> None:
        """Passes records to all subscribers. Returns when each has queued or dropped them.

        A subscriber with room gets them at once, even if another one has to be waited for.
        """
        if self._keep is not None:
            self._keep(records)
        behind = [
            (subscription, left)
            for subscription in self._subscriptions
            if (left := subscription.offer(subscription.wanted(records)))
        ]
        if behind:
            async with asyncio.TaskGroup() as group:
                for subscription, left in behind:
                    group.create_task(subscription.put(left))
