"""Building models: from published weights to entries of the model repository.

Needs the extra ``tidegate[models]``; importing it does not, since every heavy library is imported
where it is used. The command line is :mod:`tidegate.cli.build`.
"""

from tidegate.serving.build.errors import BuildError, MissingPackageError
from tidegate.serving.build.photographs import SAMPLES, Sample, write_samples

__all__ = ["SAMPLES", "BuildError", "MissingPackageError", "Sample", "write_samples"]
