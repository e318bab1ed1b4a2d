"""The model repository: folders of models with metadata, verified before they are served.

    entry = Repository(Path("models")).find("efficientnet-lite0", "1-int8")
    entry.image_classifier().preprocessing.mean
    entry.labels[285]

Importing it loads no engine; it needs only pydantic and the standard library.
"""

from tidegate.serving.repository.catalog import Location, Repository
from tidegate.serving.repository.entry import Entry
from tidegate.serving.repository.errors import (
    CorruptFileError,
    EntryNotFoundError,
    MetadataError,
    RepositoryError,
    WrongKindError,
)
from tidegate.serving.repository.metadata import (
    ChannelOrder,
    ClassifierOutput,
    Crop,
    FileDigest,
    ImageClassifier,
    ImageInput,
    Interpolation,
    LanguageModel,
    Layout,
    Metadata,
    ModelKind,
    OutputKind,
    Precision,
    PrecisionRecipe,
    Preprocessing,
    Quantization,
    Source,
)

__all__ = [
    "ChannelOrder",
    "ClassifierOutput",
    "CorruptFileError",
    "Crop",
    "Entry",
    "EntryNotFoundError",
    "FileDigest",
    "ImageClassifier",
    "ImageInput",
    "Interpolation",
    "LanguageModel",
    "Layout",
    "Location",
    "Metadata",
    "MetadataError",
    "ModelKind",
    "OutputKind",
    "Precision",
    "PrecisionRecipe",
    "Preprocessing",
    "Quantization",
    "Repository",
    "RepositoryError",
    "Source",
    "WrongKindError",
]
