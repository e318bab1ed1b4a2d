"""Ray Serve, two replicas behind its HTTP proxy.

Its documented settings for throughput are on (``RAY_SERVE_THROUGHPUT_OPTIMIZED``), usage reports,
access logs and the dashboard are off. In a comparison on two cores, batching (``--max-batch``) gave
no more images a second than calls one by one.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
# By default Ray gives its workers a lower priority (nice) than the load generator has.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from classifier import Classifier, Options, parse_options
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

if TYPE_CHECKING:
    from starlette.requests import Request


class Vision:
    """A replica: one model on one core."""

    def __init__(self, options: Options) -> None:
        self._classifier = Classifier(options.models, options.version, threads=1)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Handles one HTTP request."""
        return {"classifications": await self.classify(await request.body())}

    async def classify(self, jpeg: bytes) -> list[dict[str, Any]]:
        """Classifies without batching."""
        return self._classifier.classify_jpegs([jpeg])[0]


class BatchingVision(Vision):
    """A replica that batches requests."""

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.002)
    async def classify(self, jpegs: list[bytes]) -> list[list[dict[str, Any]]]:
        """Classifies a batch."""
        return self._classifier.classify_jpegs(jpegs)


def main() -> None:
    """Serves until a signal stops it."""
    options = parse_options(workers=2, max_batch=1)
    ray.init(
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=128 << 20,
        log_to_driver=False,
        configure_logging=True,
        logging_level="warning",
    )
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=options.port))
    target = BatchingVision if options.max_batch > 1 else Vision
    deployment = serve.deployment(
        target,
        name="vision",
        num_replicas=options.workers,
        max_ongoing_requests=32,
        ray_actor_options={"num_cpus": 1},
        logging_config=LoggingConfig(enable_access_log=False),
    )
    if options.max_batch > 1:
        BatchingVision.classify.set_max_batch_size(options.max_batch)
    serve.run(deployment.bind(options), route_prefix="/classify")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
