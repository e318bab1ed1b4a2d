"""The batching decisions, as functions of numbers.

Three questions: what should a free worker do next, how many of the ready images should one run
take, and will a new request still meet its deadline. The server measures the engine when it warms
it up, so the decisions rest on the speed of this machine and not on configuration.
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

# The throughput that a larger batch must gain to be worth the wait of its images.
_WORTHWHILE_GAIN = 0.03
# The weight of one image or run in the estimate, which follows single runs slowly. Otherwise one
# quick run would admit too many requests, since requests are admitted when the estimate is low.
_SMOOTHING = 0.02


class WorkerStep(Enum):
    """What a free worker does for a model."""

    PREPARE = "prepare"
    """Decode one image."""
    RUN = "run"
    """Run a batch of ready images."""
    NOTHING = "nothing"
    """There is no work, or another worker does it."""


class QueueState(NamedTuple):
    """The images of one model by stage, and the capacity of its engine.

    Attributes:
        waiting: Images that wait to be decoded.
        preparing: Images that are being decoded.
        ready: Images that are decoded and wait for a run.
        running: Runs under way.
        slots: Runs that the engine accepts at once.
        parallel: How many of these compute at once; the others wait behind them.
        target: Images that make a run efficient.
        largest: Images that one run can take.
        shares_host: Whether a run occupies a core that could decode.
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
    """Decides what a free worker does for a model.

    An engine on its own device is the bottleneck: whenever it is free, it takes the ready images,
    and while it is busy, the workers decode ahead by at most two full batches.

    Where the engine runs on the workers' cores, no worker sleeps while there is work. A run starts
    when enough images are ready to make it efficient. It starts earlier only when nothing is left
    to decode and a core is free: behind other runs it would start no sooner, and images that
    arrive meanwhile can still join it.
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
    """Decides how many images a worker decodes before it asks for its next step.

    If the engine shares the host and enough images wait for every worker, a worker decodes as many
    as the batch still needs, because each step takes the lock and the interpreter. If few wait, it
    decodes one, so that all cores get work. It also decodes one for an engine on its own device,
    which takes the ready images as soon as it is free.

    Args:
        state: The images of the model by stage.
        workers: The number of workers.
    """
    if not state.shares_host:
        return 1
    return max(1, min(state.waiting // workers, state.target - state.ready))


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How many ready images a run takes, from measured run times.

    Attributes:
        target: The smallest batch that is nearly as efficient as the best one.
        largest: Images that one run can take.
        takes: At index n, how many of n ready images the next run takes.
    """

    target: int
    largest: int
    takes: tuple[int, ...]

    @classmethod
    def measured(cls, run_s: Mapping[int, float]) -> "BatchPlan":
        """Plans from the time of one run at each batch size that the engine is compiled for.

        A run of a size between two of them costs as much as the next larger size. The split of n
        ready images into runs is the one with the least total time (dynamic programming over n);
        its largest run goes first.

        Args:
            run_s: Seconds of one run by batch size.

        Raises:
            ValueError: There is no size, or a size or time is not positive.
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
        """Returns how many of the ready images the next run takes; at least one.

        Args:
            ready: The number of ready images, at least one.
        """
        return self.takes[min(ready, self.largest)]


@dataclass(slots=True)
class ServiceTimeEstimate:
    """How long an image takes: exponentially smoothed over the measured times.

    Attributes:
        prepare_s: Seconds to decode one image.
        run_s: Seconds of a run, divided by its images.
    """

    prepare_s: float
    run_s: float

    def prepared(self, seconds: float) -> None:
        """Adds the decoding time of one image."""
        self.prepare_s += _SMOOTHING * (seconds - self.prepare_s)

    def ran(self, seconds: float, images: int) -> None:
        """Adds the time of one run."""
        self.run_s += _SMOOTHING * (seconds / images - self.run_s)

    def image_s(self, workers: int, slots: int, *, shares_host: bool) -> float:
        """Returns the seconds between two finished images when the server is busy."""
        if shares_host:
            return (self.prepare_s + self.run_s) / workers
        return max(self.prepare_s / workers, self.run_s / slots)


def expected_wait_s(
    ahead: int, target: int, service_time: ServiceTimeEstimate, image_s: float
) -> float:
    """Estimates how long a request will take.

    Args:
        ahead: Images that finish up to the request's last one, that one included.
        target: The usual batch size, with which the last image runs.
        service_time: How long an image takes.
        image_s: Seconds between two finished images.
    """
    return ahead * image_s + service_time.prepare_s + target * service_time.run_s
