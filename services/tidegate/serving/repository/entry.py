"""Opens one model of a repository, with sound metadata and verified files.

Opening reports every error before a server spends a minute on loading: unknown or missing fields, a
folder whose name disagrees, a missing or altered file, a truncated ONNX file, labels that do not
match the classes. An entry that opens can be served.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tidegate.serving.repository.digests import check_digest, check_onnx_is_whole
from tidegate.serving.repository.document import METADATA_FILE, parse_metadata
from tidegate.serving.repository.errors import CorruptFileError, MetadataError, WrongKindError
from tidegate.serving.repository.metadata import (
    ImageClassifier,
    LanguageModel,
    Metadata,
    ModelKind,
)
from tidegate.serving.repository.versions import is_identifier

__all__ = ["Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model version whose files are complete.

    Attributes:
        path: Its folder.
        name: The model.
        version: The version.
        metadata: The content of its ``model.json``.
        labels: A classifier's labels in class order; empty if it has none.
    """

    path: Path
    name: str
    version: str
    metadata: Metadata
    labels: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Self:
        """Opens the entry in a folder ``<name>/<version>``.

        Args:
            path: The folder that holds ``model.json``.
            verify: Whether to verify the SHA-256 of every file that has one recorded; lengths are
                always compared.

        Raises:
            MetadataError: ``model.json`` is missing or wrong.
            CorruptFileError: A file is missing, cut short or altered.
        """
        metadata_path = path / METADATA_FILE
        metadata = parse_metadata(metadata_path)
        resolved = path.resolve()
        name = _agreed(metadata_path, "name", metadata.name, resolved.parent.name)
        version = _agreed(metadata_path, "version", metadata.version, resolved.name)
        for relative, digest in metadata.files.items():
            check_digest(_inside(path, relative), digest, read_content=verify)
        labels: tuple[str, ...] = ()
        if isinstance(metadata, ImageClassifier):
            check_onnx_is_whole(_inside(path, metadata.model))
            labels = _labels(path, metadata)
        elif not (path / "config.json").is_file():
            raise CorruptFileError(
                path / "config.json",
                "is missing; a language model is a folder that transformers loads",
            )
        return cls(path, name, version, metadata, labels)

    @property
    def kind(self) -> ModelKind:
        """The kind of model."""
        return ModelKind(self.metadata.kind)

    def image_classifier(self) -> ImageClassifier:
        """The metadata of an image classifier.

        Raises:
            WrongKindError: The entry is another kind of model.
        """
        if not isinstance(self.metadata, ImageClassifier):
            raise WrongKindError(self._wrong_kind(ModelKind.IMAGE_CLASSIFIER))
        return self.metadata

    def language_model(self) -> LanguageModel:
        """The metadata of a language model.

        Raises:
            WrongKindError: The entry is another kind of model.
        """
        if not isinstance(self.metadata, LanguageModel):
            raise WrongKindError(self._wrong_kind(ModelKind.LANGUAGE_MODEL))
        return self.metadata

    @property
    def model_path(self) -> Path:
        """What an engine loads: the ONNX file of a classifier, the folder of a language model."""
        if isinstance(self.metadata, ImageClassifier):
            return self.path / self.metadata.model
        return self.path

    def _wrong_kind(self, wanted: ModelKind) -> str:
        return (
            f"{self.name} {self.version} is of kind {self.kind}, not {wanted}; serve another model"
        )


def _agreed(path: Path, field: str, written: str | None, folder: str) -> str:
    if written is not None and written != folder:
        raise MetadataError(
            path, f"'{field}' is {written!r} but the folder is {folder!r}; make them the same"
        )
    if not is_identifier(folder):
        raise MetadataError(
            path,
            f"the folder {folder!r} cannot be a {field}; use 1-63 letters, digits, '.', '_' or '-'",
        )
    return folder


def _inside(folder: Path, relative: str) -> Path:
    """Returns the path of a file of the entry; refuses a link that leads out of its folder."""
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CorruptFileError(path, "leads out of the model's own folder; copy the file into it")
    return path


def _labels(folder: Path, metadata: ImageClassifier) -> tuple[str, ...]:
    if metadata.labels is None:
        return ()
    path = _inside(folder, metadata.labels)
    try:
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFileError(path, f"cannot be read as UTF-8 text: {error}") from error
    if not labels or not all(labels):
        raise CorruptFileError(path, "must hold one label per line, and no empty line")
    if metadata.output.classes not in (None, len(labels)):
        raise CorruptFileError(
            path,
            f"has {len(labels)} labels but output.classes in {METADATA_FILE} is "
            f"{metadata.output.classes}; they must be the same",
        )
    return labels
