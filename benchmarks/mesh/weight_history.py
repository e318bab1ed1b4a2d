"""Decides which versions may answer a call, from the weights that were in effect while it ran.

A change of weights is requested at one moment and acknowledged at a later one. Between the two, a
proxy may use the old weights or the new ones. So these versions may answer a call:

- those with weight in the last change that was acknowledged before the call began, and
- those with weight in any change that was requested after that and before the call ended.

An answer of any other version is a misrouted call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WeightChange", "WeightHistory"]


@dataclass(slots=True)
class WeightChange:
    """Weights from the moment of their request.

    Attributes:
        versions: The versions with weight.
        requested_s: When the change was requested.
        acknowledged_s: When every proxy had acknowledged it; None until then.
    """

    versions: frozenset[str]
    requested_s: float
    acknowledged_s: float | None = None


class WeightHistory:
    """All changes of weights, in order; all times are of one clock.

    Args:
        versions: The versions with weight from the beginning.
    """

    def __init__(self, versions: Iterable[str]) -> None:
        begin = float("-inf")
        self._changes = [WeightChange(frozenset(versions), begin, begin)]

    def request(self, versions: Iterable[str], now_s: float) -> WeightChange:
        """Records a change that is about to be requested.

        Args:
            versions: The versions that the change gives weight.
            now_s: The time.
        """
        change = WeightChange(frozenset(versions), now_s)
        self._changes.append(change)
        return change

    def allowed(self, began_s: float, ended_s: float) -> frozenset[str]:
        """Returns the versions that may answer a call.

        Args:
            began_s: When the call began.
            ended_s: When its answer came.
        """
        found = frozenset[str]()
        for change in reversed(self._changes):
            if change.requested_s > ended_s:
                continue
            found |= change.versions
            if change.acknowledged_s is not None and change.acknowledged_s <= began_s:
                break
        return found

    def since_acknowledged_s(self, moment_s: float) -> float:
        """Returns the time from the last acknowledgement before a moment to that moment."""
        return moment_s - max(
            change.acknowledged_s
            for change in self._changes
            if change.acknowledged_s is not None and change.acknowledged_s <= moment_s
        )
