"""The protocol of an inference engine, so that OpenVINO, TensorRT and others are interchangeable.

To add an engine:

1. Write a class in a module of its own beside :mod:`.openvino_engine`. It implements
   :class:`InferenceEngine`; it need not inherit from it. Its constructor reads the ONNX file of a
   repository entry, compiles it, and raises
   :class:`~tidegate.serving.vision.errors.EngineError` with the file and the fix if it cannot.
   Normalisation and, for a model that outputs logits, the softmax belong in the compiled network.
2. Fill in :class:`EngineTraits`. The batching decisions
   (:mod:`tidegate.serving.vision.batching.planning`) use nothing else of an engine, apart from the
   run times that :mod:`tidegate.serving.vision.loading` measures when it warms the engine up.
3. Name the precisions that it computes in, as ``PRECISIONS`` does, and let ``VisionApplication``
   (:mod:`tidegate.serving.vision.__main__`) construct it.
4. Test it as ``tests/services/serving/vision/engines`` tests OpenVINO.

An engine owns its memory. It copies the images of a run into that memory (a preallocated host
tensor, or pinned memory and then the device), pads the batch to a compiled size, and returns
ordinary arrays. A run blocks the calling thread and releases the GIL. An engine with several
``slots`` (streams, execution contexts) accepts as many runs at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tidegate.serving.repository import Precision

__all__ = ["EngineOutput", "EngineTraits", "InferenceEngine", "InputForm", "ModelTensors"]


class InputForm(Enum):
    """The form of an image that is ready to run."""

    PIXELS = "pixels"
    """uint8, height × width × 3, RGB, already of the model's size; the engine normalises it."""

    TENSOR = "tensor"
    """float32 in the model's own layout and normalisation, without the batch axis."""


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """The properties of a loaded engine.

    Attributes:
        name: The engine and its version, for example ``openvino 2026.4.1``.
        platform: Its name in the Open Inference Protocol.
        precision: The precision of the heavy layers.
        batch_sizes: The batch sizes that it is compiled for, ascending; smaller batches are padded.
        slots: Runs that may be under way at once.
        parallel: How many of these compute at once; the others are queued inside the engine.
        shares_host: Whether a run occupies the cores that also decode images. If so, a worker that
            runs a batch is a worker that does not decode.
    """

    name: str
    platform: str
    precision: Precision
    batch_sizes: tuple[int, ...]
    slots: int
    parallel: int
    shares_host: bool


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """The model's own input and output.

    Attributes:
        input_name: The name of the input tensor.
        input_shape: Its shape without the batch axis.
        output_name: The name of the output tensor.
        classes: Numbers in the output for one image.
    """

    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    classes: int


class EngineOutput(NamedTuple):
    """The output of a run, in arrays that the caller owns.

    Attributes:
        rows: The model's own output, images × classes.
        probabilities: The probability of each class, images × classes: the rows, or their softmax
            if they are logits. The engine computes the softmax as the last step of the network; a
            few NumPy calls afterwards would take longer.
    """

    rows: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


class InferenceEngine(Protocol):
    """A compiled model. At most ``traits.slots`` threads may call :meth:`run` at once."""

    @property
    def traits(self) -> EngineTraits:
        """The properties of the engine."""
        ...

    @property
    def tensors(self) -> ModelTensors:
        """The model's own input and output."""
        ...

    def run(
        self, form: InputForm, images: Sequence[npt.NDArray[np.generic]], *, alone: bool = False
    ) -> EngineOutput:
        """Runs one batch and blocks until it is done.

        Args:
            form: The form of every image.
            images: The images, from one to the largest batch size.
            alone: Whether the server has no other work, so that this run may use every core.

        Raises:
            EngineError: The run failed; the engine remains usable.
        """
        ...

    def close(self) -> None:
        """Frees the engine's memory. No run may be under way or follow."""
        ...
