"""Prometheus metrics of the vision server, beyond those of every server."""

import math
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
"""Paths of the methods that run a model; their calls count as requests to the model."""

# Not `version`: pods have that label, so Prometheus would rename ours to `exported_version`.
_LABELS = ("model", "model_version")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

_prepare = Histogram(
    "tidegate_vision_prepare_seconds",
    "Seconds of decoding, resizing and cropping one image that was run.",
    _LABELS,
    buckets=_SECONDS,
)
_queue = Histogram(
    "tidegate_vision_queue_seconds",
    "Seconds that one image waited, before it was decoded and before its batch ran.",
    _LABELS,
    buckets=_SECONDS,
)
_run = Histogram(
    "tidegate_vision_run_seconds",
    "Seconds of the engine's run of one batch, best classes included.",
    _LABELS,
    buckets=_SECONDS,
)
_batch = Histogram(
    "tidegate_vision_batch_images",
    "Images in one batch.",
    _LABELS,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
_confidence = Histogram(
    "tidegate_vision_confidence",
    "Score of the best class of one image, from 0 to 1.",
    _LABELS,
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1),
)
_top_classes = Counter(
    "tidegate_vision_top_classes",
    "Images, by the tenth of the model's classes that their best class is in, such as 100-199.",
    (*_LABELS, "classes"),
)
_images = Counter("tidegate_vision_images", "Images classified.", _LABELS)
_held = Gauge("tidegate_vision_held_images", "Images of unfinished requests.", _LABELS)


_METRICS = (_prepare, _queue, _run, _batch, _confidence, _images, _held)
# A series for each class would be a thousand.
_GROUPS: Final = 10
# While a version is reloaded, it has two model queues and one set of series.
_model_queues: Tally[tuple[str, str]] = Tally()


class ModelMetrics:
    """The metrics of one model version, with the labels looked up once.

    Args:
        model: The model's name.
        version: Its version.
        classes: How many classes it has.
    """

    __slots__ = (
        *("_batch", "_confidence", "_groups", "_images", "_labels", "_of_group", "_prepare"),
        *("_queue", "_run", "held"),
    )

    def __init__(self, model: str, version: str, classes: int) -> None:
        self._labels = (model, version)
        _model_queues[self._labels] += 1
        self._prepare = _prepare.labels(*self._labels)
        self._queue = _queue.labels(*self._labels)
        self._run = _run.labels(*self._labels)
        self._batch = _batch.labels(*self._labels)
        self._confidence = _confidence.labels(*self._labels)
        self._of_group = math.ceil(classes / _GROUPS)
        self._groups = [
            _top_classes.labels(
                *self._labels, f"{first}-{min(first + self._of_group, classes) - 1}"
            )
            for first in range(0, classes, self._of_group)
        ]
        self._images = _images.labels(*self._labels)
        self.held = _held.labels(*self._labels)

    def observe_image(self, queue_s: float, prepare_s: float) -> None:
        """Records how long an image that was run waited, and how long its decoding took."""
        self._queue.observe(queue_s)
        self._prepare.observe(prepare_s)

    def observe_run(self, images: int, seconds: float) -> None:
        """Records the run of a batch."""
        self._run.observe(seconds)
        self._batch.observe(images)
        self._images.inc(images)

    def observe_answer(self, best_class: int, score: float) -> None:
        """Records the best class of an image and its score."""
        self._confidence.observe(score)
        group = min(best_class // self._of_group, len(self._groups) - 1)
        self._groups[group].inc()

    def remove_series(self) -> None:
        """Removes the series of an unloaded model, unless it has been loaded again meanwhile."""
        _model_queues[self._labels] -= 1
        if not _model_queues[self._labels]:
            for metric in _METRICS:
                metric.remove(*self._labels)
            labels = dict(zip(_LABELS, self._labels, strict=True))
            _top_classes.remove_by_labels(labels)
