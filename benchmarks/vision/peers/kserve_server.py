"""KServe's model server over gRPC (Open Inference Protocol, raw bytes).

Its Python server has no batcher of its own. ``predict`` passes each request to a pool of two
threads, so that the event loop stays free while decoding and inference, which release the GIL,
use both cores.
"""

from __future__ import annotations

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor

from classifier import Classifier, Options, parse_options
from kserve import InferInput, InferOutput, InferRequest, InferResponse, Model, ModelServer


class VisionModel(Model):
    """Classifies one image; returns the best classes as JSON."""

    def __init__(self, options: Options) -> None:
        super().__init__("efficientnet-lite0")
        self.enable_latency_logging = False
        self._classifier = Classifier(options.models, options.version, threads=options.workers)
        self._pool = ThreadPoolExecutor(options.workers)
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,  # noqa: ARG002 - KServe's signature
        response_headers: dict[str, str] | None = None,  # noqa: ARG002
    ) -> InferResponse:
        """Classifies the image of one request."""
        image: InferInput = payload.inputs[0]
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._pool, self._classify, image)
        output = InferOutput(name="classifications", shape=[1], datatype="BYTES", data=[answer])
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=[output])

    def _classify(self, image: InferInput) -> str:
        jpeg: bytes = image.as_numpy()[0]
        return json.dumps(self._classifier.classify_jpegs([jpeg])[0])


def main() -> None:
    """Serves until a signal stops it."""
    options = parse_options(workers=2, max_batch=1)
    logging.getLogger("kserve").setLevel(logging.WARNING)
    server = ModelServer(
        http_port=0,
        grpc_port=options.port,
        workers=1,
        enable_grpc=True,
        enable_latency_logging=False,
        access_log_format=None,
    )
    server.start([VisionModel(options)])


if __name__ == "__main__":
    main()
