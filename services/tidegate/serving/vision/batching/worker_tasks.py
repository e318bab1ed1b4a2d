"""The tasks of a worker: to decode images or to run a batch, and to report the results.

A worker does a task without the pool's lock, and reports it with the lock held. Whatever an image
provokes or an engine raises becomes the error of the requests concerned.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from tidegate.chassis.errors import Internal
from tidegate.image_files import InvalidImageError
from tidegate.serving.vision.batching.classification import find_top_classes
from tidegate.serving.vision.errors import RejectedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.batching.classification import TopClasses
    from tidegate.serving.vision.batching.inference_request import InferenceRequest, RequestImage
    from tidegate.serving.vision.batching.model_queue import ModelQueue

    Array = npt.NDArray[np.generic]
    BatchResult = tuple[npt.NDArray[np.float32], list[TopClasses]]
    PreparedImage = Array | Exception | None

__all__ = [
    "PrepareImages",
    "RunBatch",
    "WorkerTask",
    "prepare_images",
    "report_prepared",
    "report_run",
    "run_batch",
]

_log = logging.getLogger(__name__)


class PrepareImages(NamedTuple):
    """The task to decode some images."""

    queue: ModelQueue
    images: list[RequestImage]


class RunBatch(NamedTuple):
    """The task to run one batch."""

    queue: ModelQueue
    batch: list[RequestImage]
    arrays: list[Array]
    alone: bool


WorkerTask = PrepareImages | RunBatch


def prepare_images(task: PrepareImages, clock: Callable[[], float]) -> list[PreparedImage]:
    """Decodes the images of a task.

    Args:
        task: The images.
        clock: Monotonic seconds.

    Returns:
        For each image the engine's input, or the error for its client; ``None`` if the image is
        abandoned.
    """
    return [_prepare_image(task.queue, each, clock) for each in task.images]


def _prepare_image(
    queue: ModelQueue, image: RequestImage, clock: Callable[[], float]
) -> PreparedImage:
    """Decodes one image, as :func:`prepare_images` does for each."""
    content = image.content
    if content is None:
        return None
    image.timestamps.prepare_start_s = clock()
    try:
        return queue.prepare(content)
    except InvalidImageError as problem:
        return RejectedImageError(image.index, str(problem))
    except Exception:  # noqa: BLE001 - a worker survives any error of an image, and reports it
        _log.exception("decoding an image failed", extra={"model": queue.name})
        return Internal("decoding the image failed; the server's log has the reason")
    finally:
        image.timestamps.prepare_end_s = clock()


def run_batch(task: RunBatch) -> BatchResult | Exception:
    """Runs a batch and finds the best classes; returns the error for its clients if it fails."""
    try:
        output = task.queue.engine.run(task.batch[0].form, task.arrays, alone=task.alone)
        return output.rows, find_top_classes(output, [image.request.top_k for image in task.batch])
    except Exception:  # noqa: BLE001 - a worker survives any error of an engine, and reports it
        _log.exception("running a batch failed", extra={"model": task.queue.name})
        return Internal(
            f"{task.queue.name} failed to run the batch; the server's log has the reason",
            reason="ENGINE_FAILED",
        )


def report_prepared(
    task: PrepareImages, results: list[PreparedImage], now_s: float
) -> list[InferenceRequest]:
    """Gives decoded images back to their queue; returns the requests that this settled."""
    queue = task.queue
    settled = []
    for image, result in zip(task.images, results, strict=True):
        if isinstance(result, Exception):
            queue.decoded(image)
            settled += _fail(queue, [image], result, now_s)
        else:
            queue.prepared(image, result)
    return settled


def report_run(
    task: RunBatch, result: BatchResult | Exception, now_s: float
) -> list[InferenceRequest]:
    """Stores the results of a batch in their requests; returns those that this settled."""
    queue, batch = task.queue, task.batch
    queue.ran(batch, now_s)
    if isinstance(result, Exception):
        return _fail(queue, batch, result, now_s)
    settled = []
    for image, row, top in zip(batch, *result, strict=True):
        if image.request.finish_image(image, row, top, len(batch)):
            queue.settled(image.request, now_s, succeeded=True)
            settled.append(image.request)
    return settled


def _fail(
    queue: ModelQueue, images: Iterable[RequestImage], error: Exception, now_s: float
) -> list[InferenceRequest]:
    settled = []
    for image in images:
        if image.request.fail(error):
            queue.settled(image.request, now_s, succeeded=False)
            settled.append(image.request)
    return settled
