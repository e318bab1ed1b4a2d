"""Compares what the router said of a change with what the servers saw: pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from timed_calls import TimedCall

__all__ = ["Change", "Noted", "compared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a split.

    Attributes:
        last_old_s: From the API server's answer to the arrival of the last call by the old split.
        late_s: From the beginning of the last call by the old split, at its caller, to the time
            since when the router says that the new one is in force.
        known_s: From the API server's answer until the router knew.
        too_early: Calls by the old split that began after the time that the router gave.
        observed: Whether the access log showed the change.
    """

    last_old_s: float
    late_s: float
    known_s: float
    too_early: int
    observed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """What the router said of a change.

    Attributes:
        written_s: When the API server had written it, in seconds since the epoch.
        since_s: Since when the router says that it is in force.
        known_s: When the router knew.
        until_s: Until when calls belong to it.
        observed: Whether the access log showed the change.
        old: The version that has no calls by the new split; empty if both have.
        revision: How the name of the new route ends; needed if both versions have calls.
    """

    written_s: float
    since_s: float
    known_s: float
    until_s: float
    observed: bool
    old: str = ""
    revision: str = ""


def compared(noted: Noted, calls: Sequence[TimedCall]) -> Change:
    """Compares what the router said with what the servers saw.

    Args:
        noted: What the router said.
        calls: All calls.
    """
    followed_old = [
        each
        for each in calls
        if not each.error
        and noted.written_s <= each.received_s < noted.until_s
        and (
            each.version == noted.old
            if noted.old
            else not each.route.endswith(f"@{noted.revision}")
        )
    ]
    last_old_s = max((each.received_s for each in followed_old), default=noted.written_s)
    last_begun_s = max((each.began_s for each in followed_old), default=noted.written_s)
    return Change(
        last_old_s=last_old_s - noted.written_s,
        late_s=noted.since_s - last_begun_s,
        known_s=noted.known_s - noted.written_s,
        too_early=sum(each.began_s > noted.since_s for each in followed_old),
        observed=noted.observed,
    )
