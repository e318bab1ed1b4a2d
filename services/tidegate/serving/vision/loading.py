"""From an entry of the repository to a lane that takes requests: warmed up and measured."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tidegate.serving.vision.decode import Geometry, decode, fit
from tidegate.serving.vision.engine import Engine, InputForm
from tidegate.serving.vision.errors import EngineError
from tidegate.serving.vision.lane import Bounds, Lane
from tidegate.serving.vision.planning import BatchPlan, Pace
from tidegate.serving.vision.tickets import Encoded, Image, Pixels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from tidegate.serving.repository import Entry, OutputKind
    from tidegate.serving.vision.metrics import LaneMetrics

__all__ = ["Serving", "build_lane"]

# Each batch size is run so often at warm-up; the quickest run counts.
_WARM_UP_ROUNDS = 6
# What a run costs a busy server beside the engine's own time: its claim, its report, and the turns
# of the interpreter that these wait for.
_RUN_COST_S = 0.0005
# Until images were decoded, this is assumed of one; any photograph of a usual size is near it.
_FIRST_PREPARE_S = 0.001


@dataclass(frozen=True, slots=True)
class Serving:
    """A model version that takes requests.

    Attributes:
        entry: what the repository says of it.
        geometry: how images are brought to its size.
        lane: where its requests wait and are run.
        loaded_at_s: wall-clock time, in seconds since 1970.
        stamp: its files when they were read; another value means that they have changed.
    """

    entry: Entry
    geometry: Geometry
    lane: Lane
    loaded_at_s: float
    stamp: tuple[int, ...]

    @property
    def engine(self) -> Engine:
        """What runs it."""
        return self.lane.engine


def build_lane(
    name: str,
    engine: Engine,
    geometry: Geometry,
    bounds: Bounds,
    metrics: LaneMetrics,
    output_kind: OutputKind,
) -> Lane:
    """Warms an engine up, measures it at each batch size, and makes its lane.

    Args:
        name: the model and version, for messages.
        engine: a loaded engine, not in use.
        geometry: how images are brought to its size.
        bounds: how much the lane holds.
        metrics: where its stages are recorded.
        output_kind: what the numbers of the engine's output are.

    Raises:
        EngineError: a run failed, or gave something other than images × classes.
    """
    run_s = _measure(engine, geometry)
    plan = BatchPlan.measured(run_s)
    # When the server is busy every slot is taken, and a run lasts longer for it.
    crowd = engine.traits.slots / engine.traits.parallel
    pace = Pace(prepare_s=_FIRST_PREPARE_S, run_s=run_s[plan.target] / plan.target * crowd)
    prepare = partial(_prepare, geometry)
    return Lane(name, engine, prepare, plan, pace, bounds, metrics, output_kind)


def _measure(engine: Engine, geometry: Geometry) -> Mapping[int, float]:
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
    engine: Engine, images: Sequence[npt.NDArray[np.uint8]], pool: ThreadPoolExecutor
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
    engine: Engine,
    form: InputForm,
    images: Sequence[npt.NDArray[np.generic]],
    *,
    alone: bool = False,
) -> None:
    shape = engine.run(form, images, alone=alone).shape
    expected = (len(images), engine.tensors.classes)
    if shape != expected:
        raise EngineError(f"the model's output is {shape} where images × classes is {expected}")


def _prepare(geometry: Geometry, image: Image) -> npt.NDArray[np.generic]:
    if isinstance(image, Encoded):
        return decode(image.data, geometry)
    if isinstance(image, Pixels):
        return fit(image.array, geometry)
    return image.array
