"""Why a model could not be built."""

from tidegate.errors import TidegateError

__all__ = ["BuildError", "MissingPackageError"]


class BuildError(TidegateError):
    """A model could not be built, or what was built failed its own check."""


class MissingPackageError(BuildError):
    """A package that building needs is not installed.

    Args:
        package: the missing distribution.
        install: the command that brings it.
    """

    def __init__(self, package: str, install: str = "pip install 'tidegate[models]'") -> None:
        super().__init__(f"building this model needs the package {package!r}: {install}")
        self.package = package
