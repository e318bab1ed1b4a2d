"""Errors that end a proxy's stream. Each message says what the proxy must send instead."""

from tidegate.errors import TidegateError

__all__ = ["AdsError", "RefusedRequestError"]


class AdsError(TidegateError):
    """Root of the errors between the discovery service and a proxy."""


class RefusedRequestError(AdsError):
    """A request that breaks the protocol or exceeds a limit. It ends the stream.

    Attributes:
        field: Path of the field that is wrong.
        problem: What is wrong with it, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
