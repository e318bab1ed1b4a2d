"""Runs images for the gRPC handlers of both protocols: from a handler to the workers and back."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tidegate.chassis.calls import ServicerContext, deadline_of, deferred_client_identity
from tidegate.runtime.tracing import current_context, is_recording, record_span
from tidegate.serving.vision.batching.fair_queue import DEFAULT_PRIORITY
from tidegate.serving.vision.batching.inference_request import InferenceRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidegate.serving.vision.batching.inference_request import ImageContent, InferenceResult
    from tidegate.serving.vision.batching.worker_pool import WorkerPool
    from tidegate.serving.vision.loading import LoadedModel

__all__ = ["Inference"]


class Inference:
    """Runs images for gRPC handlers.

    Args:
        pool: The workers.
        client_header: The request metadata that identifies a client.
        default_deadline_s: The deadline of requests that have none.
    """

    def __init__(self, pool: WorkerPool, *, client_header: str, default_deadline_s: float) -> None:
        self._pool = pool
        self._client_header = client_header
        self._default_deadline_s = default_deadline_s

    async def run(
        self,
        loaded: LoadedModel,
        images: Sequence[ImageContent],
        top_k: int,
        context: ServicerContext,
        *,
        timeout_s: float | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> InferenceResult:
        """Runs the images of a request. If the caller is cancelled, waiting images are abandoned.

        Args:
            loaded: The model version.
            images: The images, at least one.
            top_k: Classes to return for each image, at least one.
            context: The context of the call.
            timeout_s: How long the request may wait for its run, if less than the call may last.
            priority: The priority among the requests of its client.

        Raises:
            ServiceError: The request was not accepted, expired, or its run failed.
            RejectedImageError: One of the images cannot be used.
        """
        now_s = time.monotonic()
        deadline_s = deadline_of(context) or now_s + self._default_deadline_s
        if timeout_s is not None:
            deadline_s = min(deadline_s, now_s + timeout_s)
        request = InferenceRequest(
            images,
            top_k=top_k,
            client=deferred_client_identity(context, self._client_header),
            deadline_s=deadline_s,
            accepted_s=now_s,
            loop=asyncio.get_running_loop(),
            priority=priority,
        )
        try:
            self._pool.submit(loaded.queue, request)
            result = await request.future
        except asyncio.CancelledError:
            self._pool.cancel(loaded.queue, request)
            raise
        finally:
            # A request and its images refer to each other; its future refers to the error, and the
            # error to this frame. Without this cut, the images of a refused request would stay in
            # memory until the garbage collector runs.
            request.images = []
            del request
        if is_recording():
            _record_stages(result, loaded)
        return result


def _record_stages(result: InferenceResult, loaded: LoadedModel) -> None:
    """Records the stages of the request's first image as spans."""
    timestamps = result.timestamps[0]
    to_wall_ns = time.time_ns() - time.monotonic_ns()
    parent = current_context()
    attributes: dict[str, str | int] = {
        "tidegate.model": loaded.entry.name,
        "tidegate.model.version": loaded.entry.version,
        "tidegate.images": len(result.timestamps),
        "tidegate.batch_size": result.batch_size,
    }
    for name, start_s, end_s in (
        ("queue", timestamps.accepted_s, timestamps.prepare_start_s),
        ("decode", timestamps.prepare_start_s, timestamps.prepare_end_s),
        ("batch", timestamps.prepare_end_s, timestamps.run_start_s),
        ("inference", timestamps.run_start_s, timestamps.run_end_s),
    ):
        record_span(
            name,
            int(start_s * 1e9) + to_wall_ns,
            int(end_s * 1e9) + to_wall_ns,
            parent,
            attributes,
        )
