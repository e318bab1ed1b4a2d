"""One loaded model version: its engine, what waits for it, and what is known of its speed.

A lane has no thread and no lock of its own. The worker pool that it is part of calls it with the
pool's lock held, tells it the time, and does the work that it hands out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from tidegate.serving.vision.engine import InputForm
from tidegate.serving.vision.fair_queue import FairQueue
from tidegate.serving.vision.planning import BatchPlan, Load, Pace, expected_wait_s

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.engine import Engine
    from tidegate.serving.vision.metrics import LaneMetrics
    from tidegate.serving.vision.tickets import Image, Task, Ticket

__all__ = ["Bounds", "Lane", "Totals"]

# A wait is foreseen as it will be on the average. Under overload the queue is always as long as it
# may be, so without some room every other request that is taken in would be late.
_CAUTION = 1.25


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a lane holds before it refuses more.

    Attributes:
        images: images of unfinished requests.
        size_bytes: their bytes as they were received.
    """

    images: int
    size_bytes: int


@dataclass(slots=True)
class Totals:
    """Counts and summed seconds since the model was loaded.

    Attributes:
        succeeded: requests answered.
        succeeded_s: from their arrival to their answer.
        failed: requests that failed after they were accepted.
        failed_s: from their arrival to their failure.
        images: images that were run.
        queue_s: their waiting.
        prepare_s: their decoding.
        runs: batches by their number of images: how many there were, and their seconds.
        last_run_at_ms: wall-clock time of the last run's end, in milliseconds since 1970.
    """

    succeeded: int = 0
    succeeded_s: float = 0.0
    failed: int = 0
    failed_s: float = 0.0
    images: int = 0
    queue_s: float = 0.0
    prepare_s: float = 0.0
    runs: dict[int, tuple[int, float]] = field(default_factory=dict)
    last_run_at_ms: int = 0


class Lane:
    """What waits for one model, and in which stage it is.

    Args:
        name: the model and version, for messages.
        engine: the loaded engine.
        prepare: brings an image to the form that the engine takes; releases the GIL.
        plan: how ready images are split into runs.
        pace: the measured times to begin with.
        bounds: how much is held at most.
        metrics: where stages are recorded.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        prepare: Callable[[Image], npt.NDArray[np.generic]],
        plan: BatchPlan,
        pace: Pace,
        bounds: Bounds,
        metrics: LaneMetrics,
    ) -> None:
        self.name = name
        self.engine = engine
        self.prepare = prepare
        self.plan = plan
        self.pace = pace
        self.bounds = bounds
        self.metrics = metrics
        self.totals = Totals()
        self.closing = False
        self.held_images = 0
        self.held_bytes = 0
        self.preparing = 0
        self.running = 0
        self.running_images = 0
        self.on_idle: Callable[[], None] | None = None
        self._waiting: FairQueue[Task] = FairQueue()
        self._ready: dict[InputForm, deque[Task]] = {form: deque() for form in InputForm}
        self._ready_lines = tuple(self._ready.values())

    @property
    def ready(self) -> int:
        """Images decoded and waiting for a run."""
        return sum(map(len, self._ready_lines))

    @property
    def has_work(self) -> bool:
        """Whether an image waits for a worker."""
        return len(self._waiting) > 0 or any(self._ready_lines)

    def load(self) -> Load:
        """Where the lane's images are."""
        traits = self.engine.traits
        return Load(
            waiting=len(self._waiting),
            preparing=self.preparing,
            ready=self.ready,
            running=self.running,
            slots=traits.slots,
            parallel=traits.parallel,
            target=self.plan.target,
            largest=self.plan.largest,
            shares_host=traits.shares_host,
        )

    def admit(self, ticket: Ticket, now_s: float, workers: int) -> None:
        """Takes a request in, or says why not. A request that is taken in is likely to be in time.

        Its images are counted; whoever calls this hands them to a worker or queues them.

        Raises:
            Unavailable: the model is being unloaded.
            ResourceExhausted: no room, or the wait would outlast the request's deadline.
            DeadlineExceeded: the deadline is past already.
        """
        if self.closing:
            raise Unavailable(
                f"{self.name} is being unloaded; ask for another version", reason="MODEL_UNLOADING"
            )
        remaining_s = ticket.deadline_s - now_s
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        count = len(ticket.tasks)
        if (
            self.held_images + count > self.bounds.images
            or self.held_bytes + ticket.size_bytes > self.bounds.size_bytes
        ):
            raise ResourceExhausted(
                f"the queue of {self.name} is full ({self.held_images} images wait; the limit is "
                f"{self.bounds.images} images or {self.bounds.size_bytes} bytes)",
                reason="QUEUE_FULL",
                retry_after_s=max(0.01, self.held_images * self._image_s(workers) / 2),
            )
        # An empty lane takes any request: were the measured pace too pessimistic, it could not
        # otherwise be corrected.
        if self.held_images:
            self._refuse_if_late(ticket, remaining_s, workers)
        self.held_images += count
        self.held_bytes += ticket.size_bytes

    def queue(self, ticket: Ticket) -> None:
        """Lets the images of a request wait for a worker."""
        for task in ticket.tasks:
            self._waiting.push(task)

    def _image_s(self, workers: int) -> float:
        traits = self.engine.traits
        return self.pace.image_s(workers, traits.slots, shares_host=traits.shares_host)

    def _refuse_if_late(self, ticket: Ticket, remaining_s: float, workers: int) -> None:
        ahead = self._waiting.ahead_of(ticket.client, len(ticket.tasks), ticket.priority)
        ahead += self.preparing + self.ready + self.running_images
        image_s = self._image_s(workers)
        wait_s = expected_wait_s(ahead, self.plan.target, self.pace, image_s)
        if wait_s * _CAUTION > remaining_s:
            raise ResourceExhausted(
                f"{self.name} would answer in about {wait_s * 1000:.0f} ms, but the deadline is in "
                f"{remaining_s * 1000:.0f} ms",
                reason="DEADLINE_WOULD_PASS",
                retry_after_s=max(0.01, wait_s * _CAUTION - remaining_s),
            )

    def next_to_prepare(self, now_s: float, count: int) -> tuple[list[Task], list[Ticket]]:
        """Takes up to ``count`` images to decode, and the requests that this found expired."""
        tasks: list[Task] = []
        expired: list[Task] = []
        while len(tasks) < count:
            task, passed_over = self._waiting.pop(now_s)
            expired += passed_over
            if task is None:
                break
            tasks.append(task)
        self.preparing += len(tasks)
        return tasks, self._expire(expired, now_s)

    def decoded(self, task: Task) -> None:
        """Notes that a worker is done with the bytes of an image, well or badly."""
        self.preparing -= 1
        task.image = None

    def prepared(self, task: Task, array: npt.NDArray[np.generic] | None) -> None:
        """Takes back an image that was decoded, or was not since nobody waits for it any more."""
        self.decoded(task)
        if array is not None and not task.abandoned:
            task.prepared = array
            self._ready[task.form].append(task)

    def next_batch(self, now_s: float) -> tuple[list[Task], list[Ticket]]:
        """Takes images for one run; also gives the requests that this found to be expired.

        All are of one form: that of the image that has waited longest.
        """
        expired: list[Task] = []
        for tasks in filter(None, self._ready_lines):
            alive = [task for task in tasks if not task.abandoned]
            expired.extend(task for task in alive if task.deadline_s <= now_s)
            tasks.clear()
            tasks.extend(task for task in alive if task.deadline_s > now_s)
        tickets = self._expire(expired, now_s)
        waiting = [tasks for tasks in self._ready_lines if tasks]
        if not waiting:
            return [], tickets
        tasks = min(waiting, key=lambda each: each[0].stages.prepare_end_s)
        batch = [tasks.popleft() for _ in range(self.plan.take(len(tasks)))]
        self.start(batch, now_s)
        return batch, tickets

    def start(self, batch: list[Task], now_s: float) -> None:
        """Notes that a run begins."""
        self.running += 1
        self.running_images += len(batch)
        for task in batch:
            task.stages.run_start_s = now_s

    def ran(self, batch: list[Task], now_s: float) -> None:
        """Notes that a run has ended, well or badly."""
        self.running -= 1
        self.running_images -= len(batch)
        for task in batch:
            task.stages.run_end_s = now_s
            task.prepared = None

    def learn(self, batch: list[Task], ended_ms: int) -> None:
        """Counts a run that has ended, and learns from the times of its images.

        Args:
            batch: the images.
            ended_ms: wall-clock time of its end, in milliseconds since 1970.
        """
        run_s = batch[0].stages.run_end_s - batch[0].stages.run_start_s
        self.pace.ran(run_s, len(batch))
        runs, seconds = self.totals.runs.get(len(batch), (0, 0.0))
        self.totals.runs[len(batch)] = (runs + 1, seconds + run_s)
        self.totals.images += len(batch)
        self.totals.last_run_at_ms = ended_ms
        self.metrics.ran(len(batch), run_s)
        for task in batch:
            queue_s = task.stages.queue_s
            prepare_s = task.stages.prepare_end_s - task.stages.prepare_start_s
            self.totals.queue_s += queue_s
            self.totals.prepare_s += prepare_s
            self.metrics.image(queue_s, prepare_s)
            if task.form is InputForm.PIXELS:
                self.pace.prepared(prepare_s)

    def settled(self, ticket: Ticket, now_s: float, *, succeeded: bool) -> None:
        """Makes room: a request of this lane is over."""
        self.held_images -= len(ticket.tasks)
        self.held_bytes -= ticket.size_bytes
        elapsed_s = now_s - ticket.accepted_s
        if succeeded:
            self.totals.succeeded += 1
            self.totals.succeeded_s += elapsed_s
        else:
            self.totals.failed += 1
            self.totals.failed_s += elapsed_s

    def notify_if_idle(self) -> None:
        """Calls ``on_idle`` when the lane holds nothing and no worker is busy for it."""
        idle = not (self.held_images or self.preparing or self.running)
        if idle and self.on_idle is not None:
            self.on_idle()

    def _expire(self, tasks: list[Task], now_s: float) -> list[Ticket]:
        """Fails the requests of images whose time is up; gives those that this settled."""
        tickets = []
        for task in tasks:
            waited_ms = (now_s - task.stages.accepted_s) * 1000
            error = DeadlineExceeded(
                f"the deadline passed after {waited_ms:.0f} ms in the queue; it was not run",
                reason="EXPIRED_IN_QUEUE",
            )
            if task.ticket.fail(error):
                self.settled(task.ticket, now_s, succeeded=False)
                tickets.append(task.ticket)
        return tickets
