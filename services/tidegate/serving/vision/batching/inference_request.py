"""An inference request and its images on their way through the server.

The images of a request may run in different batches. The request collects their results. It is
settled exactly once: with all results, with the first error, or when its client cancels it. From
then on its remaining images are abandoned, so workers compute nothing for a client that has gone.
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
    """When an image entered and left each stage, in monotonic seconds; 0 where it has not."""

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
    """The model's output for a request.

    Attributes:
        rows: The model's own output for each image.
        top_classes: The best classes of each image, as many as the request asks for.
        timestamps: When each image passed each stage.
        batch_size: Images in the largest batch that served the request.
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
        """The client that sent the request."""
        return self.request.client

    @property
    def priority(self) -> int:
        """The priority among the images of its client; 1 goes first."""
        return self.request.priority

    @property
    def abandoned(self) -> bool:
        """Whether its request is already settled, so that no client waits for it."""
        return self.request.settled

    @property
    def deadline_s(self) -> float:
        """The time after which it must not be run."""
        return self.request.deadline_s


class InferenceRequest:
    """A request to run one or more images.

    Callers hold the lock of the worker pool, except for :meth:`deliver`.

    Args:
        contents: The images, at least one.
        top_k: Classes to return for each image, from 1 to the number of the model's classes.
        client: Looks up the client, for fairness; called at most once, when other images wait.
        deadline_s: Monotonic time after which none of its images may run.
        accepted_s: Monotonic time of its arrival.
        loop: The event loop on which ``future`` is resolved.
        priority: The priority among the requests of its client; see :class:`FairQueue`.
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
        """The client that sent the request; looked up when it is first needed."""
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
        """Stores the result of one image; returns whether this settled the request.

        Args:
            image: The image.
            row: The model's own output for it.
            top_classes: Its best classes, as many as the request asks for.
            batch_size: Images in its batch, itself included.
        """
        if self.settled:
            return False
        self._results[image.index] = row, top_classes
        self._batch_size = max(self._batch_size, batch_size)
        self.settled = len(self._results) == len(self.images)
        return self.settled

    def fail(self, error: Exception) -> bool:
        """Settles the request with an error; returns False if it was settled before."""
        if self.settled:
            return False
        self._error = error
        self._release()
        return True

    def cancel(self) -> bool:
        """Settles the request of a client that has gone; returns False if it was settled before."""
        if self.settled:
            return False
        self._release()
        return True

    def deliver(self) -> None:
        """Resolves the future; called on the event loop after the request was settled."""
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
        """Frees the images at once, so that those that still wait hold no memory."""
        self.settled = True
        for image in self.images:
            image.content = None
            image.prepared = None


def _size_bytes(content: ImageContent) -> int:
    return len(content.data) if isinstance(content, EncodedImage) else content.array.nbytes
