"""What a worker is given to do: images to decode or a batch to run, the work, and its report.

The work is done without the scheduler's lock; what is reported of it needs the lock. Whatever an
image provokes or an engine raises becomes the answer of the requests concerned.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from tidegate.chassis.errors import Internal
from tidegate.serving.vision.classification import best_classes
from tidegate.serving.vision.errors import InvalidImageError, RejectedImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.vision.classification import Best
    from tidegate.serving.vision.lane import Lane
    from tidegate.serving.vision.tickets import Task, Ticket

    Array = npt.NDArray[np.generic]
    Result = tuple[npt.NDArray[np.float32], list[Best]]
    Prepared = Array | Exception | None

__all__ = ["Job", "Prepare", "Run", "prepare", "report_prepared", "report_run", "run_batch"]

_log = logging.getLogger(__name__)


class Prepare(NamedTuple):
    """A worker decodes some images."""

    lane: Lane
    tasks: list[Task]


class Run(NamedTuple):
    """A worker runs one batch."""

    lane: Lane
    batch: list[Task]
    arrays: list[Array]
    alone: bool


Job = Prepare | Run


def prepare(job: Prepare, clock: Callable[[], float]) -> list[Prepared]:
    """Decodes the images of a job.

    Args:
        job: the images.
        clock: monotonic seconds.

    Returns:
        For each image what the engine takes, or what is to be told to its client; ``None`` where
        nobody waits for it.
    """
    return [_prepare_image(job.lane, each, clock) for each in job.tasks]


def _prepare_image(lane: Lane, task: Task, clock: Callable[[], float]) -> Prepared:
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


def run_batch(job: Run) -> Result | Exception:
    """Runs a batch and reads its output, or says what is to be told to its clients."""
    try:
        output = job.lane.engine.run(job.batch[0].form, job.arrays, alone=job.alone)
        return output.rows, best_classes(output, [task.ticket.top_k for task in job.batch])
    except Exception:  # noqa: BLE001 - a worker outlives whatever an engine raises, and reports it
        _log.exception("running a batch failed", extra={"model": job.lane.name})
        return Internal(
            f"{job.lane.name} failed to run the batch; the server's log says why",
            reason="ENGINE_FAILED",
        )


def report_prepared(job: Prepare, results: list[Prepared], now_s: float) -> list[Ticket]:
    """Hands decoded images to their lane; gives the requests that this settled."""
    lane = job.lane
    settled = []
    for task, result in zip(job.tasks, results, strict=True):
        if isinstance(result, Exception):
            lane.decoded(task)
            settled += _fail(lane, [task], result, now_s)
        else:
            lane.prepared(task, result)
    return settled


def report_run(job: Run, result: Result | Exception, now_s: float) -> list[Ticket]:
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
