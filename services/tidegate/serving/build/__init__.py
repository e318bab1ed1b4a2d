"""Builds models: from published weights to entries of the model repository.

Building needs the extra ``tidegate[models]``. Importing this package does not, because each heavy
library is imported where it is used. The command line is :mod:`tidegate.cli.build`.
"""

from tidegate.serving.build.errors import BuildError, MissingPackageError
from tidegate.serving.build.photographs import SAMPLES, Sample, write_samples

__all__ = ["SAMPLES", "BuildError", "MissingPackageError", "Sample", "write_samples"]
