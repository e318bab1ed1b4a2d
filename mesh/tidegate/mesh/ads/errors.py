"""Why a proxy's stream is ended; each message says what the proxy must send instead."""

from tidegate.errors import TidegateError

__all__ = ["AdsError", "RefusedRequestError"]


class AdsError(TidegateError):
    """Root of what goes wrong between the discovery service and a proxy."""


class RefusedRequestError(AdsError):
    """A request that no proxy in its right mind sends; it ends the stream.

    Attributes:
        field: path of the field that is wrong.
        problem: what is wrong with it, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem
