"""What the vision server tells Prometheus beyond what every server does."""

from collections import Counter as Tally
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["METHODS", "ModelMetrics"]

METHODS: Final = (
    "/tidegate.vision.v1.VisionService/Classify",
    "/tidegate.vision.v1.VisionService/ClassifyStream",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
)
"""Paths of the methods that a model answers, in whose requests it is counted."""

# Not `version`, which pods have as a label: Prometheus would make ours `exported_version`.
_LABELS = ("model", "model_version")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

_prepare = Histogram(
    "tidegate_vision_prepare_seconds",
    "Decoding, resizing and cropping one image that was run.",
    _LABELS,
    buckets=_SECONDS,
)
_queue = Histogram(
    "tidegate_vision_queue_seconds",
    "Waiting of one image, before it was decoded and before its batch was run.",
    _LABELS,
    buckets=_SECONDS,
)
_run = Histogram(
    "tidegate_vision_run_seconds",
    "The engine's run of one batch, and the finding of its best classes.",
    _LABELS,
    buckets=_SECONDS,
)
_batch = Histogram(
    "tidegate_vision_batch_images",
    "Images in one batch.",
    _LABELS,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
_images = Counter("tidegate_vision_images", "Images classified.", _LABELS)
_held = Gauge(
    "tidegate_vision_held_images", "Images of requests that are not yet answered.", _LABELS
)


_METRICS = (_prepare, _queue, _run, _batch, _images, _held)
# A version that is loaded anew has two lanes for a moment, and one set of series.
_model_queues: Tally[tuple[str, str]] = Tally()


class ModelMetrics:
    """The metrics of one model version, with the labels looked up once.

    Args:
        model: the model's name.
        version: its version.
    """

    __slots__ = ("_batch", "_images", "_labels", "_prepare", "_queue", "_run", "held")

    def __init__(self, model: str, version: str) -> None:
        self._labels = (model, version)
        _model_queues[self._labels] += 1
        self._prepare = _prepare.labels(*self._labels)
        self._queue = _queue.labels(*self._labels)
        self._run = _run.labels(*self._labels)
        self._batch = _batch.labels(*self._labels)
        self._images = _images.labels(*self._labels)
        self.held = _held.labels(*self._labels)

    def observe_image(self, queue_s: float, prepare_s: float) -> None:
        """Records the waiting and the decoding of an image that was run."""
        self._queue.observe(queue_s)
        self._prepare.observe(prepare_s)

    def observe_run(self, images: int, seconds: float) -> None:
        """Records the run of a batch."""
        self._run.observe(seconds)
        self._batch.observe(images)
        self._images.inc(images)

    def forget(self) -> None:
        """Takes the series of a model away that was unloaded, and not loaded anew meanwhile."""
        _model_queues[self._labels] -= 1
        if not _model_queues[self._labels]:
            for metric in _METRICS:
                metric.remove(*self._labels)
