"""A request and its images on their way through the server.

A request of many images is split: each image is a task that may run in another batch. The ticket
gathers them again, and is settled exactly once: with all results, or with the first error. From
then on its remaining tasks are abandoned, so nothing is computed for a client that has gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tidegate.serving.vision.batching.fair_queue import DEFAULT_PRIORITY
from tidegate.serving.vision.engines.engine import InputForm

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.batching.classification import TopClasses

__all__ = [
    "EncodedImage",
    "ImageContent",
    "InferenceRequest",
    "InferenceResult",
    "PixelImage",
    "RequestImage",
    "StageTimestamps",
    "TensorImage",
]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG, PNG or WebP file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PixelImage:
    """Decoded pixels: uint8 RGB, height × width × 3."""

    array: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorImage:
    """A preprocessed float32 input in the model's own layout, without the batch axis."""

    array: npt.NDArray[np.float32]


ImageContent = EncodedImage | PixelImage | TensorImage


@dataclass(slots=True)
class StageTimestamps:
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


class InferenceResult(NamedTuple):
    """What the model gave for a request.

    Attributes:
        rows: the model's own output for each image.
        top_classes: the best classes of each image, as many as were wanted.
        timestamps: when each image passed each stage.
        batch_size: images in the largest batch that served the request.
    """

    rows: tuple[npt.NDArray[np.float32], ...]
    top_classes: tuple[TopClasses, ...]
    timestamps: tuple[StageTimestamps, ...]
    batch_size: int


class RequestImage:
    """One image of a request. The workers own it until it is done."""

    __slots__ = ("content", "form", "index", "prepared", "request", "timestamps")

    def __init__(self, request: InferenceRequest, index: int, content: ImageContent) -> None:
        self.request = request
        self.index = index
        self.content: ImageContent | None = content
        self.form = InputForm.TENSOR if isinstance(content, TensorImage) else InputForm.PIXELS
        self.prepared: npt.NDArray[np.generic] | None = None
        self.timestamps = StageTimestamps(accepted_s=request.accepted_s)

    @property
    def client(self) -> str:
        """Whose request it belongs to."""
        return self.request.client

    @property
    def priority(self) -> int:
        """Which of its client's images it goes ahead of."""
        return self.request.priority

    @property
    def abandoned(self) -> bool:
        """Whether nobody wants it any more."""
        return self.request.settled

    @property
    def deadline_s(self) -> float:
        """The time after which it must not be run."""
        return self.request.deadline_s


class InferenceRequest:
    """One request.

    Everything but :meth:`deliver` is called with the scheduler's lock held.

    Args:
        contents: its images, at least one.
        top_k: classes wanted of each image, from 1 to as many as the model has.
        client: finds out whose it is, for fairness; asked at most once, and when other images wait.
        deadline_s: monotonic time after which nothing of it may be run.
        accepted_s: monotonic time of its arrival.
        loop: the event loop on which ``future`` is resolved.
        priority: which of its client's requests it goes ahead of; see :class:`FairQueue`.
    """

    __slots__ = (
        "_batch_size", "_client", "_error", "_find_client", "_results", "accepted_s", "deadline_s",
        "future", "images", "loop", "priority", "settled", "size_bytes", "top_k",
    )  # fmt: skip

    def __init__(
        self,
        contents: Sequence[ImageContent],
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
        self.future: asyncio.Future[InferenceResult] = loop.create_future()
        self.settled = False
        self.images = [RequestImage(self, index, content) for index, content in enumerate(contents)]
        self.size_bytes = sum(_size_bytes(content) for content in contents)
        self._results: dict[int, tuple[npt.NDArray[np.float32], TopClasses]] = {}
        self._batch_size = 0
        self._error: Exception | None = None

    @property
    def client(self) -> str:
        """Whose it is."""
        if self._client is None:
            self._client = self._find_client()
        return self._client

    def finish_image(
        self,
        image: RequestImage,
        row: npt.NDArray[np.float32],
        top_classes: TopClasses,
        batch_size: int,
    ) -> bool:
        """Takes the result of one image; returns whether this settled the ticket.

        Args:
            image: the image.
            row: the model's own output for it.
            top_classes: its best classes, as many as are wanted.
            batch_size: images that were run with it, itself included.
        """
        if self.settled:
            return False
        self._results[image.index] = row, top_classes
        self._batch_size = max(self._batch_size, batch_size)
        self.settled = len(self._results) == len(self.images)
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
            rows, top_classes = zip(
                *map(self._results.__getitem__, range(len(self.images))), strict=True
            )
            timestamps = tuple(image.timestamps for image in self.images)
            self.future.set_result(InferenceResult(rows, top_classes, timestamps, self._batch_size))

    def _release(self) -> None:
        """Lets go of the images at once: tasks that still wait hold no memory."""
        self.settled = True
        for image in self.images:
            image.content = None
            image.prepared = None


def _size_bytes(content: ImageContent) -> int:
    return len(content.data) if isinstance(content, EncodedImage) else content.array.nbytes
