"""What goes wrong: errors that end a change, and problems that the status shows until they end.

The message of each error says what to do.
"""

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
    """The controller cannot make a change."""


class StateError(ControlError):
    """The state file cannot be used."""


class ObjectsError(ControlError):
    """The files of objects do not fit together."""


class RolledBackError(ControlError):
    """A change could not be completed and was rolled back.

    Args:
        stage: The stage that could not be completed.
        reason: Why, with the proxy, the resource and the proxy's message.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"stage {stage} could not be completed and was rolled back: {reason}")
        self.stage = stage
        self.reason = reason


class UnexpectedChangeError(ControlError):
    """A fault of the controller ended a change, which was rolled back; the log has a traceback."""


class InterruptedTransitionError(ControlError):
    """The controller shuts down in the middle of a change; the change goes on at its next start."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong.

    Attributes:
        source: Where.
        message: What is wrong, and what to do.
        since: When it arose, in seconds since 1970.
    """

    source: str
    message: str
    since: float


class Problems:
    """The last fifty problems, the newest last."""

    def __init__(self) -> None:
        self._problems: OrderedDict[str, Problem] = OrderedDict()

    def __iter__(self) -> Iterator[Problem]:
        return iter(list(self._problems.values()))

    def put(self, source: str, message: str) -> None:
        """Adds a problem, in place of an earlier one of the same source."""
        known = self._problems.get(source)
        if known is not None and known.message == message:
            return
        _log.warning("problem", source=source, problem=message)
        self._problems.pop(source, None)
        self._problems[source] = Problem(source, message, time.time())
        while len(self._problems) > _MAX_PROBLEMS:
            self._problems.popitem(last=False)

    def clear(self, source: str) -> None:
        """Removes the problem of a source."""
        self._problems.pop(source, None)
