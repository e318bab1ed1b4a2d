"""The model that every peer serves, with Tidegate's own decoding, batch plan and compilation.

The peers run in an environment of their own but import these modules from the source tree (the
runner sets ``PYTHONPATH``), so that two servers differ only in the serving. Two details favour the
peers. A peer may pass any number of images at once; they are split into the runs that were quickest
when measured at start, as Tidegate splits them, so that a peer's batch of 16 does not overflow the
CPU's caches. And threads are not pinned: OpenVINO would pin the first thread of each worker process
to the same core.
"""

from __future__ import annotations

import argparse
import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino as ov
from openvino.preprocess import PrePostProcessor

from tidegate.serving.repository import Precision, Repository
from tidegate.serving.vision.batching.planning import BatchPlan
from tidegate.serving.vision.images.decode import Geometry, decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from tidegate.serving.repository import Entry

__all__ = ["Classifier", "Options", "parse_options"]

MODEL = "efficientnet-lite0"
TOP = 5
_BATCH_SIZES = (1, 2, 4)
_MAX_PIXELS = 64_000_000
_TRIALS = 5


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a peer.

    Attributes:
        models: The model repository.
        version: The model's version, which names its precision.
        port: The port on loopback.
        workers: Processes (or threads) that classify.
        max_batch: Images that the peer may batch into one call.
    """

    models: Path
    version: str
    port: int
    workers: int
    max_batch: int


def parse_options(*, workers: int, max_batch: int) -> Options:
    """Reads the command line.

    Args:
        workers: The default number of workers, the best for this peer.
        max_batch: The default batch size, the best for this peer.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=workers)
    parser.add_argument("--max-batch", type=int, default=max_batch)
    given = parser.parse_args()
    return Options(given.models, given.version, given.port, given.workers, given.max_batch)


class Classifier:
    """The model, compiled.

    Args:
        models: The model repository.
        version: The model's version.
        threads: Parallel calls; each runs on one core.
    """

    def __init__(self, models: Path, version: str, threads: int) -> None:
        entry = Repository(models).find(MODEL, version)
        model = entry.image_classifier()
        self._geometry = Geometry.of(model, _MAX_PIXELS)
        self._compiled = {size: _Compiled(entry, size, threads) for size in _BATCH_SIZES}
        self._labels = entry.labels
        self._plan = self._measure()

    def decode(self, jpeg: bytes) -> npt.NDArray[np.uint8]:
        """Brings an encoded image to the model's size."""
        return decode(jpeg, self._geometry)

    def classify(
        self, images: Sequence[npt.NDArray[np.uint8]]
    ) -> list[list[dict[str, int | str | float]]]:
        """Returns the five best classes of each image, best first."""
        answers = []
        remaining = list(images)
        while remaining:
            size = self._plan.take(len(remaining))
            answers += self._run(remaining[:size])
            del remaining[:size]
        return answers

    def classify_jpegs(self, jpegs: Sequence[bytes]) -> list[list[dict[str, int | str | float]]]:
        """Decodes and classifies."""
        return self.classify([self.decode(jpeg) for jpeg in jpegs])

    def _run(
        self, images: Sequence[npt.NDArray[np.uint8]]
    ) -> list[list[dict[str, int | str | float]]]:
        size = next(size for size in _BATCH_SIZES if size >= len(images))
        output = self._compiled[size].run(images)
        return [self._answer(logits) for logits in output]

    def _answer(self, logits: npt.NDArray[np.float32]) -> list[dict[str, int | str | float]]:
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
        best = np.argpartition(scores, -TOP)[-TOP:]
        best = best[np.argsort(-scores[best])]
        return [
            {"class_id": number, "label": self._labels[number], "score": float(scores[number])}
            for number in best.tolist()
        ]

    def _measure(self) -> BatchPlan:
        blank = np.zeros((self._geometry.height, self._geometry.width, 3), np.uint8)
        run_s = {}
        for size in _BATCH_SIZES:
            trials = []
            for _ in range(_TRIALS):
                begin = time.perf_counter()
                self._compiled[size].run([blank] * size)
                trials.append(time.perf_counter() - begin)
            run_s[size] = min(trials)
        return BatchPlan.measured(run_s)


class _Compiled:
    """The model for one batch size, with normalisation and an infer request for each thread."""

    def __init__(self, entry: Entry, size: int, threads: int) -> None:
        model = entry.image_classifier()
        core = ov.Core()
        stages = PrePostProcessor(core.read_model(entry.model_path))
        port = stages.input()
        port.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        port.model().set_layout(ov.Layout(str(model.input.layout)))
        recipe = model.preprocessing
        steps = port.preprocess().convert_element_type(ov.Type.f32)
        steps.mean([value / recipe.scale for value in recipe.mean])
        steps.scale([value / recipe.scale for value in recipe.std])
        graph = stages.build()
        graph.reshape([size, model.input.height, model.input.width, 3])
        options = {
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": (
                ov.Type.bf16 if model.precision.compute is Precision.BF16 else ov.Type.f32
            ),
            "ENABLE_CPU_PINNING": False,
        }
        compiled = core.compile_model(graph, "CPU", options)
        self._requests: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.create_infer_request())

    def run(self, images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """The logits of each image."""
        request = self._requests.get()
        try:
            target = request.get_input_tensor().data
            for index, image in enumerate(images):
                target[index] = image
            request.infer()
            return np.array(request.get_output_tensor().data[: len(images)], dtype=np.float32)
        finally:
            self._requests.put(request)
