"""What can go wrong in the vision server apart from what clients are told."""

from tidegate.errors import TidegateError

__all__ = ["EngineError", "InvalidImageError", "RejectedImageError", "VisionError"]


class VisionError(TidegateError):
    """Root of the vision server's own errors."""


class EngineError(VisionError):
    """An engine could not load a model or run a batch."""


class InvalidImageError(VisionError):
    """An image cannot be used; the message says why and what would do."""


class RejectedImageError(VisionError):
    """One image of a request cannot be used.

    Attributes:
        index: its place in the request.
        problem: why, and what would do.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"image {index} {problem}")
        self.index = index
        self.problem = problem
