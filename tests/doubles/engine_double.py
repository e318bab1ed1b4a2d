"""A test double of the inference engine: a test controls its runs, and it records them.

The first number of an image, its mark, identifies it; the mark is returned as the score of class 0.
"""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import Precision
from tidegate.serving.vision.engines.engine import (
    EngineOutput,
    EngineTraits,
    InputForm,
    ModelTensors,
)
from tidegate.serving.vision.errors import EngineError

CLASSES = 3
_PATIENCE_S = 30


class EngineDouble:
    """Implements :class:`~tidegate.serving.vision.engines.engine.InferenceEngine`.

    Args:
        slots: Parallel runs.
        batch_sizes: Its batch sizes.
        shares_host: Whether it claims to run on the workers' cores.
        shape: Rows and columns of an image.
        classes: The width of the output, which may contradict its ``tensors``.
    """

    def __init__(
        self,
        *,
        slots: int = 1,
        batch_sizes: Sequence[int] = (1, 2, 4),
        shares_host: bool = False,
        shape: tuple[int, int] = (2, 2),
        classes: int = CLASSES,
    ) -> None:
        self.traits = EngineTraits(
            name="double 1",
            platform="double",
            precision=Precision.FP32,
            batch_sizes=tuple(batch_sizes),
            slots=slots,
            parallel=slots,
            shares_host=shares_host,
        )
        self.tensors = ModelTensors("input", (3, *shape), "logits", CLASSES)
        self.closed = False
        self.batches: list[list[int]] = []
        self.alone: list[bool] = []
        self.most_at_once = 0
        self.fails_on: set[int] = set()
        self._classes = classes
        self._at_once = 0
        self._lock = threading.Lock()
        self._entered = threading.Semaphore(0)
        self._allowed = threading.Semaphore(0)
        self._gated = False

    @property
    def ran(self) -> list[int]:
        """The marks of all images that were run, in order."""
        with self._lock:
            return [mark for batch in self.batches for mark in batch]

    def hold(self) -> None:
        """Makes every further run wait for :meth:`allow`."""
        self._gated = True

    def allow(self, runs: int = 1) -> None:
        """Lets this many runs end, including runs that have not begun."""
        self._allowed.release(runs)

    def release(self) -> None:
        """Lets every run end."""
        self._gated = False
        self._allowed.release(1_000)

    def wait_for_run(self) -> None:
        """Blocks until one more run has begun."""
        assert self._entered.acquire(timeout=_PATIENCE_S), "no run began"

    def run(
        self, form: InputForm, images: Sequence[npt.NDArray[np.generic]], *, alone: bool = False
    ) -> EngineOutput:
        """Runs a batch; waits for permission while held."""
        marks = [int(image.flat[0]) for image in images]
        with self._lock:
            assert not self.closed, "a run after close"
            self.batches.append(marks)
            self.alone.append(alone)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self._entered.release()
        try:
            if self._gated:
                assert self._allowed.acquire(timeout=_PATIENCE_S), (
                    "the test did not let the run end"
                )
            if self.fails_on.intersection(marks):
                raise EngineError("out of memory")
            output = np.zeros((len(images), self._classes), dtype=np.float32)
            output[:, 0] = marks
            powers = np.exp(output - output.max(axis=1, keepdims=True))
            return EngineOutput(output, powers / powers.sum(axis=1, keepdims=True))
        finally:
            with self._lock:
                self._at_once -= 1

    def close(self) -> None:
        """Frees the engine."""
        with self._lock:
            assert not self._at_once, "closed during a run"
            self.closed = True
