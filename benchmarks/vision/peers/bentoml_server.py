"""BentoML, two worker processes that classify one request at a time.

JPEG bytes are the body of the request. The ``bentoml serve`` command loads this module, and the
options reach it through the environment, as BentoML requires. Adaptive batching is available
(``--max-batch``), but over HTTP a batchable method takes a form of files, which BentoML
writes to disk and the service reads back.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from classifier import Classifier, parse_options

_WORKERS = int(os.environ.get("BENCH_WORKERS", "2"))
_MAX_BATCH = int(os.environ.get("BENCH_MAX_BATCH", "1"))

_SETTINGS: dict[str, Any] = {
    "workers": _WORKERS,
    "threads": 1,
    "logging": {"access": {"enabled": False}},
    "metrics": {"enabled": False},
}

Jpeg = Annotated[bytes, bentoml.validators.ContentType("image/jpeg")]


class _Vision:
    """The model, once in each worker."""

    def __init__(self) -> None:
        models, version = Path(os.environ["BENCH_MODELS"]), os.environ["BENCH_VERSION"]
        self._classifier = Classifier(models, version, threads=1)


@bentoml.service(**_SETTINGS)
class Single(_Vision):
    """Classifies each request alone."""

    @bentoml.api
    def classify(self, jpeg: Jpeg, /) -> list[dict[str, Any]]:
        """The best classes of an image."""
        return self._classifier.classify_jpegs([jpeg])[0]


@bentoml.service(**_SETTINGS)
class Batching(_Vision):
    """Classifies batches of BentoML's adaptive batching."""

    @bentoml.api(batchable=True, max_batch_size=max(2, _MAX_BATCH), max_latency_ms=1000)
    def classify(self, jpegs: list[Path]) -> list[list[dict[str, Any]]]:
        """The best classes of each image."""
        return self._classifier.classify_jpegs([path.read_bytes() for path in jpegs])


def main() -> None:
    """Replaces this process by ``bentoml serve``."""
    options = parse_options(workers=2, max_batch=1)
    environment = os.environ | {
        "BENCH_MODELS": str(options.models.resolve()),
        "BENCH_VERSION": options.version,
        "BENCH_WORKERS": str(options.workers),
        "BENCH_MAX_BATCH": str(options.max_batch),
        "BENTOML_DO_NOT_TRACK": "1",
    }
    service = "Batching" if options.max_batch > 1 else "Single"
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "bentoml", "serve", f"{here.stem}:{service}"]
    command += ["--host", "127.0.0.1", "--port", str(options.port)]
    command += ["--working-dir", str(here.parent)]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
