"""Runs ONNX classifiers on the CPU through OpenVINO.

A run occupies one core, and there are as many parallel runs as cores, each on a stream with one
thread. For small networks this gives more images a second than one run over all cores. A single
image on an idle machine is different: it has a compiled model of its own that uses every core. The
normalisation is compiled into the network, so pixels enter as bytes, and so is the softmax of
logits.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

from tidegate.serving.repository import ChannelOrder, Layout, OutputKind, Precision
from tidegate.serving.vision.engines.engine import (
    EngineOutput,
    EngineTraits,
    InputForm,
    ModelTensors,
)
from tidegate.serving.vision.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from tidegate.serving.repository import Entry, ImageClassifier

__all__ = ["PRECISIONS", "OpenVinoEngine"]

PRECISIONS = frozenset({Precision.FP32, Precision.BF16, Precision.INT8})
"""The precisions of OpenVINO on a CPU; without bf16 in the CPU, it computes those in fp32."""

# Of the two runs of a core, one computes and one is queued behind it inside OpenVINO. So a stream
# takes the next batch without waiting for Python.
_RUNS_PER_CORE = 2

_PROBABILITIES = "tidegate.probabilities"

_HINTS = {
    Precision.FP32: ov.Type.f32,
    Precision.BF16: ov.Type.bf16,
    # The graph itself makes the quantized layers int8; the other layers stay as trained.
    Precision.INT8: ov.Type.f32,
}


class OpenVinoEngine:
    """A classifier compiled for the CPU.

    Args:
        entry: The model; its precision must be fp32, bf16 or int8.
        cores: The cores to use, which is also the number of parallel runs.
        batch_sizes: The batch sizes to compile for, ascending.

    Raises:
        EngineError: The model cannot be read or compiled, or the CPU does not compute in its
            precision.
    """

    def __init__(self, entry: Entry, *, cores: int, batch_sizes: Sequence[int]) -> None:
        model = entry.image_classifier()
        precision = model.precision.compute
        if precision not in PRECISIONS:
            allowed = ", ".join(sorted(PRECISIONS))
            raise EngineError(
                f"{entry.path}: precision {precision} does not run on the CPU; build the model "
                f"with one of {allowed}"
            )
        try:
            core = ov.Core()
            graph = core.read_model(entry.model_path)
            self._tensors = _tensors(graph, model, entry.model_path)
            outputs = _outputs(graph, model, self._tensors)
            pixels = _normalising(graph, model, self._tensors)
            # No pinning: every process would pin its first stream to the same core. The kernel
            # schedules better where several servers, or decoding and inference, share a machine.
            shared = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "ENABLE_CPU_PINNING": False}
            streams = {"NUM_STREAMS": cores, "INFERENCE_NUM_THREADS": cores, **shared}
            whole = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": cores, **shared}
            slots = _RUNS_PER_CORE * cores
            source = self._tensors.input_name
            self._pixels = {
                size: _Compiled(core, pixels, source, outputs, size, streams, slots)
                for size in batch_sizes
            }
            self._single = _Compiled(core, pixels, source, outputs, 1, whole, 1)
            self._tensor = _Compiled(core, graph, source, outputs, None, streams, slots)
        except RuntimeError as error:
            raise EngineError(f"{entry.model_path} cannot be loaded: {error}") from error
        computed = precision
        if precision is Precision.BF16 and self._single.precision != ov.Type.bf16:
            # On a CPU without bf16, OpenVINO computes in fp32 whatever the hint says.
            computed = Precision.FP32
        self._traits = EngineTraits(
            name=f"openvino {ov.get_version().split('-')[0]}",
            platform="onnx_openvino",
            precision=computed,
            batch_sizes=tuple(batch_sizes),
            slots=slots,
            parallel=cores,
            shares_host=True,
        )

        # These runs prevent a deadlock: the bindings initialise statics at their first use, and two
        # threads that do so at once wait for each other, one with the GIL, one with the static.
        side = model.input
        self.run(InputForm.PIXELS, [np.zeros((side.height, side.width, 3), dtype=np.uint8)])
        self.run(InputForm.TENSOR, [np.zeros(self._tensors.input_shape, dtype=np.float32)])

    @property
    def traits(self) -> EngineTraits:
        """The properties of the engine."""
        return self._traits

    @property
    def tensors(self) -> ModelTensors:
        """The model's own input and output."""
        return self._tensors

    def run(
        self, form: InputForm, images: Sequence[npt.NDArray[np.generic]], *, alone: bool = False
    ) -> EngineOutput:
        """Runs one batch; see :class:`~tidegate.serving.vision.engines.engine.InferenceEngine`."""
        if form is InputForm.TENSOR:
            compiled = self._tensor
        elif alone and len(images) == 1:
            compiled = self._single
        else:
            size = next(size for size in self._traits.batch_sizes if size >= len(images))
            compiled = self._pixels[size]
        try:
            return compiled.run(images)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed to run the batch: {error}") from error

    def close(self) -> None:
        """Frees the compiled models."""
        self._pixels.clear()
        del self._single, self._tensor


class _Compiled:
    """A graph compiled for one batch size (or any), with an infer request for each slot."""

    def __init__(
        self,
        core: ov.Core,
        graph: ov.Model,
        source: str,
        outputs: tuple[str, str],
        size: int | None,
        options: dict[str, Any],
        runs: int,
    ) -> None:
        graph = graph.clone()
        shape = graph.input(source).partial_shape
        shape[0] = ov.Dimension(-1 if size is None else size)
        graph.reshape({source: shape})
        model = core.compile_model(graph, "CPU", options)
        self.precision: ov.Type = model.get_property("INFERENCE_PRECISION_HINT")
        self._results = results = [model.output(name) for name in outputs]
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(runs):
            request = model.create_infer_request()
            pixels = found = None
            # Looked up once: a look-up in every run costs more than copying an image.
            if size is not None:
                for result in results:
                    request.set_tensor(result, ov.Tensor(result.element_type, result.shape))
                pixels, found = request.get_input_tensor().data, self._found(request)
            self._slots.put(_Slot(request, pixels, found))

    def run(self, images: Sequence[npt.NDArray[np.generic]]) -> EngineOutput:
        slot = self._slots.get()
        request, pixels, found = slot
        try:
            if pixels is None or found is None:
                # This frame keeps the array alive; the request does not.
                batch = np.stack(images)
                request.set_input_tensor(ov.Tensor(batch, shared_memory=True))
                request.infer()
                found = self._found(request)
            else:
                # The padding may hold anything: its results are thrown away.
                for index, image in enumerate(images):
                    pixels[index] = image
                request.infer()
            count = len(images)
            return EngineOutput(
                found.rows[:count].astype(np.float32),
                found.probabilities[:count].astype(np.float32),
            )
        finally:
            self._slots.put(slot)

    def _found(self, request: ov.InferRequest) -> EngineOutput:
        """The output arrays of a request, in its own memory and of the network's own type."""
        return EngineOutput(*(request.get_tensor(result).data for result in self._results))


class _Slot(NamedTuple):
    """An infer request with its input and output arrays; None where the batch size varies."""

    request: ov.InferRequest
    pixels: npt.NDArray[np.generic] | None
    found: EngineOutput | None


def _tensors(graph: ov.Model, model: ImageClassifier, path: Path) -> ModelTensors:
    """Finds the input and output that the metadata names.

    Raises:
        EngineError: They are missing, or are not an image and a row of class scores.
    """
    source = _port(graph.inputs, model.input.tensor, path, "input")
    result = _port(graph.outputs, model.output.tensor, path, "output")
    shape = source.partial_shape
    height, width = model.input.height, model.input.width
    expected = (3, height, width) if model.input.layout is Layout.NCHW else (height, width, 3)
    if shape.rank.is_dynamic or len(shape) != 4:
        raise EngineError(f"{path}: input {source.any_name!r} must have four axes, has {shape}")
    for axis, length in zip(list(shape)[1:], expected, strict=True):
        if axis.is_static and axis.get_length() != length:
            raise EngineError(
                f"{path}: input {source.any_name!r} is {shape}, but model.json says "
                f"{model.input.layout} of {height}×{width}; correct input.layout, height or width"
            )
    classes = result.partial_shape[-1] if len(result.partial_shape) == 2 else ov.Dimension(-1)
    number = classes.get_length() if classes.is_static else model.output.classes
    if number is None:
        raise EngineError(
            f"{path}: output {result.any_name!r} does not define its number of classes; "
            "write output.classes into model.json"
        )
    return ModelTensors(source.any_name, expected, result.any_name, number)


def _outputs(graph: ov.Model, model: ImageClassifier, tensors: ModelTensors) -> tuple[str, str]:
    """Names the model's own output and the probabilities; adds a softmax to logits."""
    own = tensors.output_name
    if model.output.kind is OutputKind.PROBABILITIES:
        return own, own
    logits = graph.output(own).get_node().input_value(0)
    softmax = ops.softmax(ops.convert(logits, "f32"), axis=-1)
    softmax.output(0).set_names({_PROBABILITIES})
    graph.add_results([ops.result(softmax)])
    return own, _PROBABILITIES


def _port(ports: Sequence[Any], name: str | None, path: Path, kind: str) -> Any:
    if name is None:
        if len(ports) != 1:
            names = ", ".join(port.any_name for port in ports)
            raise EngineError(
                f"{path} has {len(ports)} {kind}s ({names}); name one in model.json "
                f"as {kind}.tensor"
            )
        return ports[0]
    for port in ports:
        if name in port.names:
            return port
    raise EngineError(f"{path} has no {kind} {name!r}, which model.json names as {kind}.tensor")


def _normalising(graph: ov.Model, model: ImageClassifier, tensors: ModelTensors) -> ov.Model:
    """Gives the graph an input of uint8 RGB pixels, normalised as the metadata says."""
    pre = model.preprocessing
    processor = PrePostProcessor(graph.clone())
    source = processor.input(tensors.input_name)
    source.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    source.tensor().set_color_format(ov.preprocess.ColorFormat.RGB)
    source.model().set_layout(ov.Layout(str(model.input.layout)))
    steps = source.preprocess()
    if model.input.channels is ChannelOrder.BGR:
        steps.convert_color(ov.preprocess.ColorFormat.BGR)
    # (pixel × scale − mean) / std, with the scale moved into the two constants.
    steps.convert_element_type(ov.Type.f32)
    steps.mean([each / pre.scale for each in pre.mean])
    steps.scale([each / pre.scale for each in pre.std])
    return processor.build()
