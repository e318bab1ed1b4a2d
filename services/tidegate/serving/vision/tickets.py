"""A request and its images on their way through the server.

A request of many images is split: each image is a task that may run in another batch. The ticket
gathers them again, and is settled exactly once: with all results, or with the first error. From
then on its remaining tasks are abandoned, so nothing is computed for a client that has gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tidegate.serving.vision.engine import InputForm
from tidegate.serving.vision.fair_queue import DEFAULT_PRIORITY

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.classification import Best

__all__ = ["Encoded", "Image", "Outcome", "Pixels", "Stages", "Task", "Tensor", "Ticket"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A JPEG, PNG or WebP file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pixels:
    """Decoded pixels: uint8 RGB, height × width × 3."""

    array: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A preprocessed float32 input in the model's own layout, without the batch axis."""

    array: npt.NDArray[np.float32]


Image = Encoded | Pixels | Tensor


@dataclass(slots=True)
class Stages:
    """When an image passed each stage, on the monotonic clock in seconds; 0 where it has not."""

    accepted_s: float = 0.0
    prepare_start_s: float = 0.0
    prepare_end_s: float = 0.0
    run_start_s: float = 0.0
    run_end_s: float = 0.0

    @property
    def queue_s(self) -> float:
        """Seconds of waiting, before decoding and before the run."""
        waited = self.prepare_start_s - self.accepted_s
        return max(0.0, waited) + max(0.0, self.run_start_s - self.prepare_end_s)


class Outcome(NamedTuple):
    """What the model gave for a request.

    Attributes:
        rows: the model's own output for each image.
        best: the best classes of each image, as many as were wanted.
        stages: when each image passed each stage.
        batch_size: images in the largest batch that served the request.
    """

    rows: tuple[npt.NDArray[np.float32], ...]
    best: tuple[Best, ...]
    stages: tuple[Stages, ...]
    batch_size: int


class Task:
    """One image of a request. The workers own it until it is done."""

    __slots__ = ("form", "image", "index", "prepared", "stages", "ticket")

    def __init__(self, ticket: Ticket, index: int, image: Image) -> None:
        self.ticket = ticket
        self.index = index
        self.image: Image | None = image
        self.form = InputForm.TENSOR if isinstance(image, Tensor) else InputForm.PIXELS
        self.prepared: npt.NDArray[np.generic] | None = None
        self.stages = Stages(accepted_s=ticket.accepted_s)

    @property
    def client(self) -> str:
        """Whose request it belongs to."""
        return self.ticket.client

    @property
    def priority(self) -> int:
        """Which of its client's images it goes ahead of."""
        return self.ticket.priority

    @property
    def abandoned(self) -> bool:
        """Whether nobody wants it any more."""
        return self.ticket.settled

    @property
    def deadline_s(self) -> float:
        """The time after which it must not be run."""
        return self.ticket.deadline_s


class Ticket:
    """One request.

    Everything but :meth:`deliver` is called with the scheduler's lock held.

    Args:
        images: its images, at least one.
        top_k: classes wanted of each image, from 1 to as many as the model has.
        client: finds out whose it is, for fairness; asked at most once, and when other images wait.
        deadline_s: monotonic time after which nothing of it may be run.
        accepted_s: monotonic time of its arrival.
        loop: the event loop on which ``future`` is resolved.
        priority: which of its client's requests it goes ahead of; see :class:`FairQueue`.
    """

    __slots__ = (
        "_batch_size", "_client", "_error", "_find_client", "_results", "accepted_s", "deadline_s",
        "future", "loop", "priority", "settled", "size_bytes", "tasks", "top_k",
    )  # fmt: skip

    def __init__(
        self,
        images: Sequence[Image],
        *,
        top_k: int,
        client: Callable[[], str],
        deadline_s: float,
        accepted_s: float,
        loop: asyncio.AbstractEventLoop,
        priority: int = DEFAULT_PRIORITY,
    ) -> None:
        self.top_k = top_k
        self.priority = priority
        self._find_client = client
        self._client: str | None = None
        self.deadline_s = deadline_s
        self.accepted_s = accepted_s
        self.loop = loop
        self.future: asyncio.Future[Outcome] = loop.create_future()
        self.settled = False
        self.tasks = [Task(self, index, image) for index, image in enumerate(images)]
        self.size_bytes = sum(_size_bytes(image) for image in images)
        self._results: dict[int, tuple[npt.NDArray[np.float32], Best]] = {}
        self._batch_size = 0
        self._error: Exception | None = None

    @property
    def client(self) -> str:
        """Whose it is."""
        if self._client is None:
            self._client = self._find_client()
        return self._client

    def finish_task(
        self, task: Task, row: npt.NDArray[np.float32], best: Best, batch_size: int
    ) -> bool:
        """Takes the result of one image; returns whether this settled the ticket.

        Args:
            task: the image.
            row: the model's own output for it.
            best: its best classes, as many as are wanted.
            batch_size: images that were run with it, itself included.
        """
        if self.settled:
            return False
        self._results[task.index] = row, best
        self._batch_size = max(self._batch_size, batch_size)
        self.settled = len(self._results) == len(self.tasks)
        return self.settled

    def fail(self, error: Exception) -> bool:
        """Settles the ticket with an error; returns whether it was not settled before."""
        if self.settled:
            return False
        self._error = error
        self._release()
        return True

    def cancel(self) -> bool:
        """Settles the ticket because its client has gone; returns whether it was not settled."""
        if self.settled:
            return False
        self._release()
        return True

    def deliver(self) -> None:
        """Resolves the future; called on the event loop, after the ticket was settled."""
        if self.future.done():
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        elif self._results:
            rows, best = zip(*map(self._results.__getitem__, range(len(self.tasks))), strict=True)
            stages = tuple(task.stages for task in self.tasks)
            self.future.set_result(Outcome(rows, best, stages, self._batch_size))

    def _release(self) -> None:
        """Lets go of the images at once: tasks that still wait hold no memory."""
        self.settled = True
        for task in self.tasks:
            task.image = None
            task.prepared = None


def _size_bytes(image: Image) -> int:
    return len(image.data) if isinstance(image, Encoded) else image.array.nbytes
