"""The baseline: OpenVINO in a loop, the throughput of this machine without any serving.

Two threads, as the server has on two cores. Each decodes a batch of JPEGs and runs it, repeatedly,
with the server's own decoding and engine. There is no queue, no protocol and no labels between
them. The server's throughput is compared with that of this loop. A sweep finds the best batch size
and the best arrangement of the engine:

- ``streams``: each thread runs batches on one core (the server's engine as it is);
- ``whole``: one run at a time over all cores, while the other thread decodes.

``python benchmarks/vision/baseline.py --help`` shows how to run it alone; it prints one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import openvino as ov
from openvino.preprocess import PrePostProcessor

from tidegate.serving.repository import Precision, Repository
from tidegate.serving.vision.engines.engine import InputForm
from tidegate.serving.vision.engines.openvino_engine import OpenVinoEngine
from tidegate.serving.vision.images.decode import Geometry, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from tidegate.serving.repository import Entry

    Pixels = npt.NDArray[np.uint8]

MODEL = "efficientnet-lite0"
BATCHES = (1, 2, 4, 8, 16)
ARRANGEMENTS = ("streams", "whole")
_MAX_PIXELS = 64_000_000
_SWEEP_ROUNDS = 3
_WARM_UP_S = 0.3


@dataclass(frozen=True, slots=True)
class Setting:
    """How the loop uses the engine.

    Attributes:
        arrangement: ``streams`` or ``whole``.
        batch: Images of one run.
    """

    arrangement: str
    batch: int


class Runner(Protocol):
    """Runs batches; several threads may call it at once."""

    def run(self, images: Sequence[Pixels]) -> object:
        """Runs one batch and blocks until it is done."""
        ...


class StreamRunner:
    """The server's engine: each call runs on one core.

    Args:
        entry: The model.
        batch: Images of one run.
        cores: Calls that run at once.
    """

    def __init__(self, entry: Entry, batch: int, cores: int) -> None:
        self._engine = OpenVinoEngine(entry, cores=cores, batch_sizes=(batch,))

    def run(self, images: Sequence[Pixels]) -> object:
        """Runs one batch on one core."""
        return self._engine.run(InputForm.PIXELS, images)

    def run_alone(self, image: Pixels) -> object:
        """Runs one image on all cores, as an otherwise idle server does."""
        return self._engine.run(InputForm.PIXELS, [image], alone=True)


class WholeMachineRunner:
    """One run at a time, on all cores.

    Args:
        entry: The model.
        batch: Images of one run.
        cores: Threads of the run.
    """

    def __init__(self, entry: Entry, batch: int, cores: int) -> None:
        model = entry.image_classifier()
        core = ov.Core()
        graph = core.read_model(entry.model_path)
        stages = PrePostProcessor(graph)
        port = stages.input()
        port.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        port.model().set_layout(ov.Layout(str(model.input.layout)))
        steps = port.preprocess().convert_element_type(ov.Type.f32)
        preprocessing = model.preprocessing
        steps.mean([value / preprocessing.scale for value in preprocessing.mean])
        steps.scale([value / preprocessing.scale for value in preprocessing.std])
        graph = stages.build()
        graph.reshape([batch, model.input.height, model.input.width, 3])
        hint = ov.Type.bf16 if model.precision.compute is Precision.BF16 else ov.Type.f32
        compiled = core.compile_model(
            graph,
            "CPU",
            {
                "NUM_STREAMS": 1,
                "INFERENCE_NUM_THREADS": cores,
                "INFERENCE_PRECISION_HINT": hint,
            },
        )
        self._requests: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
        self._requests.put(compiled.create_infer_request())

    def run(self, images: Sequence[Pixels]) -> object:
        """Waits for the previous run, then runs one batch."""
        request = self._requests.get()
        try:
            target = request.get_input_tensor().data
            for index, image in enumerate(images):
                target[index] = image
            request.infer()
            return request.get_output_tensor().data.copy()
        finally:
            self._requests.put(request)


class BaselineLoop:
    """The baseline loop, over one photograph.

    Args:
        entry: The model.
        jpeg: The photograph.
        cores: Threads.
    """

    def __init__(self, entry: Entry, jpeg: bytes, cores: int) -> None:
        self._entry, self._jpeg, self._cores = entry, jpeg, cores
        self._geometry = Geometry.of(entry.image_classifier(), _MAX_PIXELS)

    @cached_property
    def _single(self) -> StreamRunner:
        return StreamRunner(self._entry, 1, self._cores)

    def runner(self, setting: Setting) -> Runner:
        """Compiles the model for a setting."""
        kind = StreamRunner if setting.arrangement == "streams" else WholeMachineRunner
        return kind(self._entry, setting.batch, self._cores)

    def images_per_s(self, runner: Runner, batch: int, seconds: float) -> float:
        """Measures images a second over all threads.

        Args:
            runner: The compiled model.
            batch: Images of one run.
            seconds: How long to measure.
        """

        def run_batch() -> int:
            runner.run([decode(self._jpeg, self._geometry) for _ in range(batch)])
            return batch

        _in_threads(run_batch, self._cores, _WARM_UP_S)
        return _in_threads(run_batch, self._cores, seconds)

    def sweep(self, seconds: float) -> dict[Setting, float]:
        """Measures images a second of every setting: the best of a few interleaved rounds.

        Args:
            seconds: How long to measure each setting in each round.
        """
        settings = [Setting(a, b) for a in ARRANGEMENTS for b in BATCHES]
        runners = {setting: self.runner(setting) for setting in settings}
        rates = dict.fromkeys(settings, 0.0)
        for _ in range(_SWEEP_ROUNDS):
            for setting, runner in runners.items():
                rate = self.images_per_s(runner, setting.batch, seconds)
                rates[setting] = max(rates[setting], rate)
        return rates

    def latencies_ms(self, seconds: float) -> list[float]:
        """Measures milliseconds of one image at a time: decoded, then run on all cores.

        Args:
            seconds: How long to measure.
        """
        runner = self._single
        taken: list[float] = []
        begin = time.perf_counter()
        while (start := time.perf_counter()) < begin + _WARM_UP_S + seconds:
            runner.run_alone(decode(self._jpeg, self._geometry))
            if start >= begin + _WARM_UP_S:
                taken.append((time.perf_counter() - start) * 1e3)
        return taken


def _in_threads(run_batch: Callable[[], int], threads: int, seconds: float) -> float:
    """Measures images a second of all threads, each of which repeats ``run_batch``."""
    rates = [0.0] * threads
    ready = threading.Barrier(threads)

    def work(index: int) -> None:
        ready.wait()
        images, begin = 0, time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            images += run_batch()
        rates[index] = images / (now - begin)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


def main() -> None:
    """Measures as the command line says and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--version", required=True, help="of the model, such as 1-int8")
    parser.add_argument("--photo", type=Path, required=True, help="a JPEG")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sweep", action="store_true", help="compare all settings instead")
    parser.add_argument(
        "--answer",
        action="store_true",
        help="print 'ready', then images/s for each line 'loaded' on standard input, and the p50 "
        "of one image at a time, in ms, for each line 'alone'",
    )
    parser.add_argument("--arrangement", choices=ARRANGEMENTS, default="streams")
    parser.add_argument("--batch", type=int, default=2)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    baseline = BaselineLoop(
        Repository(given.models).find(MODEL, given.version), given.photo.read_bytes(), cores
    )
    if given.sweep:
        rates = baseline.sweep(given.seconds)
        print(json.dumps([asdict(setting) | {"images_per_s": rates[setting]} for setting in rates]))
        return
    setting = Setting(given.arrangement, given.batch)
    runner = baseline.runner(setting)
    if not given.answer:
        rate = baseline.images_per_s(runner, setting.batch, given.seconds)
        p50_ms = statistics.median(baseline.latencies_ms(given.seconds))
        print(json.dumps({"images_per_s": rate, "p50_ms": p50_ms}))
        return
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "loaded":
            print(baseline.images_per_s(runner, setting.batch, given.seconds), flush=True)
        else:
            print(statistics.median(baseline.latencies_ms(given.seconds)), flush=True)


if __name__ == "__main__":
    main()
