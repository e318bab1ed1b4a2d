"""The vision server's own errors; handlers translate them to those that clients get."""

from tidegate.errors import TidegateError

__all__ = ["EngineError", "RejectedImageError", "VisionError"]


class VisionError(TidegateError):
    """Root of the vision server's own errors."""


class EngineError(VisionError):
    """An engine could not load a model or run a batch."""


class RejectedImageError(VisionError):
    """One image of a request cannot be used.

    Attributes:
        index: Its position in the request.
        problem: The cause and the fix.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"image {index} {problem}")
        self.index = index
        self.problem = problem
