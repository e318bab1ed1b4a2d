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
from typing import TYPE_CHECKING, Self

from tidegate.serving.vision.jobs import (
    Job,
    Prepare,
    Run,
    prepare,
    report_prepared,
    report_run,
    run_batch,
)
from tidegate.serving.vision.planning import Step, images_to_prepare, next_step

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType

    from tidegate.serving.vision.jobs import Prepared
    from tidegate.serving.vision.lane import Lane
    from tidegate.serving.vision.tickets import Ticket

__all__ = ["WorkerPool"]

_log = logging.getLogger(__name__)


class _Worker:
    """A thread as the others know it.

    Attributes:
        woken: held while it has nothing to do; who releases it wakes the worker.
        job: what it was woken for, unless it is to look for something itself.
    """

    __slots__ = ("job", "woken")

    def __init__(self) -> None:
        self.job: Prepare | None = None
        self.woken = threading.Lock()
        self.woken.acquire()


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
        # The one that became idle last at the end.
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

    def add(self, lane: Lane) -> None:
        """Starts to serve a lane, and to report what it holds."""
        with self._lock:
            self._lanes.append(lane)
        lane.metrics.held.set_function(lambda: lane.held_images)

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
            if self._idle and self._is_alone(lane, runs=0):
                lane.preparing += 1
                self._wake(Prepare(lane, ticket.tasks))
            else:
                lane.queue(ticket)
                self._wake_up_to(len(ticket.tasks))

    def cancel(self, lane: Lane, ticket: Ticket) -> None:
        """Gives up a request whose client has gone. What of it is not running yet never will be."""
        with self._lock:
            if ticket.cancel():
                lane.settled(ticket, self._clock(), succeeded=False)
                lane.notify_if_idle()

    def _wake(self, job: Prepare | None = None) -> None:
        """Wakes the idle worker that became idle last, which is warm.

        Args:
            job: what it is to do; it looks for something itself unless it is told.
        """
        worker = self._idle.pop()
        worker.job = job
        worker.woken.release()

    def _wake_up_to(self, workers: int) -> None:
        for _ in range(min(workers, len(self._idle))):
            self._wake()

    def _serve(self) -> None:
        worker = _Worker()
        with self._lock:
            while not self._stopping:
                job, worker.job = worker.job or self._claim(), None
                if job is None:
                    self._idle.append(worker)
                    self._lock.release()
                    worker.woken.acquire()
                    self._lock.acquire()
                    continue
                self._do(job)

    def _do(self, job: Job) -> None:
        run = self._prepare(job) if isinstance(job, Prepare) else job
        if run is not None:
            self._run(run)
        job.lane.notify_if_idle()

    def _prepare(self, job: Prepare) -> Run | None:
        """Decodes images and hands them to their lane; the lock is held, but not meanwhile.

        Returns:
            The run of the only image there is, which need not be looked for; else ``None``.
        """
        self._lock.release()
        try:
            results = prepare(job, self._clock)
        finally:
            self._lock.acquire()
        now_s = self._clock()
        if run := self._run_at_once(job, results, now_s):
            return run
        if settled := report_prepared(job, results, now_s):
            _deliver(settled)
        return None

    def _run_at_once(self, job: Prepare, results: list[Prepared], now_s: float) -> Run | None:
        """The run of an image that was decoded and is the only one; there is nothing to plan."""
        lane, task, array = job.lane, job.tasks[0], results[0]
        if array is None or isinstance(array, Exception) or not self._is_alone(lane, runs=0):
            return None
        if len(job.tasks) > 1 or task.abandoned or task.deadline_s <= now_s:
            return None
        lane.decoded(task)
        lane.start([task], now_s)
        return Run(lane, [task], [array], alone=True)

    def _is_alone(self, lane: Lane, runs: int) -> bool:
        """Whether one image of this lane is all that is held, and so many runs are under way.

        A run goes on, and is company, also when nobody waits for it any more.
        """
        if lane.held_images != 1 or lane.running != runs:
            return False
        for each in self._lanes:
            if each is not lane and (each.held_images or each.running):
                return False
        return True

    def _run(self, job: Run) -> None:
        """Runs a batch and answers with its results; the lock is held, but not meanwhile."""
        self._lock.release()
        try:
            result = run_batch(job)
        finally:
            self._lock.acquire()
        settled = report_run(job, result, self._clock())
        ended_ms = time.time_ns() // 1_000_000
        # The answers go first: nobody waits for what is learned of them.
        if not _deliver(settled, then=partial(self._learn, job, ended_ms)):
            job.lane.learn(job.batch, ended_ms)

    def _learn(self, job: Run, ended_ms: int) -> None:
        with self._lock:
            job.lane.learn(job.batch, ended_ms)

    def _claim(self) -> Job | None:
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
                    self._wake()
                return job
        return None

    def _claim_of(self, lane: Lane) -> Job | None:
        # What clients have given up may still stand in the lines of a lane that holds nothing.
        while lane.held_images and lane.has_work:
            load = lane.load()
            step = next_step(load)
            now_s = self._clock()
            if step is Step.PREPARE:
                tasks, expired = lane.next_to_prepare(now_s, images_to_prepare(load, self.workers))
                _give_up(lane, expired)
                if tasks:
                    return Prepare(lane, tasks)
            elif step is Step.RUN:
                if run := self._claim_run(lane, now_s):
                    return run
            else:
                break
        return None

    def _claim_run(self, lane: Lane, now_s: float) -> Run | None:
        batch, expired = lane.next_batch(now_s)
        _give_up(lane, expired)
        if not batch:
            return None
        arrays = [task.prepared for task in batch if task.prepared is not None]
        return Run(lane, batch, arrays, alone=self._is_alone(lane, runs=1))


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
