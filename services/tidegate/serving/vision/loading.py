"""Loads a model version from the repository: reads, compiles, warms up and measures it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import structlog

from tidegate.chassis.errors import FailedPrecondition
from tidegate.chassis.served_models import ServedModel
from tidegate.serving.repository import Entry, EntryNotFoundError, ModelKind, RepositoryError
from tidegate.serving.vision.batching.inference_request import (
    EncodedImage,
    ImageContent,
    PixelImage,
)
from tidegate.serving.vision.batching.model_queue import ModelQueue, QueueLimits
from tidegate.serving.vision.batching.planning import BatchPlan, ServiceTimeEstimate
from tidegate.serving.vision.engines.engine import InferenceEngine, InputForm
from tidegate.serving.vision.errors import EngineError
from tidegate.serving.vision.images.decode import Geometry, decode, fit
from tidegate.serving.vision.metrics import METHODS, ModelMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from tidegate.serving.repository import Precision, Repository

__all__ = ["LoadedModel", "ModelLoader"]

_log = structlog.stdlib.get_logger(__name__)

# How often each batch size runs at warm-up; the quickest run counts.
_WARM_UP_ROUNDS = 6
# The cost of a run on a busy server beyond the engine's own time: to claim and report it, and to
# wait for the interpreter lock for both.
_RUN_COST_S = 0.0005
# The initial estimate of the decoding time; a photograph of usual size is near it.
_FIRST_PREPARE_S = 0.001


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that accepts requests.

    Attributes:
        entry: The repository entry.
        geometry: How images are brought to its size.
        queue: The model queue, with the engine.
        served_model: The model as metrics and spans name it.
        loaded_at_s: Wall-clock time, in seconds since 1970.
        fingerprint: The state of its files when they were read; it differs once they change.
    """

    entry: Entry
    geometry: Geometry
    queue: ModelQueue
    served_model: ServedModel
    loaded_at_s: float
    fingerprint: tuple[int, ...]

    @property
    def engine(self) -> InferenceEngine:
        """The engine that runs it."""
        return self.queue.engine


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Loads image classifiers from a repository. It reads the disk and computes: use a thread.

    Attributes:
        repository: The model repository.
        load_engine: Loads the engine of an entry.
        precisions: The precisions that the engine can compute in.
        limits: How much each model queue holds.
        max_pixels: Pixels that one image may have.
        verify: Whether to verify checksums at load.
    """

    repository: Repository
    load_engine: Callable[[Entry], InferenceEngine]
    precisions: Collection[Precision]
    limits: QueueLimits
    max_pixels: int
    verify: bool = True

    def not_loaded(self, known: Collection[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
        """Lists the classifiers of the repository that are not among the known ones.

        Args:
            known: The known names and versions.

        Yields:
            Name, version, and what is wrong with the entry; empty if it is sound.
        """
        for place in self.repository.locations():
            if (place.name, place.version) in known:
                continue
            try:
                kind, reason = Entry.open(place.path, verify=False).kind, ""
            except RepositoryError as error:
                kind, reason = ModelKind.IMAGE_CLASSIFIER, str(error)
            if kind is ModelKind.IMAGE_CLASSIFIER:
                yield place.name, place.version, reason

    def default_version(self, name: str) -> str | None:
        """Returns the default version of a model in the repository, if there is one."""
        try:
            return self.repository.default_version(name)
        except RepositoryError:
            return None

    def choose(self, wanted: Sequence[str]) -> list[tuple[str, str]]:
        """Resolves names of models to versions.

        Args:
            wanted: Each is ``NAME/VERSION``, or ``NAME`` for every version of it that the engine
                can run; empty means every image classifier that the engine can run.

        Returns:
            Names and versions, at least one.

        Raises:
            FailedPrecondition: The engine can run no version of a model.
            RepositoryError: A model is missing or unsound, or there is none.
        """
        chosen: list[tuple[str, str]] = []
        for each in wanted or self.repository.names():
            name, _, version = each.partition("/")
            versions = [version] if version else self._runnable(name)
            if wanted and not versions:
                raise FailedPrecondition(
                    f"model {name!r} has no version that this engine can run; build one with a "
                    f"precision of {', '.join(sorted(self.precisions))}"
                )
            chosen.extend((name, version) for version in versions)
        if not chosen:
            raise EntryNotFoundError(
                f"{self.repository.root} holds no image classifier that this engine can run; "
                "build one, as in `tidegate model build efficientnet-lite0`"
            )
        return chosen

    def open(
        self, name: str, version: str, fingerprint: tuple[int, ...] | None
    ) -> LoadedModel | None:
        """Reads, compiles, warms up and measures a version.

        Args:
            name: The model.
            version: The version.
            fingerprint: The fingerprint of the loaded version; None if it is not loaded.

        Returns:
            The loaded model; None if its files still have this fingerprint.

        Raises:
            TidegateError: The version cannot be loaded.
        """
        location = self.repository.locate(name, version)
        found = _fingerprint(location.path)
        if found == fingerprint:
            return None
        started = time.monotonic()
        entry = Entry.open(location.path, verify=self.verify)
        if entry.kind is not ModelKind.IMAGE_CLASSIFIER:
            raise FailedPrecondition(f"{name} {version} is a {entry.kind}, not an image classifier")
        geometry = Geometry.of(entry.image_classifier(), self.max_pixels)
        engine = self.load_engine(entry)
        if entry.labels and len(entry.labels) != engine.tensors.classes:
            raise EngineError(
                f"{location.path} has {len(entry.labels)} labels, but its network has "
                f"{engine.tensors.classes} classes; correct the labels"
            )
        queue = _model_queue(name, version, engine, geometry, self.limits)
        wanted, computed = entry.metadata.precision.compute, engine.traits.precision
        if computed is not wanted:
            _log.warning(
                "the CPU computes the model in another precision",
                model=queue.name,
                wanted=str(wanted),
                computed=str(computed),
            )
        _log.info(
            "model ready",
            model=queue.name,
            engine=engine.traits.name,
            precision=str(computed),
            batch=queue.plan.target,
            image_ms=round(queue.service_time.run_s * 1000, 3),
            seconds=round(time.monotonic() - started, 1),
        )
        served_model = ServedModel(
            name, version, precision=str(computed), engine=engine.traits.name, methods=METHODS
        )
        return LoadedModel(entry, geometry, queue, served_model, time.time(), found)

    def _runnable(self, name: str) -> list[str]:
        """Lists the versions of a model that are image classifiers of a precision the engine has.

        Raises:
            RepositoryError: There is no such model, or one of its versions is unsound.
        """
        found = []
        for version in self.repository.versions(name) or [self.repository.default_version(name)]:
            entry = self.repository.find(name, version, verify=False)
            precision = entry.metadata.precision.compute
            if entry.kind is not ModelKind.IMAGE_CLASSIFIER:
                continue
            if precision in self.precisions:
                found.append(version)
            else:
                _log.info(
                    "model skipped: the engine does not have its precision",
                    model=f"{name} {version}",
                    precision=str(precision),
                )
        return found


def _fingerprint(folder: Path) -> tuple[int, ...]:
    """Returns the modification times and sizes of a folder's files."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [path.stat() for path in found]
    return tuple(number for each in stats for number in (each.st_mtime_ns, each.st_size))


def _model_queue(
    model: str,
    version: str,
    engine: InferenceEngine,
    geometry: Geometry,
    limits: QueueLimits,
) -> ModelQueue:
    """Warms an engine up, measures it at each batch size, and creates its model queue.

    Args:
        model: The model's name.
        version: Its version.
        engine: A loaded engine, not in use.
        geometry: How images are brought to its size.
        limits: How much the queue holds.

    Raises:
        EngineError: A run failed, or its output is not images × classes.
    """
    run_s = _measure(engine, geometry)
    plan = BatchPlan.measured(run_s)
    # On a busy server every slot is taken, which makes each run longer.
    slowdown = engine.traits.slots / engine.traits.parallel
    service_time = ServiceTimeEstimate(
        prepare_s=_FIRST_PREPARE_S, run_s=run_s[plan.target] / plan.target * slowdown
    )
    prepare = partial(_prepare, geometry)
    # Created last, when nothing can fail any more: the series of a version that never served would
    # stay.
    metrics = ModelMetrics(model, version, engine.tensors.classes)
    return ModelQueue(f"{model} {version}", engine, prepare, plan, service_time, limits, metrics)


def _measure(engine: InferenceEngine, geometry: Geometry) -> Mapping[int, float]:
    """Measures the seconds of a run at each batch size, with parallel runs as on a busy server.

    Parallel runs share caches and memory, which slows larger batches more: a run alone on the
    machine does not show which size is best on a busy one. The quickest of a few rounds counts.
    """
    pixels = np.zeros((geometry.height, geometry.width, 3), dtype=np.uint8)
    tensor = np.zeros(engine.tensors.input_shape, dtype=np.float32)
    _check_output(engine, InputForm.TENSOR, [tensor])
    _check_output(engine, InputForm.PIXELS, [pixels], alone=True)
    sizes = engine.traits.batch_sizes
    for size in sizes:
        _check_output(engine, InputForm.PIXELS, [pixels] * size)
    # In rounds, so that a busy moment of the machine does not affect one size alone.
    with ThreadPoolExecutor(engine.traits.parallel) as pool:
        rounds = [
            [_run_s(engine, [pixels] * size, pool) + _RUN_COST_S for size in sizes]
            for _ in range(_WARM_UP_ROUNDS)
        ]
    return {size: min(times) for size, times in zip(sizes, zip(*rounds, strict=True), strict=True)}


def _run_s(
    engine: InferenceEngine, images: Sequence[npt.NDArray[np.uint8]], pool: ThreadPoolExecutor
) -> float:
    """Measures the seconds of parallel runs; CPU time counts if the host computes and it is less.

    While other servers start on the machine, they interrupt long runs more often than short ones.
    By wall-clock time alone, small batches would look best.
    """
    parallel = engine.traits.parallel
    start, cpu_start = time.perf_counter(), time.process_time()
    runs = [pool.submit(engine.run, InputForm.PIXELS, images) for _ in range(parallel)]
    for run in runs:
        run.result()
    elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return min(elapsed_s, cpu_s / parallel) if engine.traits.shares_host else elapsed_s


def _check_output(
    engine: InferenceEngine,
    form: InputForm,
    images: Sequence[npt.NDArray[np.generic]],
    *,
    alone: bool = False,
) -> None:
    shape = engine.run(form, images, alone=alone).rows.shape
    expected = (len(images), engine.tensors.classes)
    if shape != expected:
        raise EngineError(
            f"the model's output has the shape {shape}; images × classes is {expected}"
        )


def _prepare(geometry: Geometry, image: ImageContent) -> npt.NDArray[np.generic]:
    if isinstance(image, EncodedImage):
        return decode(image.data, geometry)
    if isinstance(image, PixelImage):
        return fit(image.array, geometry)
    return image.array
