"""Errors of a model repository: each names the file, the field and the fix."""

from pathlib import Path

from tidegate.errors import TidegateError

__all__ = [
    "CorruptFileError",
    "EntryNotFoundError",
    "MetadataError",
    "RepositoryError",
    "WrongKindError",
]


class RepositoryError(TidegateError):
    """A model repository, or an entry of it, cannot be used."""


class EntryNotFoundError(RepositoryError):
    """The repository holds no such model, or no such version of it."""


class MetadataError(RepositoryError):
    """A ``model.json`` is missing, cannot be read, or contradicts its folder.

    Args:
        path: The metadata file.
        problem: What is wrong and how to correct it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class CorruptFileError(RepositoryError):
    """A file of an entry is missing, cut short, or differs from its metadata.

    Args:
        path: The file.
        problem: What is wrong and how to correct it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class WrongKindError(RepositoryError):
    """An entry was opened as one kind of model and is another."""
