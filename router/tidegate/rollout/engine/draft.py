"""The next status in the making: every change goes through an event, so the history replays.

Some fields change with every look at the traffic; `VOLATILE` names them. They are not in the
history, which would otherwise grow without end.
"""

from typing import Any, Final

import msgspec

from tidegate.rollout.engine.history import Event, EventKind
from tidegate.rollout.engine.status import RolloutStatus

__all__ = ["VOLATILE", "Draft"]

VOLATILE: Final = frozenset(
    {
        "apply_failures",
        "assessments",
        "counted_s",
        "counted_until_s",
        "evidence",
        "harm_spent",
        "lost_requests",
        "message",
        "next_try_s",
        "observed",
        "requests_per_s",
    }
)
"""The fields of the status that change without an event."""


class Draft:
    """A status that is being changed.

    Args:
        status: The status before the step.
        now_s: The time of the step, in seconds since the epoch.

    Attributes:
        status: The status so far.
        events: The events so far.
        now_s: The time of the step.
    """

    def __init__(self, status: RolloutStatus, now_s: float) -> None:
        self.status = status
        self.events: list[Event] = []
        self.now_s = now_s

    def note(self, **changes: Any) -> None:
        """Changes fields that are not in the history."""
        assert changes.keys() <= VOLATILE  # noqa: S101 - a mistake in the engine
        self.status = msgspec.structs.replace(self.status, **changes)

    def record(
        self,
        kind: EventKind,
        message: str,
        numbers: dict[str, float] | None = None,
        **changes: Any,
    ) -> None:
        """Adds an event and makes its changes. The event's message becomes the status's."""
        number = self.status.events + 1
        self.status = msgspec.structs.replace(
            self.status, message=message, events=number, **changes
        )
        self.events.append(
            Event(
                number=number,
                time_s=self.now_s,
                kind=kind,
                message=message,
                numbers=numbers or {},
                changes=msgspec.to_builtins(changes),
            )
        )

    def explain(self, reason: str, message: str) -> None:
        """Says what the rollout waits for; an event only if the reason is a new one."""
        if self.status.reason != reason:
            self.record(EventKind.WAITING, message, reason=reason)
        else:
            self.note(message=message)
