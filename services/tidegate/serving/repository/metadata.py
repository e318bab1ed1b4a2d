"""``model.json``: the metadata of a model, so that a server needs no code for each model.

It holds everything between a photograph and a label: the tensor's shape and layout, how the image
is resized, cropped and normalised, what the output means, and the precision of the network. The
defaults are those of the common ImageNet classifier as torchvision evaluates it (RGB, NCHW,
224×224, shortest side to 256 by an antialiased bilinear filter, centre crop, ImageNet mean and
standard deviation, logits). For such a model this is enough, beside a ``model.onnx`` and a
``labels.txt`` in ``models/my-model/1/``::

    {"kind": "image-classifier", "labels": "labels.txt"}

The folders give the name and version; the ONNX graph gives tensor names and the number of classes.
Recorded checksums are verified. Validation is strict: an unknown field is an error, so that a
misspelt ``mean`` never means the default one.
"""

from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from tidegate.serving.repository.versions import Identifier

__all__ = [
    "ChannelOrder",
    "ClassifierOutput",
    "Crop",
    "FileDigest",
    "ImageClassifier",
    "ImageInput",
    "Interpolation",
    "LanguageModel",
    "Layout",
    "Metadata",
    "ModelKind",
    "OutputKind",
    "Precision",
    "PrecisionRecipe",
    "Preprocessing",
    "Quantization",
    "RelativePath",
    "Source",
]


class ModelKind(StrEnum):
    """The kind of a model."""

    IMAGE_CLASSIFIER = "image-classifier"
    LANGUAGE_MODEL = "language-model"


class Precision(StrEnum):
    """The number format a network computes in."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"


class Layout(StrEnum):
    """The order of an image tensor's axes."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class ChannelOrder(StrEnum):
    """The order of the colours along the channel axis."""

    RGB = "RGB"
    BGR = "BGR"


class Interpolation(StrEnum):
    """The filter of a resize; Pillow's filters."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Crop(StrEnum):
    """The part of a resized image that the network sees."""

    CENTER = "center"


class OutputKind(StrEnum):
    """The meaning of the numbers in a classifier's output."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


def _inside_the_entry(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError("must be a relative path inside the model's own folder, without '..'")
    return path


RelativePath = Annotated[str, AfterValidator(_inside_the_entry)]
"""A path inside the entry's folder, with ``/`` between its parts."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Frozen):
    """The source of the weights.

    Attributes:
        package: The package, file or address of the weights.
        version: Its version.
        licence: SPDX identifier of the weights' licence, or ``unknown``.
        recipe: The number of the recipe by which `tidegate model build` built the model; it
            rebuilds a model whose number is lower than its own.
    """

    package: str
    version: str = ""
    licence: str = "unknown"
    recipe: int = Field(default=1, ge=1)


class FileDigest(_Frozen):
    """The recorded digest of a file.

    Attributes:
        sha256: SHA-256 of its bytes, in lower-case hexadecimal.
        size_bytes: Its length.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Quantization(_Frozen):
    """How a network was quantized to integers (or to fp8).

    Attributes:
        method: The tool and the scheme.
        calibration: The data from which the activations' ranges were taken.
        samples: The number of its samples.
        excluded_nodes: Graph nodes left in the original precision.
    """

    method: str
    calibration: str = ""
    samples: int | None = Field(default=None, ge=1)
    excluded_nodes: tuple[str, ...] = ()


class PrecisionRecipe(_Frozen):
    """The precision of the network, and what sets it.

    Attributes:
        compute: The number format of the heavy layers.
        io: The number format of the input and output tensors.
        set_by: ``graph`` if the graph's own types (or its Q/DQ nodes) set the precision and the
            engine obeys; ``engine`` if the graph is fp32 and the engine is configured to compute in
            ``compute``.
        quantization: How the network was quantized, if it is.
    """

    compute: Precision = Precision.FP32
    io: Precision = Precision.FP32
    set_by: Literal["graph", "engine"] = "graph"
    quantization: Quantization | None = None


class ImageInput(_Frozen):
    """The input tensor of a classifier; its first axis is the batch.

    Attributes:
        tensor: Its name; by default the graph's only input.
        layout: The order of its axes.
        height: Height in pixels.
        width: Width in pixels.
        channels: The order of the three colours.
    """

    tensor: str | None = Field(default=None, min_length=1)
    layout: Layout = Layout.NCHW
    height: int = Field(default=224, ge=1, le=8192)
    width: int = Field(default=224, ge=1, le=8192)
    channels: ChannelOrder = ChannelOrder.RGB


_Three = tuple[float, float, float]
_Channel = Annotated[int, Field(ge=0, le=255)]


class Preprocessing(_Frozen):
    """From an image to the input tensor: compose, resize, crop, ``(pixel·scale − mean) / std``.

    The defaults are torchvision's evaluation transforms ``Resize(256)`` and ``CenterCrop(224)`` on
    a PIL image. The crop is the size of the input, which the resize always covers.

    Attributes:
        background: The colour behind transparent pixels: red, green and blue, 0 to 255.
        resize_shortest_side: The length in pixels to which the shortest side is resized, keeping
            the aspect ratio; ``None`` stretches the image to the input's size without a crop.
        interpolation: The filter of the resize.
        antialias: Whether the filter widens as the image shrinks, so that every pixel of the image
            counts; ``False`` is what OpenCV's ``resize`` and TensorFlow 1 do.
        crop: The part of the resized image that is kept.
        scale: The factor that multiplies a pixel (0–255).
        mean: Subtracted from the scaled pixel, one number per channel in the input's channel order.
        std: Divides the result, one number per channel in the input's channel order.
    """

    background: tuple[_Channel, _Channel, _Channel] = (255, 255, 255)
    resize_shortest_side: int | None = Field(default=256, ge=1, le=16384)
    interpolation: Interpolation = Interpolation.BILINEAR
    antialias: bool = True
    crop: Crop = Crop.CENTER
    scale: float = Field(default=1 / 255, gt=0)
    mean: _Three = (0.485, 0.456, 0.406)
    std: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ] = (0.229, 0.224, 0.225)


class ClassifierOutput(_Frozen):
    """The output tensor of a classifier: one number per class and image.

    Attributes:
        tensor: Its name; by default the graph's only output.
        kind: The meaning of the numbers.
        classes: The number of classes; by default that of the graph.
    """

    tensor: str | None = Field(default=None, min_length=1)
    kind: OutputKind = OutputKind.LOGITS
    classes: int | None = Field(default=None, ge=1)


class _Described(_Frozen):
    """The fields of every kind of model.

    Attributes:
        schema_version: The version of this file format.
        name: The model; empty in a hand-written file, where the folder names it.
        version: The version; empty in a hand-written file, where the folder names it.
        description: One sentence for people.
        source: The source of the weights.
        created: When the entry was built.
        precision: The precision of the network.
        files: Digests of the entry's files by relative path; these files are verified.
    """

    schema_version: Literal[1] = 1
    name: Identifier | None = None
    version: Identifier | None = None
    description: str = ""
    source: Source | None = None
    created: datetime | None = None
    precision: PrecisionRecipe = PrecisionRecipe()
    files: dict[RelativePath, FileDigest] = Field(default_factory=dict)


class ImageClassifier(_Described):
    """An ONNX network that outputs one score per class for an image.

    Attributes:
        model: The ONNX file.
        input: The input tensor.
        preprocessing: How a photograph becomes that tensor.
        output: The output tensor.
        labels: A UTF-8 text file with one label per line, in class order.
    """

    kind: Literal["image-classifier"]
    model: RelativePath = "model.onnx"
    input: ImageInput = ImageInput()
    preprocessing: Preprocessing = Preprocessing()
    output: ClassifierOutput = ClassifierOutput()
    labels: RelativePath | None = None

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        shortest = self.preprocessing.resize_shortest_side
        if shortest is not None and shortest < max(self.input.height, self.input.width):
            raise ValueError(
                f"preprocessing.resize_shortest_side is {shortest}, smaller than the "
                f"{self.input.height}×{self.input.width} crop; raise it, or use null to stretch"
            )
        return self


class LanguageModel(_Described):
    """A folder that ``transformers`` and vLLM load: configuration, safetensors and tokenizer.

    Attributes:
        architecture: The model's class, as in its ``config.json``.
        parameters: The number of its weights.
        context_length: Tokens of prompt and answer together.
        chat_template: Whether the tokenizer has a template for chat messages.
        tool_parser: vLLM's parser for the calls of tools that the model writes; empty for none.
        reasoning_parser: vLLM's parser for the reasoning that the model writes; empty for none.
    """

    kind: Literal["language-model"]
    architecture: str = ""
    parameters: int | None = Field(default=None, ge=1)
    context_length: int | None = Field(default=None, ge=1)
    chat_template: bool = False
    tool_parser: str = ""
    reasoning_parser: str = ""


Metadata = ImageClassifier | LanguageModel
"""The content of a ``model.json``; ``kind`` tells which."""
