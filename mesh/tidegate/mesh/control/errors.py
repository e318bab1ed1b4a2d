"""What keeps the controller from changing the mesh; each message says what to do."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidegate.errors import TidegateError
from tidegate.runtime.logging import get_logger

__all__ = [
    "ControlError",
    "InterruptedTransitionError",
    "ObjectsError",
    "Problem",
    "Problems",
    "RolledBackError",
    "StateError",
    "UnexpectedChangeError",
]

_log = get_logger(__name__)

_MAX_PROBLEMS: Final = 50


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


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        source: where.
        message: what, and what to do.
        since: since when, in seconds since 1970.
    """

    source: str
    message: str
    since: float


class Problems:
    """The problems, the newest last; older ones than the last fifty are forgotten."""

    def __init__(self) -> None:
        self._problems: OrderedDict[str, Problem] = OrderedDict()

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._problems.values()))

    def put(self, source: str, message: str) -> None:
        """Says that something is wrong somewhere."""
        known = self._problems.get(source)
        if known is not None and known.message == message:
            return
        _log.warning("problem", source=source, problem=message)
        self._problems.pop(source, None)
        self._problems[source] = Problem(source, message, time.time())
        while len(self._problems) > _MAX_PROBLEMS:
            self._problems.popitem(last=False)

    def clear(self, source: str) -> None:
        """Says that nothing is wrong somewhere any more."""
        self._problems.pop(source, None)
