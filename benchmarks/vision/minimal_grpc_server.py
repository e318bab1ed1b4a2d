"""A minimal gRPC server on grpc.aio: shows what gRPC itself costs.

It answers `Classify` alone, for one JPEG a request. One thread a core decodes the JPEG, runs it as
the baseline loop does, and finds its best classes. There is no batching, queue limit, deadline,
metric, trace, health or error. With one request at a time, the difference to the baseline loop is
the cost of gRPC, the sockets, the response, and of caches that the model's weights have evicted
meanwhile.

    python benchmarks/vision/minimal_grpc_server.py --models models --version 1-int8 --port 8500
"""

from __future__ import annotations

import argparse
import asyncio
import os
import queue
import threading
from pathlib import Path

# Before grpc is imported, for what it sets then, as in the server.
import tidegate.chassis  # noqa: F401

# isort: split
import grpc
import uvloop
from baseline import MODEL

from tidegate.serving.repository import Repository
from tidegate.serving.vision.batching.classification import find_top_classes
from tidegate.serving.vision.engines.engine import InputForm
from tidegate.serving.vision.engines.openvino_engine import OpenVinoEngine
from tidegate.serving.vision.images.decode import Geometry, decode
from tidegate.vision.v1 import vision_pb2

_PendingImage = tuple[bytes, asyncio.Future[vision_pb2.ClassifyResponse], asyncio.AbstractEventLoop]

_MAX_PIXELS = 64_000_000
_PATH = "/tidegate.vision.v1.VisionService/Classify"


class MinimalServer(grpc.GenericRpcHandler):
    """Implements Classify.

    Args:
        models: The model repository.
        version: The model's version.
        cores: Threads.
    """

    def __init__(self, models: Path, version: str, cores: int) -> None:
        entry = Repository(models).find(MODEL, version)
        classifier = entry.image_classifier()
        self._labels = entry.labels
        self._geometry = Geometry.of(classifier, _MAX_PIXELS)
        self._engine = OpenVinoEngine(entry, cores=cores, batch_sizes=(1,))
        self._in_flight = 0
        self._queues: list[queue.SimpleQueue[_PendingImage]] = [
            queue.SimpleQueue() for _ in range(cores)
        ]
        self._turn = 0
        self._handler = grpc.unary_unary_rpc_method_handler(
            self._classify,
            vision_pb2.ClassifyRequest.FromString,
            vision_pb2.ClassifyResponse.SerializeToString,
        )
        for images in self._queues:
            threading.Thread(target=self._work, args=(images,), daemon=True).start()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Returns the handler of Classify; every other method is unknown."""
        return self._handler if details.method == _PATH else None

    async def _classify(
        self, request: vision_pb2.ClassifyRequest, context: object
    ) -> vision_pb2.ClassifyResponse:
        del context
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        # A single request always runs on the same thread, whose caches are warm.
        self._turn = (self._turn + 1) % len(self._queues) if self._in_flight else 0
        self._in_flight += 1
        self._queues[self._turn].put((request.images[0].encoded, answer, loop))
        try:
            return await answer
        finally:
            self._in_flight -= 1

    def _work(self, images: queue.SimpleQueue[_PendingImage]) -> None:
        while True:
            jpeg, answer, loop = images.get()
            image = decode(jpeg, self._geometry)
            output = self._engine.run(InputForm.PIXELS, [image], alone=self._in_flight == 1)
            best = find_top_classes(output, [5])[0]
            response = vision_pb2.ClassifyResponse()
            add = response.results.add().classifications.add
            for number, score in zip(best.classes, best.scores, strict=True):
                add(class_id=number, label=self._labels[number], score=score)
            loop.call_soon_threadsafe(answer.set_result, response)


async def serve(minimal_server: MinimalServer, port: int) -> None:
    """Serves until the process ends."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((minimal_server,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    """Serves one version of the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    # As the server's threads are scheduled.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    uvloop.run(
        serve(MinimalServer(given.models, given.version, len(os.sched_getaffinity(0))), given.port)
    )


if __name__ == "__main__":
    main()
