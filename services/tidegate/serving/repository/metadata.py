"""``model.json``: the file that says what a model is, so that a server needs no code for it.

Everything between a photograph and a label is here: the tensor's shape and layout, how the
image is resized, cropped and normalised, what the output means, and in what precision the
network computes. Defaults are those of the common ImageNet classifier as torchvision evaluates it
(RGB, NCHW, 224×224, shortest side to 256 by an antialiased bilinear filter, centre crop, ImageNet
mean and standard deviation, logits), so for such a model this is enough, beside a ``model.onnx``
and a ``labels.txt`` in ``models/my-model/1/``::

    {"kind": "image-classifier", "labels": "labels.txt"}

The name and version are those of the folders; tensor names and the number of classes come from
the ONNX graph; checksums are verified where they are given. What is written is checked strictly:
an unknown field is an error, because a misspelt ``mean`` must not pass for a default one.
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
    """What a model does."""

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
    """The filter that an image is resampled with when it is resized; those of Pillow."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class Crop(StrEnum):
    """The part of a resized image that the network sees."""

    CENTER = "center"


class OutputKind(StrEnum):
    """What the numbers of a classifier's output are."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"


def _inside_the_entry(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError("must be a relative path inside the model's own folder, without '..'")
    return path


RelativePath = Annotated[str, AfterValidator(_inside_the_entry)]
"""A path under the entry's folder, with ``/`` between its parts."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Frozen):
    """Where the weights came from.

    Attributes:
        package: the package, file or address they were taken from.
        version: its version.
        licence: SPDX identifier of the weights' licence, or ``unknown``.
        recipe: number of the way in which `tidegate model build` made the model of them; it builds
            a model anew whose number is lower than the one it knows.
    """

    package: str
    version: str = ""
    licence: str = "unknown"
    recipe: int = Field(default=1, ge=1)


class FileDigest(_Frozen):
    """What a file must be.

    Attributes:
        sha256: SHA-256 of its bytes, in lower-case hexadecimal.
        size_bytes: its length.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Quantization(_Frozen):
    """How a network was brought to integers (or to fp8).

    Attributes:
        method: the tool and the scheme.
        calibration: the data the activations' ranges were taken from.
        samples: how many samples of it.
        excluded_nodes: graph nodes left in the original precision.
    """

    method: str
    calibration: str = ""
    samples: int | None = Field(default=None, ge=1)
    excluded_nodes: tuple[str, ...] = ()


class PrecisionRecipe(_Frozen):
    """In what number format the network computes, and who sees to it.

    Attributes:
        compute: the format of the heavy layers.
        io: the format of the input and output tensors.
        set_by: ``graph`` when the graph's own types (or its Q/DQ nodes) carry the precision and an
            engine has only to obey; ``engine`` when the graph is fp32 and the engine is asked to
            compute in ``compute``.
        quantization: how integers were arrived at, for a quantized network.
    """

    compute: Precision = Precision.FP32
    io: Precision = Precision.FP32
    set_by: Literal["graph", "engine"] = "graph"
    quantization: Quantization | None = None


class ImageInput(_Frozen):
    """The tensor a classifier takes; its first axis is the batch.

    Attributes:
        tensor: its name; by default the graph's only input.
        layout: the order of its axes.
        height: pixels.
        width: pixels.
        channels: the order of the three colours.
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
        background: red, green and blue, 0 to 255, of what lies behind transparent pixels.
        resize_shortest_side: pixels the shortest side is brought to, keeping the aspect ratio;
            ``None`` stretches the image to the input's size without a crop.
        interpolation: the filter that the resize uses.
        antialias: whether the filter widens as the image shrinks, so that every pixel of the image
            counts; ``False`` is what OpenCV's ``resize`` and TensorFlow 1 do.
        crop: the part of the resized image that is kept.
        scale: what a pixel (0–255) is multiplied by.
        mean: subtracted from the scaled pixel, one number per channel in the input's channel order.
        std: divides the result, one number per channel in the input's channel order.
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
    """The tensor a classifier gives: one number per class and image.

    Attributes:
        tensor: its name; by default the graph's only output.
        kind: what the numbers are.
        classes: how many there are per image; by default as many as the graph says.
    """

    tensor: str | None = Field(default=None, min_length=1)
    kind: OutputKind = OutputKind.LOGITS
    classes: int | None = Field(default=None, ge=1)


class _Described(_Frozen):
    """What every kind of model has.

    Attributes:
        schema_version: of this file's format.
        name: the model; empty in a hand-written file, where the folder names it.
        version: its version; empty in a hand-written file, where the folder names it.
        description: one sentence for people.
        source: where the weights came from.
        created: when the entry was built.
        precision: in what number format it computes.
        files: digests of the entry's files by relative path; those named are verified.
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
    """An ONNX network that gives one score per class for an image.

    Attributes:
        model: the ONNX file.
        input: the tensor it takes.
        preprocessing: how a photograph becomes that tensor.
        output: the tensor it gives.
        labels: a UTF-8 text file with one label per line, in class order.
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
        architecture: the model's class, as in its ``config.json``.
        parameters: how many weights it has.
        context_length: tokens of prompt and answer together.
        chat_template: whether the tokenizer brings a template for chat messages.
    """

    kind: Literal["language-model"]
    architecture: str = ""
    parameters: int | None = Field(default=None, ge=1)
    context_length: int | None = Field(default=None, ge=1)
    chat_template: bool = False


Metadata = ImageClassifier | LanguageModel
"""What a ``model.json`` holds; ``kind`` says which."""
