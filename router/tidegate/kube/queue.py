"""A queue of keys, and workers that reconcile them.

    queue = WorkQueue("rollouts")
    cache.on_change(lambda key, old, new: queue.add(key))
    await queue.serve(reconcile, workers=4)

Which key comes when is decided in `tidegate.kube.queue_policy`.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from tidegate.errors import TidegateError
from tidegate.kube.metrics import QueueMetrics
from tidegate.kube.queue_policy import Priority, QueuePolicy, QueueSettings
from tidegate.runtime.logging import get_logger

__all__ = ["Priority", "QueueSettings", "Reconcile", "WorkQueue"]

_log = get_logger(__name__)

Reconcile = Callable[[str], Awaitable[float | None]]
"""Takes a key, and gives after how many seconds it wants the key again; None if never."""


class WorkQueue:
    """Keys that wait for a worker.

    Args:
        name: Its name in metrics.
        settings: How it retries.
    """

    def __init__(self, name: str, settings: QueueSettings | None = None) -> None:
        self._metrics = QueueMetrics(name, time.monotonic)
        self._policy = QueuePolicy(settings)
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait, delayed ones included."""
        return len(self._policy)

    def add(self, key: str, priority: Priority = Priority.EDIT, *, after_s: float = 0.0) -> None:
        """Adds a key; it is merged with what waits under the same key.

        Args:
            key: The key.
            priority: `Priority.EDIT` ends the key's delay after a failure. Do not add a key so for
                a change that its own reconciler made.
            after_s: How long it waits.
        """
        if after_s > 0:
            self._policy.add_after(key, priority, _now_s() + after_s)
        else:
            self._policy.add(key, priority)
        self._metrics.added(key, after_s, self._policy.ready)
        self._changed.set()

    def forget(self, key: str) -> None:
        """Drops a key whose object is gone."""
        self._policy.forget(key)
        self._metrics.forgot(key, self._policy.ready)

    async def take(self) -> str:
        """Waits for the next key. Give it back with `done` or `failed`."""
        while True:
            self._changed.clear()
            key = self._policy.take(_now_s())
            if key is not None:
                self._metrics.taken(key, self._policy.ready)
                # Another worker may find another one.
                self._changed.set()
                return key
            due_s = self._policy.next_due_s()
            try:
                async with asyncio.timeout_at(due_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: str) -> None:
        """Gives a key back that has been reconciled."""
        self._policy.done(key)
        self._metrics.gave_back(key, None, self._policy.ready)
        self._changed.set()

    def failed(self, key: str) -> float:
        """Gives a key back that comes again, and tells after how many seconds."""
        delay_s = self._policy.failed(key, _now_s(), random.random())  # noqa: S311
        self._metrics.gave_back(key, delay_s, self._policy.ready)
        self._changed.set()
        return delay_s

    async def serve(self, reconcile: Reconcile, workers: int) -> None:
        """Reconciles keys until it is cancelled.

        Args:
            reconcile: Reconciles a key. A `TidegateError` that it raises is logged, and the key
                comes again; any other error ends the workers.
            workers: How many keys are reconciled at once.
        """
        async with asyncio.TaskGroup() as tasks:
            for _ in range(workers):
                tasks.create_task(self._serve_one_by_one(reconcile))

    async def _serve_one_by_one(self, reconcile: Reconcile) -> None:
        while True:
            key = await self.take()
            try:
                again_s = await reconcile(key)
            except TidegateError as error:
                delay_s = self.failed(key)
                _log.warning(
                    "reconciling failed", key=key, error=str(error), retry_in_s=round(delay_s, 3)
                )
            else:
                self.done(key)
                if again_s is not None:
                    self.add(key, Priority.RESYNC, after_s=again_s)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
