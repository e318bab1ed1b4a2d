"""Errors of building a model."""

from tidegate.errors import TidegateError

__all__ = ["BuildError", "MissingPackageError"]


class BuildError(TidegateError):
    """A model could not be built, or the built model failed its check."""


class MissingPackageError(BuildError):
    """A package that building needs is not installed.

    Args:
        package: The missing distribution.
        install: The command that installs it.
    """

    def __init__(self, package: str, install: str = "pip install 'tidegate[models]'") -> None:
        super().__init__(f"building this model needs the package {package!r}: {install}")
        self.package = package
