"""The queue of one loaded model version: admission, waiting images, batches and service times.

A model queue has no thread, no lock and no clock. The worker pool calls it with the pool's lock
held and the current time, and does the work that the queue hands out.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidegate.chassis.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from tidegate.serving.vision.batching.fair_queue import FairQueue
from tidegate.serving.vision.batching.planning import (
    BatchPlan,
    QueueState,
    ServiceTimeEstimate,
    expected_wait_s,
)
from tidegate.serving.vision.engines.engine import InputForm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.batching.classification import TopClasses
    from tidegate.serving.vision.batching.inference_request import (
        ImageContent,
        InferenceRequest,
        RequestImage,
    )
    from tidegate.serving.vision.engines.engine import InferenceEngine
    from tidegate.serving.vision.metrics import ModelMetrics

__all__ = ["InferenceStatistics", "ModelQueue", "QueueLimits"]

# The expected wait is an average. Under overload the queue is always as long as admission permits,
# so without this margin every other accepted request would be late.
_SAFETY_MARGIN = 1.25


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a model queue holds before it refuses requests.

    Attributes:
        images: Images of unfinished requests.
        size_bytes: Bytes of these images, as received.
    """

    images: int
    size_bytes: int


@dataclass(slots=True)
class InferenceStatistics:
    """Counts and summed seconds since the model was loaded.

    Attributes:
        succeeded: Requests that succeeded.
        succeeded_s: Seconds from their arrival to their result.
        failed: Requests that failed after they were accepted.
        failed_s: Seconds from their arrival to their failure.
        images: Images that were run.
        queue_s: Seconds that they waited.
        prepare_s: Seconds of their decoding.
        runs: For each batch size, the number of runs and their total seconds.
        last_run_at_ms: Wall-clock time of the end of the last run, in milliseconds since 1970.
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


class ModelQueue:
    """The images of one model, by stage: waiting, in preparation, ready, running.

    Args:
        name: The model and version, for messages.
        engine: The loaded engine.
        prepare: Converts an image to the form that the engine takes; releases the GIL.
        plan: How ready images are split into runs.
        service_time: The initial estimate, from measurements.
        limits: How much the queue holds at most.
        metrics: Records the stages.
    """

    def __init__(
        self,
        name: str,
        engine: InferenceEngine,
        prepare: Callable[[ImageContent], npt.NDArray[np.generic]],
        plan: BatchPlan,
        service_time: ServiceTimeEstimate,
        limits: QueueLimits,
        metrics: ModelMetrics,
    ) -> None:
        self.name = name
        self.engine = engine
        self.prepare = prepare
        self.plan = plan
        self.service_time = service_time
        self.limits = limits
        self.metrics = metrics
        self.statistics = InferenceStatistics()
        self.closing = False
        self.held_images = 0
        self.held_bytes = 0
        self.preparing = 0
        self.running = 0
        self.running_images = 0
        self.on_idle: Callable[[], None] | None = None
        self._waiting: FairQueue[RequestImage] = FairQueue()
        self._ready: dict[InputForm, deque[RequestImage]] = {form: deque() for form in InputForm}
        self._ready_queues = tuple(self._ready.values())

    @property
    def ready(self) -> int:
        """Counts the images that are decoded and wait for a run."""
        return sum(map(len, self._ready_queues))

    @property
    def has_work(self) -> bool:
        """Whether an image waits for a worker."""
        return len(self._waiting) > 0 or any(self._ready_queues)

    def state(self) -> QueueState:
        """Returns the number of images in each stage, and the engine's capacity."""
        traits = self.engine.traits
        return QueueState(
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

    def admit(self, request: InferenceRequest, now_s: float, workers: int) -> None:
        """Accepts a request that will probably meet its deadline, or refuses it.

        It counts the images only: the caller then gives them to a worker or enqueues them.

        Raises:
            Unavailable: The model is being unloaded.
            ResourceExhausted: The queue is full, or the wait would outlast the request's deadline.
            DeadlineExceeded: The deadline has already passed.
        """
        if self.closing:
            raise Unavailable(
                f"{self.name} is being unloaded; ask for another version", reason="MODEL_UNLOADING"
            )
        remaining_s = request.deadline_s - now_s
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")
        count = len(request.images)
        if (
            self.held_images + count > self.limits.images
            or self.held_bytes + request.size_bytes > self.limits.size_bytes
        ):
            raise ResourceExhausted(
                f"the queue of {self.name} is full ({self.held_images} images wait; the limit is "
                f"{self.limits.images} images or {self.limits.size_bytes} bytes)",
                reason="QUEUE_FULL",
                retry_after_s=max(0.01, self.held_images * self._image_s(workers) / 2),
            )
        # An empty queue accepts any request: only new runs can correct an estimate that is too
        # pessimistic.
        if self.held_images:
            self._refuse_if_late(request, remaining_s, workers)
        self.held_images += count
        self.held_bytes += request.size_bytes

    def enqueue(self, request: InferenceRequest) -> None:
        """Lets the images of an accepted request wait for a worker."""
        for image in request.images:
            self._waiting.push(image)

    def _image_s(self, workers: int) -> float:
        traits = self.engine.traits
        return self.service_time.image_s(workers, traits.slots, shares_host=traits.shares_host)

    def _refuse_if_late(self, request: InferenceRequest, remaining_s: float, workers: int) -> None:
        ahead = self._waiting.ahead_of(request.client, len(request.images), request.priority)
        ahead += self.preparing + self.ready + self.running_images
        image_s = self._image_s(workers)
        wait_s = expected_wait_s(ahead, self.plan.target, self.service_time, image_s)
        if wait_s * _SAFETY_MARGIN > remaining_s:
            raise ResourceExhausted(
                f"{self.name} would answer in about {wait_s * 1000:.0f} ms, but the deadline is in "
                f"{remaining_s * 1000:.0f} ms",
                reason="DEADLINE_WOULD_PASS",
                retry_after_s=max(0.01, wait_s * _SAFETY_MARGIN - remaining_s),
            )

    def next_to_prepare(
        self, now_s: float, count: int
    ) -> tuple[list[RequestImage], list[InferenceRequest]]:
        """Removes up to ``count`` images to decode; also returns the requests found expired."""
        images: list[RequestImage] = []
        expired: list[RequestImage] = []
        while len(images) < count:
            image, passed_over = self._waiting.pop(now_s)
            expired += passed_over
            if image is None:
                break
            images.append(image)
        self.preparing += len(images)
        return images, self._expire(expired, now_s)

    def decoded(self, image: RequestImage) -> None:
        """Records that a worker has finished decoding an image, successfully or not."""
        self.preparing -= 1
        image.content = None

    def prepared(self, image: RequestImage, array: npt.NDArray[np.generic] | None) -> None:
        """Makes a decoded image ready for a run, unless its request is settled.

        Args:
            image: The image.
            array: The engine's input; None if the worker skipped an abandoned image.
        """
        self.decoded(image)
        if array is not None and not image.abandoned:
            image.prepared = array
            self._ready[image.form].append(image)

    def next_batch(self, now_s: float) -> tuple[list[RequestImage], list[InferenceRequest]]:
        """Removes the images of the next run; also returns the requests found expired.

        All images have the same form, that of the image that has waited longest.
        """
        expired: list[RequestImage] = []
        for images in filter(None, self._ready_queues):
            alive = [image for image in images if not image.abandoned]
            expired.extend(image for image in alive if image.deadline_s <= now_s)
            images.clear()
            images.extend(image for image in alive if image.deadline_s > now_s)
        requests = self._expire(expired, now_s)
        waiting = [images for images in self._ready_queues if images]
        if not waiting:
            return [], requests
        images = min(waiting, key=lambda each: each[0].timestamps.prepare_end_s)
        batch = [images.popleft() for _ in range(self.plan.take(len(images)))]
        self.start(batch, now_s)
        return batch, requests

    def start(self, batch: list[RequestImage], now_s: float) -> None:
        """Records that a run begins."""
        self.running += 1
        self.running_images += len(batch)
        for image in batch:
            image.timestamps.run_start_s = now_s

    def ran(self, batch: list[RequestImage], now_s: float) -> None:
        """Records that a run has ended, successfully or not."""
        self.running -= 1
        self.running_images -= len(batch)
        for image in batch:
            image.timestamps.run_end_s = now_s
            image.prepared = None

    def record_run(
        self, batch: list[RequestImage], answers: Sequence[TopClasses], ended_ms: int
    ) -> None:
        """Updates statistics, metrics and the service-time estimate after a run.

        Args:
            batch: The images of the run.
            answers: The best classes of each image; empty if the run failed.
            ended_ms: Wall-clock time of its end, in milliseconds since 1970.
        """
        run_s = batch[0].timestamps.run_end_s - batch[0].timestamps.run_start_s
        self.service_time.ran(run_s, len(batch))
        runs, seconds = self.statistics.runs.get(len(batch), (0, 0.0))
        self.statistics.runs[len(batch)] = (runs + 1, seconds + run_s)
        self.statistics.images += len(batch)
        self.statistics.last_run_at_ms = ended_ms
        self.metrics.observe_run(len(batch), run_s)
        for image in batch:
            queue_s = image.timestamps.queue_s
            prepare_s = image.timestamps.prepare_end_s - image.timestamps.prepare_start_s
            self.statistics.queue_s += queue_s
            self.statistics.prepare_s += prepare_s
            self.metrics.observe_image(queue_s, prepare_s)
            if image.form is InputForm.PIXELS:
                self.service_time.prepared(prepare_s)
        for answer in answers:
            self.metrics.observe_answer(answer.classes[0], answer.scores[0])

    def settled(self, request: InferenceRequest, now_s: float, *, succeeded: bool) -> None:
        """Frees the space of a settled request, and counts it."""
        self.held_images -= len(request.images)
        self.held_bytes -= request.size_bytes
        elapsed_s = now_s - request.accepted_s
        if succeeded:
            self.statistics.succeeded += 1
            self.statistics.succeeded_s += elapsed_s
        else:
            self.statistics.failed += 1
            self.statistics.failed_s += elapsed_s

    def notify_if_idle(self) -> None:
        """Calls ``on_idle`` if the queue holds no image and no worker works for it."""
        idle = not (self.held_images or self.preparing or self.running)
        if idle and self.on_idle is not None:
            self.on_idle()

    def _expire(self, images: list[RequestImage], now_s: float) -> list[InferenceRequest]:
        """Fails the requests of expired images; returns those that this settled."""
        requests = []
        for image in images:
            waited_ms = (now_s - image.timestamps.accepted_s) * 1000
            error = DeadlineExceeded(
                f"the deadline passed after {waited_ms:.0f} ms in the queue; it was not run",
                reason="EXPIRED_IN_QUEUE",
            )
            if image.request.fail(error):
                self.settled(image.request, now_s, succeeded=False)
                requests.append(image.request)
        return requests
