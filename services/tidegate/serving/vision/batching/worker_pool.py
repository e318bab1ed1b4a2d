"""The threads that decode images and run batches, for all models of a server.

Each worker takes a task (:mod:`.planning` decides which), does it without the lock, reports it, and
takes the next task while it holds the lock again. It sleeps only when there is no task for it. One
thread decodes a single request on an idle server and runs it on the engine, and the event loop is
woken once. Models take turns, so that a busy model cannot starve another.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Self

from tidegate.serving.vision.batching.planning import WorkerStep, images_to_prepare, next_step
from tidegate.serving.vision.batching.worker_tasks import (
    PrepareImages,
    RunBatch,
    WorkerTask,
    prepare_images,
    report_prepared,
    report_run,
    run_batch,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from tidegate.serving.vision.batching.classification import TopClasses
    from tidegate.serving.vision.batching.inference_request import InferenceRequest
    from tidegate.serving.vision.batching.model_queue import ModelQueue
    from tidegate.serving.vision.batching.worker_tasks import PreparedImage

__all__ = ["WorkerPool"]

_log = logging.getLogger(__name__)


class _Worker:
    """The state of a worker thread that other threads use.

    Attributes:
        woken: A lock that the worker waits for while it is idle; releasing it wakes the worker.
        task: The task that the worker is woken for; None lets it choose one.
    """

    __slots__ = ("task", "woken")

    def __init__(self) -> None:
        self.task: PrepareImages | None = None
        self.woken = threading.Lock()
        self.woken.acquire()


class WorkerPool:
    """The worker threads and the model queues that they serve. Use it as a context manager.

    Args:
        workers: The number of threads.
        clock: Monotonic seconds.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._clock = clock
        self._lock = threading.Lock()
        self._queues: list[ModelQueue] = []
        self._turn = 0
        # In the order in which they became idle.
        self._idle: list[_Worker] = []
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=self._serve, name=f"vision-worker-{index}", daemon=True)
            for index in range(self.workers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._stopping = True
            self._wake_up_to(len(self._idle))
        for thread in self._threads:
            thread.join()

    def add(self, queue: ModelQueue) -> None:
        """Starts to serve a queue, and to report the images that it holds."""
        with self._lock:
            self._queues.append(queue)
        queue.metrics.held.set_function(lambda: queue.held_images)

    def close(self, queue: ModelQueue, on_idle: Callable[[], None]) -> None:
        """Refuses further requests to a queue, and reports when its last request is done.

        Args:
            queue: The queue.
            on_idle: Called once or more, from any thread, when the queue is empty and idle.
        """
        with self._lock:
            queue.closing = True
            queue.on_idle = on_idle
            queue.notify_if_idle()

    def remove(self, queue: ModelQueue) -> None:
        """Stops serving a queue, which must be idle."""
        with self._lock:
            self._queues.remove(queue)

    def submit(self, queue: ModelQueue, request: InferenceRequest) -> None:
        """Accepts a request; its future is resolved on its event loop.

        Raises:
            ServiceError: The request is refused; see :meth:`ModelQueue.admit`.
        """
        with self._lock:
            queue.admit(request, self._clock(), self.workers)
            if self._idle and self._is_alone(queue, runs=0):
                queue.preparing += 1
                self._wake(PrepareImages(queue, request.images))
            else:
                queue.enqueue(request)
                self._wake_up_to(len(request.images))

    def cancel(self, queue: ModelQueue, request: InferenceRequest) -> None:
        """Cancels a request whose client has gone; its images that do not run yet never will."""
        with self._lock:
            if request.cancel():
                queue.settled(request, self._clock(), succeeded=False)
                queue.notify_if_idle()

    def _wake(self, task: PrepareImages | None = None) -> None:
        """Wakes the worker that became idle last, because its caches are warm.

        Args:
            task: The worker's task; None lets it choose one.
        """
        worker = self._idle.pop()
        worker.task = task
        worker.woken.release()

    def _wake_up_to(self, workers: int) -> None:
        for _ in range(min(workers, len(self._idle))):
            self._wake()

    def _serve(self) -> None:
        worker = _Worker()
        with self._lock:
            while not self._stopping:
                task, worker.task = worker.task or self._claim(), None
                if task is None:
                    self._idle.append(worker)
                    self._lock.release()
                    worker.woken.acquire()
                    self._lock.acquire()
                    continue
                self._do(task)

    def _do(self, task: WorkerTask) -> None:
        run = self._prepare(task) if isinstance(task, PrepareImages) else task
        if run is not None:
            self._run(run)
        task.queue.notify_if_idle()

    def _prepare(self, task: PrepareImages) -> RunBatch | None:
        """Decodes images and returns them to their queue; releases the lock while it decodes.

        Returns:
            The run of the image, if it is the only one on the server; else ``None``.
        """
        self._lock.release()
        try:
            results = prepare_images(task, self._clock)
        finally:
            self._lock.acquire()
        now_s = self._clock()
        if run := self._run_at_once(task, results, now_s):
            return run
        if settled := report_prepared(task, results, now_s):
            _deliver(settled)
        return None

    def _run_at_once(
        self, task: PrepareImages, results: list[PreparedImage], now_s: float
    ) -> RunBatch | None:
        """Starts the run of an image that is the only one on the server: no batching decision."""
        queue, image, array = task.queue, task.images[0], results[0]
        if array is None or isinstance(array, Exception) or not self._is_alone(queue, runs=0):
            return None
        if len(task.images) > 1 or image.abandoned or image.deadline_s <= now_s:
            return None
        queue.decoded(image)
        queue.start([image], now_s)
        return RunBatch(queue, [image], [array], alone=True)

    def _is_alone(self, queue: ModelQueue, runs: int) -> bool:
        """Whether the server holds only one image, of this queue, and exactly ``runs`` runs.

        A run whose client has gone continues, so it counts.
        """
        if queue.held_images != 1 or queue.running != runs:
            return False
        for each in self._queues:
            if each is not queue and (each.held_images or each.running):
                return False
        return True

    def _run(self, task: RunBatch) -> None:
        """Runs a batch and delivers its results; releases the lock while it runs."""
        self._lock.release()
        try:
            result = run_batch(task)
        finally:
            self._lock.acquire()
        settled = report_run(task, result, self._clock())
        ended_ms = time.time_ns() // 1_000_000
        # Results go first: no client waits for the statistics.
        answers = () if isinstance(result, Exception) else result[1]
        if not _deliver(settled, then=partial(self._record_run, task, answers, ended_ms)):
            task.queue.record_run(task.batch, answers, ended_ms)

    def _record_run(self, task: RunBatch, answers: Sequence[TopClasses], ended_ms: int) -> None:
        with self._lock:
            task.queue.record_run(task.batch, answers, ended_ms)

    def _claim(self) -> WorkerTask | None:
        """Chooses the next task; models take turns. Wakes another worker if there is more work."""
        for offset in range(len(self._queues)):
            queue = self._queues[(self._turn + offset) % len(self._queues)]
            task = self._claim_of(queue)
            if task is not None:
                self._turn += offset + 1
                if self._idle and any(
                    each.has_work and next_step(each.state()) is not WorkerStep.NOTHING
                    for each in self._queues
                ):
                    self._wake()
                return task
        return None

    def _claim_of(self, queue: ModelQueue) -> WorkerTask | None:
        # Abandoned images may still wait in a queue whose requests are all settled.
        while queue.held_images and queue.has_work:
            state = queue.state()
            step = next_step(state)
            now_s = self._clock()
            if step is WorkerStep.PREPARE:
                images, expired = queue.next_to_prepare(
                    now_s, images_to_prepare(state, self.workers)
                )
                _deliver_expired(queue, expired)
                if images:
                    return PrepareImages(queue, images)
            elif step is WorkerStep.RUN:
                if run := self._claim_run(queue, now_s):
                    return run
            else:
                break
        return None

    def _claim_run(self, queue: ModelQueue, now_s: float) -> RunBatch | None:
        batch, expired = queue.next_batch(now_s)
        _deliver_expired(queue, expired)
        if not batch:
            return None
        arrays = [image.prepared for image in batch if image.prepared is not None]
        return RunBatch(queue, batch, arrays, alone=self._is_alone(queue, runs=1))


def _deliver_expired(queue: ModelQueue, expired: list[InferenceRequest]) -> None:
    """Delivers the errors of expired requests; this may have made the queue idle."""
    if expired:
        _deliver(expired)
        queue.notify_if_idle()


def _deliver(requests: list[InferenceRequest], then: Callable[[], None] | None = None) -> bool:
    """Resolves the futures of settled requests, with one call to each event loop concerned.

    Args:
        requests: The requests.
        then: A callback that one of the event loops calls after the waiting handlers have resumed.

    Returns:
        Whether an event loop will call ``then``.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[InferenceRequest]] = {}
    for request in requests:
        by_loop.setdefault(request.loop, []).append(request)
    is_scheduled = False
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, mine, None if is_scheduled else then)
            is_scheduled = True
        except RuntimeError:
            # The loop is closed, so no handler waits for these requests. The worker goes on.
            _log.debug("an event loop closed before its requests were done")
    return is_scheduled


def _resolve(requests: list[InferenceRequest], then: Callable[[], None] | None) -> None:
    for request in requests:
        request.deliver()
    if then is not None:
        # Scheduled behind the handlers that the futures have just woken.
        requests[0].loop.call_soon(then)
