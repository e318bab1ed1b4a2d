"""``python -m tidegate.serving.vision``: the vision server."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tidegate.chassis.server import run
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.runtime.process import schedule_in_batches
from tidegate.serving.repository import Entry, Repository
from tidegate.serving.vision.api import (
    open_inference_service as open_inference,
)
from tidegate.serving.vision.api import (
    vision_service as service,
)
from tidegate.serving.vision.api.classify_requests import RequestLimits
from tidegate.serving.vision.api.inference import Inference
from tidegate.serving.vision.batching.model_queue import QueueLimits
from tidegate.serving.vision.batching.worker_pool import WorkerPool
from tidegate.serving.vision.engines.openvino_engine import PRECISIONS, OpenVinoEngine
from tidegate.serving.vision.loading import ModelLoader
from tidegate.serving.vision.models import ModelRegistry
from tidegate.serving.vision.settings import VisionSettings
from tidegate.vision.v1 import vision_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from tidegate.chassis.health import Health

__all__ = ["VisionApplication", "main"]

# While one worker waits for the interpreter lock, which the event loop holds at times, another uses
# the core. With one worker a core, a tenth of the machine was idle.
_WORKERS_PER_CORE = 2


class VisionApplication:
    """The services of the vision server, on one worker pool.

    Args:
        settings: The settings of the server.
    """

    service_names = (service.SERVICE_NAME, open_inference.SERVICE_NAME)

    def __init__(self, settings: VisionSettings) -> None:
        self._settings = settings
        self._pool = WorkerPool(_WORKERS_PER_CORE * settings.cores)
        loader = ModelLoader(
            Repository(settings.model_repository),
            self._load_engine,
            precisions=PRECISIONS,
            limits=QueueLimits(settings.queue_images, settings.queue_mib << 20),
            max_pixels=settings.max_pixels,
            verify=settings.verify_checksums,
        )
        self._models = ModelRegistry(loader, self._pool, default_model=settings.default_model)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds VisionService and GRPCInferenceService to the server."""
        settings = self._settings
        limits = RequestLimits(settings.max_images_per_request, settings.max_pixels)
        inference = Inference(
            self._pool,
            client_header=settings.client_header,
            default_deadline_s=settings.default_deadline_s,
        )
        vision_pb2_grpc.add_VisionServiceServicer_to_server(
            service.VisionServicer(
                self._models, inference, limits, stream_window=settings.stream_window
            ),
            server,
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            open_inference.OpenInferenceServicer(
                self._models,
                inference,
                limits,
                version=settings.service_version,
                model_control=settings.model_control,
                stream_window=settings.stream_window,
                list_image_input=settings.list_image_input,
            ),
            server,
        )

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        """Loads the models before the block, and unloads them after it."""
        with self._pool:
            await self._models.start(self._settings.load, health)
            try:
                yield
            finally:
                await self._models.close()

    def _load_engine(self, entry: Entry) -> OpenVinoEngine:
        return OpenVinoEngine(
            entry, cores=self._settings.cores, batch_sizes=self._settings.batch_sizes
        )


def main() -> int:
    """Serves until a signal stops it; returns the exit status."""
    return run(_application, VisionSettings.from_command_line())


def _application(settings: VisionSettings) -> VisionApplication:
    """Creates the application in a process of its own, so that it may set the scheduling policy."""
    if settings.batch_scheduling:
        # Logging and tracing are set up by now, and imported libraries have started their threads,
        # which get this policy too.
        schedule_in_batches()
    return VisionApplication(settings)


if __name__ == "__main__":
    sys.exit(main())
