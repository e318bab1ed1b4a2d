"""The threads that decode images and run batches, for all models of a server.

Each worker asks for the next step (:mod:`~tidegate.serving.vision.planning` decides), does it
without the lock, reports it, and asks again in the same breath; it sleeps only when there is
nothing that it could do. A single request on an idle server is decoded and given to the engine by
one thread, and the event loop hears of it once. Models take turns, so that a busy one cannot starve
another.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from tidegate.chassis.errors import Internal
from tidegate.serving.vision.classification import best_classes
from tidegate.serving.vision.errors import InvalidImageError, RejectedImageError
from tidegate.serving.vision.planning import Step, images_to_prepare, next_step

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.classification import Best
    from tidegate.serving.vision.lane import Lane
    from tidegate.serving.vision.tickets import Task, Ticket

    Array = npt.NDArray[np.generic]
    Result = tuple[npt.NDArray[np.float32], list[Best]]

__all__ = ["WorkerPool"]

_log = logging.getLogger(__name__)


class _Prepare(NamedTuple):
    """A worker decodes some images."""

    lane: Lane
    tasks: list[Task]


class _Run(NamedTuple):
    """A worker runs one batch."""

    lane: Lane
    batch: list[Task]
    arrays: list[Array]
    alone: bool


_Job = _Prepare | _Run


class WorkerPool:
    """Worker threads and the lanes that they serve. Use as a context manager.

    Args:
        workers: how many threads; on a CPU engine, as many as there are cores.
        clock: monotonic seconds.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.monotonic) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._clock = clock
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []
        self._turn = 0
        # Locks on which idle workers wait, the one that became idle last at the end.
        self._idle: list[threading.Lock] = []
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
            self._wake(len(self._idle))
        for thread in self._threads:
            thread.join()

    def add(self, lane: Lane) -> None:
        """Starts to serve a lane."""
        with self._lock:
            self._lanes.append(lane)

    def close(self, lane: Lane, on_idle: Callable[[], None]) -> None:
        """Lets a lane take no more requests, and says when its last one is over.

        Args:
            lane: the lane.
            on_idle: called once or more, from any thread, when it holds nothing any more.
        """
        with self._lock:
            lane.closing = True
            lane.on_idle = on_idle
            lane.notify_if_idle()

    def remove(self, lane: Lane) -> None:
        """Stops to serve a lane, which must be idle."""
        with self._lock:
            self._lanes.remove(lane)

    def submit(self, lane: Lane, ticket: Ticket) -> None:
        """Accepts a request; its future is resolved on its event loop.

        Raises:
            ServiceError: it cannot be accepted; see :meth:`Lane.admit`.
        """
        with self._lock:
            lane.admit(ticket, self._clock(), self.workers)
            self._wake(len(ticket.tasks))

    def cancel(self, lane: Lane, ticket: Ticket) -> None:
        """Gives up a request whose client has gone. What of it is not running yet never will be."""
        with self._lock:
            if ticket.cancel():
                lane.settled(ticket, self._clock(), succeeded=False)
                lane.notify_if_idle()

    def _wake(self, workers: int) -> None:
        """Wakes up to so many idle workers, those first that became idle last: they are warm."""
        for _ in range(min(workers, len(self._idle))):
            self._idle.pop().release()

    def _serve(self) -> None:
        woken = threading.Lock()
        woken.acquire()
        with self._lock:
            while not self._stopping:
                job = self._claim()
                if job is None:
                    self._idle.append(woken)
                    self._lock.release()
                    woken.acquire()
                    self._lock.acquire()
                    continue
                if isinstance(job, _Prepare):
                    self._prepare(job)
                else:
                    self._run(job)
                job.lane.notify_if_idle()

    def _prepare(self, job: _Prepare) -> None:
        """Decodes images and hands them to their lane; the lock is held, but not meanwhile."""
        self._lock.release()
        try:
            results = [_prepare_image(job.lane, each, self._clock) for each in job.tasks]
        finally:
            self._lock.acquire()
        _deliver(_report_prepared(job, results, self._clock()))

    def _run(self, job: _Run) -> None:
        """Runs a batch and answers with its results; the lock is held, but not meanwhile."""
        self._lock.release()
        try:
            result = _run_batch(job)
        finally:
            self._lock.acquire()
        settled = _report_run(job, result, self._clock())
        ended_ms = time.time_ns() // 1_000_000
        # The answers go first: nobody waits for what is learned of them.
        if not _deliver(settled, then=partial(self._learn, job, ended_ms)):
            job.lane.learn(job.batch, ended_ms)

    def _learn(self, job: _Run, ended_ms: int) -> None:
        with self._lock:
            job.lane.learn(job.batch, ended_ms)

    def _claim(self) -> _Job | None:
        """The next job, lanes taking turns; wakes another worker if there is one for it too."""
        for offset in range(len(self._lanes)):
            lane = self._lanes[(self._turn + offset) % len(self._lanes)]
            job = self._claim_of(lane)
            if job is not None:
                self._turn += offset + 1
                if self._idle and any(
                    each.has_work and next_step(each.load()) is not Step.NOTHING
                    for each in self._lanes
                ):
                    self._wake(1)
                return job
        return None

    def _claim_of(self, lane: Lane) -> _Job | None:
        while lane.has_work:
            load = lane.load()
            step = next_step(load)
            now_s = self._clock()
            if step is Step.PREPARE:
                tasks, expired = lane.next_to_prepare(now_s, images_to_prepare(load, self.workers))
                _give_up(lane, expired)
                if tasks:
                    return _Prepare(lane, tasks)
            elif step is Step.RUN:
                if run := self._claim_run(lane, now_s):
                    return run
            else:
                break
        return None

    def _claim_run(self, lane: Lane, now_s: float) -> _Run | None:
        batch, expired = lane.next_batch(now_s)
        _give_up(lane, expired)
        if not batch:
            return None
        # A run goes on, and is company, also when nobody waits for it any more.
        held = sum(each.held_images for each in self._lanes)
        alone = held == sum(each.running for each in self._lanes) == 1
        arrays = [task.prepared for task in batch if task.prepared is not None]
        return _Run(lane, batch, arrays, alone)


def _prepare_image(lane: Lane, task: Task, clock: Callable[[], float]) -> Array | Exception | None:
    """Decodes an image, or says what is to be told to its client; None if nobody waits for it."""
    image = task.image
    if image is None:
        return None
    task.stages.prepare_start_s = clock()
    try:
        return lane.prepare(image)
    except InvalidImageError as problem:
        return RejectedImageError(task.index, str(problem))
    except Exception:  # noqa: BLE001 - a worker outlives whatever an image provokes, and reports it
        _log.exception("preparing an image failed", extra={"model": lane.name})
        return Internal("preparing the image failed; the server's log says why")
    finally:
        task.stages.prepare_end_s = clock()


def _run_batch(job: _Run) -> Result | Exception:
    """Runs a batch and reads its output, or says what is to be told to its clients."""
    kind = job.lane.output_kind
    wanted = [task.ticket.top_k for task in job.batch]
    try:
        output = job.lane.engine.run(job.batch[0].form, job.arrays, alone=job.alone)
        if len(set(wanted)) == 1:
            return output, best_classes(output, wanted[0], kind)
        # One client that wants every class must not have those of the others sorted, too.
        rows = zip(output, wanted, strict=True)
        return output, [best_classes(row[None], count, kind)[0] for row, count in rows]
    except Exception:  # noqa: BLE001 - a worker outlives whatever an engine raises, and reports it
        _log.exception("running a batch failed", extra={"model": job.lane.name})
        return Internal(
            f"{job.lane.name} failed to run the batch; the server's log says why",
            reason="ENGINE_FAILED",
        )


def _report_prepared(
    job: _Prepare, results: list[Array | Exception | None], now_s: float
) -> list[Ticket]:
    """Hands decoded images to their lane; gives the requests that this settled."""
    lane = job.lane
    settled = []
    for task, result in zip(job.tasks, results, strict=True):
        if isinstance(result, Exception):
            lane.preparing -= 1
            settled += _fail(lane, [task], result, now_s)
        else:
            lane.prepared(task, result)
    return settled


def _report_run(job: _Run, result: Result | Exception, now_s: float) -> list[Ticket]:
    """Hands the results of a batch to their requests; gives those that this settled."""
    lane, batch = job.lane, job.batch
    lane.ran(batch, now_s)
    if isinstance(result, Exception):
        return _fail(lane, batch, result, now_s)
    settled = []
    for task, row, best in zip(batch, *result, strict=True):
        if task.ticket.finish_task(task, row, best, len(batch)):
            lane.settled(task.ticket, now_s, succeeded=True)
            settled.append(task.ticket)
    return settled


def _fail(lane: Lane, tasks: Iterable[Task], error: Exception, now_s: float) -> list[Ticket]:
    settled = []
    for task in tasks:
        if task.ticket.fail(error):
            lane.settled(task.ticket, now_s, succeeded=False)
            settled.append(task.ticket)
    return settled


def _give_up(lane: Lane, expired: list[Ticket]) -> None:
    """Tells of requests that expired; with the last of them the lane may have become idle."""
    if expired:
        _deliver(expired)
        lane.notify_if_idle()


def _deliver(tickets: list[Ticket], then: Callable[[], None] | None = None) -> bool:
    """Resolves the futures of settled requests, with one call to each event loop concerned.

    Args:
        tickets: the requests.
        then: is called by one of the event loops when who waited for them has gone on.

    Returns:
        Whether an event loop calls ``then``.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        by_loop.setdefault(ticket.loop, []).append(ticket)
    is_passed_on = False
    for loop, mine in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, mine, None if is_passed_on else then)
            is_passed_on = True
        except RuntimeError:
            # The loop is closed, so nobody waits for these any more; the worker lives on.
            _log.debug("an event loop closed before its requests were answered")
    return is_passed_on


def _resolve(tickets: list[Ticket], then: Callable[[], None] | None) -> None:
    for ticket in tickets:
        ticket.deliver()
    if then is not None:
        # Behind the tasks that the futures have just woken.
        tickets[0].loop.call_soon(then)
