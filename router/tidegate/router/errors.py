"""What goes wrong in the router. Each message says what to do."""

from tidegate.errors import TidegateError

__all__ = [
    "LeavingError",
    "RefusedError",
    "RouterError",
    "StoreError",
    "UnknownRolloutError",
    "UnwrittenError",
]


class RouterError(TidegateError):
    """The router cannot do something."""


class StoreError(RouterError):
    """The file of the rollouts cannot be used."""


class UnwrittenError(StoreError):
    """Something counts already, and cannot be written yet.

    Args:
        key: The rollout's, ``namespace/name``.
        phase: The phase that it is in.
        error: Why nothing can be written.
    """

    def __init__(self, key: str, phase: str, error: StoreError) -> None:
        super().__init__(
            f"{key} is {phase}, and its traffic follows, but that is not written: {error}. The"
            " router writes it as soon as it can; if it ends before that, look at the rollout again"
        )


class RefusedError(RouterError):
    """The rollout's phase does not allow a command, or another rollout has the host."""


class LeavingError(RouterError):
    """The router shuts down, or the rollout is being removed."""


class UnknownRolloutError(RouterError):
    """There is no such rollout.

    Args:
        key: The rollout's, ``namespace/name``.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no rollout {key}; `tidegate rollout list` shows them")
