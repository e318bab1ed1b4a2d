"""What keeps the controller from changing the mesh; each message says what to do."""

from tidegate.errors import TidegateError

__all__ = [
    "ControlError",
    "InterruptedTransitionError",
    "ObjectsError",
    "RolledBackError",
    "StateError",
    "UnexpectedChangeError",
]


class ControlError(TidegateError):
    """The controller cannot do what it was asked."""


class StateError(ControlError):
    """The state file cannot be used."""


class ObjectsError(ControlError):
    """The files of objects do not fit together."""


class RolledBackError(ControlError):
    """A change could not be completed and was taken back.

    Args:
        stage: the stage that could not be completed.
        reason: why, with the proxy, the resource and what was said of it.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"stage {stage} could not be completed and was taken back: {reason}")
        self.stage = stage
        self.reason = reason


class UnexpectedChangeError(ControlError):
    """A fault of the controller ended a change, which was taken back; the log has its traceback."""


class InterruptedTransitionError(ControlError):
    """The controller goes away in the middle of a change, and goes on with it when it is back."""
