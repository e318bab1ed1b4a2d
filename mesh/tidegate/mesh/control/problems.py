"""What is wrong and not in effect: refused files, lost requests, changes that were taken back."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidegate.runtime.logging import get_logger

__all__ = ["Problem", "Problems"]

_log = get_logger(__name__)

_KEPT: Final = 50


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
        while len(self._problems) > _KEPT:
            self._problems.popitem(last=False)

    def clear(self, source: str) -> None:
        """Says that nothing is wrong somewhere any more."""
        self._problems.pop(source, None)
