"""From a repository to a lane that takes requests: read, compiled, warmed up and measured."""

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

# Each batch size is run so often at warm-up; the quickest run counts.
_WARM_UP_ROUNDS = 6
# What a run costs a busy server beside the engine's own time: its claim, its report, and the turns
# of the interpreter that these wait for.
_RUN_COST_S = 0.0005
# Until images were decoded, this is assumed of one; any photograph of a usual size is near it.
_FIRST_PREPARE_S = 0.001


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model version that takes requests.

    Attributes:
        entry: what the repository says of it.
        geometry: how images are brought to its size.
        queue: where its requests wait and are run.
        served_model: as metrics and spans name it.
        loaded_at_s: wall-clock time, in seconds since 1970.
        fingerprint: its files when they were read; another value means that they have changed.
    """

    entry: Entry
    geometry: Geometry
    queue: ModelQueue
    served_model: ServedModel
    loaded_at_s: float
    fingerprint: tuple[int, ...]

    @property
    def engine(self) -> InferenceEngine:
        """What runs it."""
        return self.queue.engine


@dataclass(frozen=True, slots=True)
class ModelLoader:
    """Opens the image classifiers of a repository. Reads the disk and computes: call it in threads.

    Attributes:
        repository: where models are read from.
        load_engine: opens an entry's engine.
        precisions: what the engine can compute in.
        limits: how much each model holds.
        max_pixels: pixels that one image may have.
        verify: whether checksums are verified at load.
    """

    repository: Repository
    load_engine: Callable[[Entry], InferenceEngine]
    precisions: Collection[Precision]
    limits: QueueLimits
    max_pixels: int
    verify: bool = True

    def others(self, known: Collection[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
        """The classifiers that the repository has beside those that are known.

        Args:
            known: names and versions.

        Yields:
            Name, version, and what is wrong with the entry, if anything is.
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
        """The version of a model that the repository says is meant when none is named, if any."""
        try:
            return self.repository.default_version(name)
        except RepositoryError:
            return None

    def choose(self, wanted: Sequence[str]) -> list[tuple[str, str]]:
        """Says which versions are meant.

        Args:
            wanted: each ``NAME/VERSION``, or ``NAME`` for every version of it that the engine can
                run; empty means every image classifier that it can run.

        Returns:
            Names and versions, at least one.

        Raises:
            FailedPrecondition: the engine can run no version of a model.
            RepositoryError: a model is not there or unsound, or there is none.
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
            name: the model.
            version: the version.
            fingerprint: of what serves it now; None if nothing does.

        Returns:
            What serves it; None when its files are those of the stamp.

        Raises:
            TidegateError: it cannot be served.
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
                "this machine computes the model in another precision",
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
        """The versions of a model that are image classifiers of a precision the engine has.

        Raises:
            RepositoryError: there is no such model, or one of its versions is unsound.
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
                _log.info("left out", model=f"{name} {version}", precision=str(precision))
        return found


def _fingerprint(folder: Path) -> tuple[int, ...]:
    """Numbers that change with the files of a folder: their times and sizes."""
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
    """Warms an engine up, measures it at each batch size, and makes its lane.

    Args:
        model: the model's name.
        version: its version.
        engine: a loaded engine, not in use.
        geometry: how images are brought to its size.
        limits: how much the lane holds.

    Raises:
        EngineError: a run failed, or gave something other than images × classes.
    """
    run_s = _measure(engine, geometry)
    plan = BatchPlan.measured(run_s)
    # When the server is busy every slot is taken, and a run lasts longer for it.
    crowd = engine.traits.slots / engine.traits.parallel
    service_time = ServiceTimeEstimate(
        prepare_s=_FIRST_PREPARE_S, run_s=run_s[plan.target] / plan.target * crowd
    )
    prepare = partial(_prepare, geometry)
    # Only now, when nothing can fail any more: series would stay of a version that never served.
    metrics = ModelMetrics(model, version)
    return ModelQueue(f"{model} {version}", engine, prepare, plan, service_time, limits, metrics)


def _measure(engine: InferenceEngine, geometry: Geometry) -> Mapping[int, float]:
    """Seconds of a run at each batch size while as many run beside it as compute at once.

    Runs share caches and memory, and the larger ones suffer more by it: of one run alone on the
    machine it cannot be seen which size is best on a busy one. The quickest of a few rounds counts.
    """
    pixels = np.zeros((geometry.height, geometry.width, 3), dtype=np.uint8)
    tensor = np.zeros(engine.tensors.input_shape, dtype=np.float32)
    _try_out(engine, InputForm.TENSOR, [tensor])
    _try_out(engine, InputForm.PIXELS, [pixels], alone=True)
    sizes = engine.traits.batch_sizes
    for size in sizes:
        _try_out(engine, InputForm.PIXELS, [pixels] * size)
    # In rounds, so that a busy moment of the machine does not fall on one size alone.
    with ThreadPoolExecutor(engine.traits.parallel) as pool:
        rounds = [
            [_run_s(engine, [pixels] * size, pool) + _RUN_COST_S for size in sizes]
            for _ in range(_WARM_UP_ROUNDS)
        ]
    return {size: min(times) for size, times in zip(sizes, zip(*rounds, strict=True), strict=True)}


def _run_s(
    engine: InferenceEngine, images: Sequence[npt.NDArray[np.uint8]], pool: ThreadPoolExecutor
) -> float:
    """Seconds of a run among others; of processor time where the host computes and it is less.

    While other servers start beside this one, the long runs are interrupted and a short one now and
    then is not: by the clock alone small batches would look the best.
    """
    parallel = engine.traits.parallel
    start, cpu_start = time.perf_counter(), time.process_time()
    runs = [pool.submit(engine.run, InputForm.PIXELS, images) for _ in range(parallel)]
    for run in runs:
        run.result()
    elapsed_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return min(elapsed_s, cpu_s / parallel) if engine.traits.shares_host else elapsed_s


def _try_out(
    engine: InferenceEngine,
    form: InputForm,
    images: Sequence[npt.NDArray[np.generic]],
    *,
    alone: bool = False,
) -> None:
    shape = engine.run(form, images, alone=alone).rows.shape
    expected = (len(images), engine.tensors.classes)
    if shape != expected:
        raise EngineError(f"the model's output is {shape} where images × classes is {expected}")


def _prepare(geometry: Geometry, image: ImageContent) -> npt.NDArray[np.generic]:
    if isinstance(image, EncodedImage):
        return decode(image.data, geometry)
    if isinstance(image, PixelImage):
        return fit(image.array, geometry)
    return image.array
