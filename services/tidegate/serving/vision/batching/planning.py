"""The batcher's decisions, as functions of numbers.

Three questions: what should a free worker do next, how many of the images that are ready should one
run take, and would a new request still be answered in time. The engine is measured when it is
warmed up, so the answers rest on what this machine does and not on configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

__all__ = [
    "BatchPlan",
    "QueueState",
    "ServiceTimeEstimate",
    "WorkerStep",
    "expected_wait_s",
    "images_to_prepare",
    "next_step",
]

# A larger batch must gain this share of throughput to be worth the wait of the images in it.
_WORTHWHILE_GAIN = 0.03
# What one image or run adds to the pace. Under overload requests are let in at the most hopeful
# moment, so a pace that follows every quick run promises too much.
_SMOOTHING = 0.02


class WorkerStep(Enum):
    """What a free worker does for a model."""

    PREPARE = "prepare"
    """Decode one image."""
    RUN = "run"
    """Run a batch of what is ready."""
    NOTHING = "nothing"
    """Another worker is needed for what is to be done, or nothing is."""


class QueueState(NamedTuple):
    """Where the images of one model are.

    Attributes:
        waiting: queued, not yet decoded.
        preparing: being decoded.
        ready: decoded, waiting for a run.
        running: runs under way.
        slots: runs that the engine allows at once.
        parallel: how many of these compute at once; the others wait behind them.
        target: images that make a run efficient.
        largest: images that one run can take.
        shares_host: whether a run occupies a core that could decode.
    """

    waiting: int
    preparing: int
    ready: int
    running: int
    slots: int
    parallel: int
    target: int
    largest: int
    shares_host: bool


def next_step(state: QueueState) -> WorkerStep:
    """What a free worker should do for a model.

    On a device of its own the engine is the scarce part: whenever it is free it takes what is
    ready, and while it is busy workers decode ahead by no more than two full batches. Where the
    engine runs on the workers' own cores, no worker sleeps while there is work, so a run is
    started when enough is ready for it to be efficient, and before that only when nothing is left
    to decode and a core is free: behind other runs it would not begin sooner than the images that
    come meanwhile could join it.
    """
    slot_free = state.running < state.slots
    enough = state.target if state.shares_host else 1
    if slot_free and state.ready >= enough:
        return WorkerStep.RUN
    if state.waiting and (slot_free or state.ready + state.preparing < 2 * state.largest):
        return WorkerStep.PREPARE
    if state.ready and state.running < state.parallel:
        return WorkerStep.RUN
    return WorkerStep.NOTHING


def images_to_prepare(state: QueueState, workers: int) -> int:
    """How many images a worker decodes before it looks again.

    Where the engine shares the host, a whole batch while as many wait for every worker, since each
    look costs the lock and the interpreter; one at a time when few wait, so that they are spread
    over the cores, and for an engine of its own, which takes what is ready when it is free.

    Args:
        state: where the model's images are.
        workers: how many workers there are.
    """
    if not state.shares_host:
        return 1
    return max(1, min(state.waiting // workers, state.target - state.ready))


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How many ready images a run should take, from measured run times.

    Attributes:
        target: the smallest batch that is nearly as efficient as the best one.
        largest: images that one run can take.
        takes: at index n, how many of n ready images the next run takes.
    """

    target: int
    largest: int
    takes: tuple[int, ...]

    @classmethod
    def measured(cls, run_s: Mapping[int, float]) -> "BatchPlan":
        """Plans from the time of one run at each batch size that the engine was prepared for.

        A run of a size between two of them costs what the next larger one costs. The split of n
        ready images into runs is the one with the least total time (dynamic programming over n);
        of its runs the largest goes first.

        Args:
            run_s: seconds of one run by batch size.

        Raises:
            ValueError: there is no size, or a size or time is not positive.
        """
        if not run_s or any(size < 1 or seconds <= 0 for size, seconds in run_s.items()):
            raise ValueError(f"run times must be positive and for positive sizes, got {run_s}")
        largest = max(run_s)
        best_rate = max(size / seconds for size, seconds in run_s.items())
        target = min(
            size
            for size, seconds in run_s.items()
            if size / seconds >= best_rate * (1 - _WORTHWHILE_GAIN)
        )
        cost, takes = [0.0], [0]
        for images in range(1, largest + 1):
            options = [
                (seconds + cost[max(0, images - size)], -min(size, images))
                for size, seconds in run_s.items()
            ]
            seconds, taken = min(options)
            cost.append(seconds)
            takes.append(-taken)
        return cls(target=target, largest=largest, takes=tuple(takes))

    def take(self, ready: int) -> int:
        """How many of the ready images the next run takes; at least one.

        Args:
            ready: images ready, at least one.
        """
        return self.takes[min(ready, self.largest)]


@dataclass(slots=True)
class ServiceTimeEstimate:
    """How long an image takes now, smoothed exponentially over what was seen.

    Attributes:
        prepare_s: seconds to decode one image.
        run_s: seconds of a run, divided by its images.
    """

    prepare_s: float
    run_s: float

    def prepared(self, seconds: float) -> None:
        """Notes that an image took this long to decode."""
        self.prepare_s += _SMOOTHING * (seconds - self.prepare_s)

    def ran(self, seconds: float, images: int) -> None:
        """Notes that a run of so many images took this long."""
        self.run_s += _SMOOTHING * (seconds / images - self.run_s)

    def image_s(self, workers: int, slots: int, *, shares_host: bool) -> float:
        """Seconds between two images leaving the server when it is busy."""
        if shares_host:
            return (self.prepare_s + self.run_s) / workers
        return max(self.prepare_s / workers, self.run_s / slots)


def expected_wait_s(
    ahead: int, target: int, service_time: ServiceTimeEstimate, image_s: float
) -> float:
    """How long a request will take when so many images leave before it does.

    Args:
        ahead: images that are served before the request's last one, that one included.
        target: the usual batch: the last image shares a run with so many others.
        service_time: how long an image takes.
        image_s: seconds between two images leaving the server.
    """
    return ahead * image_s + service_time.prepare_s + target * service_time.run_s
