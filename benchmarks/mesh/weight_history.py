"""Which versions may answer a call, by the weights that were in effect while it ran.

A change of weights is asked for at one moment and acknowledged at another, and between the two a
proxy may follow either. So a call may be answered by the versions that had weight in the last
change acknowledged before it began, and in every change asked for since then and before it ended.
Any other version is a misrouted call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["WeightChange", "WeightHistory"]


@dataclass(slots=True)
class WeightChange:
    """Weights from the moment they were asked for.

    Attributes:
        versions: those with weight.
        requested_s: when they were asked for.
        acknowledged_s: when every proxy had them; None until then.
    """

    versions: frozenset[str]
    requested_s: float
    acknowledged_s: float | None = None


class WeightHistory:
    """All changes of weights, in order; all times are of one clock.

    Args:
        versions: those with weight from the beginning.
    """

    def __init__(self, versions: Iterable[str]) -> None:
        begin = float("-inf")
        self._changes = [WeightChange(frozenset(versions), begin, begin)]

    def request(self, versions: Iterable[str], now_s: float) -> WeightChange:
        """Notes that a change is about to be asked for.

        Args:
            versions: those that have weight then.
            now_s: the time.
        """
        change = WeightChange(frozenset(versions), now_s)
        self._changes.append(change)
        return change

    def allowed(self, began_s: float, ended_s: float) -> frozenset[str]:
        """The versions that may answer a call.

        Args:
            began_s: when it began.
            ended_s: when it was answered.
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
        """How long before a moment the last change was acknowledged that was by then."""
        return moment_s - max(
            change.acknowledged_s
            for change in self._changes
            if change.acknowledged_s is not None and change.acknowledged_s <= moment_s
        )
