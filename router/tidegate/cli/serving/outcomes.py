"""What became of one image."""

from dataclasses import dataclass

from tidegate.client import ClassifyResult
from tidegate.errors import TidegateError

__all__ = ["ImageOutcome"]


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """What became of one image, asked about once or several times.

    Attributes:
        name: the image.
        results: an answer for each call that was answered.
        errors: why, for each call that was not.
        latencies_s: what each answered call took, in seconds.
    """

    name: str
    results: tuple[ClassifyResult, ...]
    errors: tuple[TidegateError, ...]
    latencies_s: tuple[float, ...]

    @property
    def result(self) -> ClassifyResult | None:
        """The last answer, if there was one."""
        return self.results[-1] if self.results else None

    @property
    def error(self) -> TidegateError | None:
        """The first failure, if there was one."""
        return self.errors[0] if self.errors else None
