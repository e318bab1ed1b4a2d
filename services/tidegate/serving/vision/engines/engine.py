"""What the vision server asks of an engine, so that OpenVINO and TensorRT are interchangeable.

An engine owns its memory. It is given images where they lie and copies them to where it computes
(a preallocated host tensor, or pinned memory and then the device), pads a batch to a size it was
compiled for, and gives back ordinary arrays. A run blocks the thread that calls it and releases the
GIL; an engine with several ``slots`` (streams, execution contexts) allows as many runs at once.
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
    """The form of an image that is ready to be run."""

    PIXELS = "pixels"
    """uint8, height × width × 3, RGB, already of the model's size; the engine normalises it."""

    TENSOR = "tensor"
    """float32 in the model's own layout and normalisation, without the batch axis."""


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What there is to know about a loaded engine.

    Attributes:
        name: the engine and its version, for example ``openvino 2026.4.1``.
        platform: the name that the Open Inference Protocol has for it.
        precision: what the heavy layers compute in.
        batch_sizes: the batches it was prepared for, ascending; smaller ones are padded.
        slots: runs that may be under way at once.
        parallel: how many of these compute at once; the others are queued inside the engine.
        shares_host: whether a run occupies the cores that decode images too. Where it does, a
            worker that runs a batch is a worker that does not decode.
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
        input_name: the input tensor.
        input_shape: its shape without the batch axis.
        output_name: the output tensor.
        classes: numbers that it gives for an image.
    """

    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    classes: int


class EngineOutput(NamedTuple):
    """What a run gives, in arrays of the caller's own.

    Attributes:
        rows: the model's own output, images × classes.
        probabilities: of each class, images × classes: the rows, or their softmax if they are
            logits. The engine computes it behind the network, where its code is at hand; a few
            calls of NumPy afterwards take longer than it.
    """

    rows: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]


class InferenceEngine(Protocol):
    """A compiled model. Thread-safe up to ``traits.slots`` runs at once."""

    @property
    def traits(self) -> EngineTraits:
        """What there is to know about it."""
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
            form: the form of every image.
            images: from one to the largest batch size.
            alone: nothing else wants the machine now, so the engine may use all of it for this run.

        Raises:
            EngineError: the run failed; the engine may be used again.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds. No run may be under way or follow."""
        ...
