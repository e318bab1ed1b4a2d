"""The history of a rollout: what was seen, what was decided, and why.

The status changes only through these events, so a replay of the history gives the same status.
Evidence alone is not in the history: it changes with every window, and each decision has the
numbers that made it.
"""

import enum

import msgspec

from tidegate.rollout.engine.status import RolloutStatus

__all__ = ["Event", "EventKind", "replay"]


class EventKind(enum.Enum):
    """What happened."""

    STARTED = "Started"
    REFUSED = "Refused"
    SPLIT_DECIDED = "SplitDecided"
    SPLIT_IN_FORCE = "SplitInForce"
    SPLIT_FAILED = "SplitFailed"
    STAGE_ENTERED = "StageEntered"
    WAITING = "Waiting"
    PAUSED = "Paused"
    RESUMED = "Resumed"
    FOREIGN_CHANGE = "ForeignChange"
    ADOPTED = "Adopted"
    PROMOTING = "Promoting"
    ABORTING = "Aborting"
    COMPLETING = "Completing"
    PROMOTED = "Promoted"
    ABORTED = "Aborted"
    COMPLETED = "Completed"
    SUPERSEDED = "Superseded"
    RETRIED = "Retried"
    UNDONE = "Undone"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of the history.

    Attributes:
        number: Its place in the history, from 1, without gaps.
        time_s: When it happened, in seconds since the epoch.
        kind: What happened.
        message: What happened and why, in words with the numbers.
        numbers: The numbers that made the decision, by name.
        changes: The fields of the status that the event changed, as plain values.
    """

    number: int
    time_s: float
    kind: EventKind
    message: str
    numbers: dict[str, float] = {}
    changes: dict[str, object] = {}


def replay(status: RolloutStatus, events: tuple[Event, ...]) -> RolloutStatus:
    """Returns the status after events. Fields that change without an event stay as they are.

    Raises:
        ValueError: The events do not follow the status.
    """
    for event in events:
        if event.number != status.events + 1:
            raise ValueError(f"event {event.number} follows {status.events} events; one is missing")
        plain = msgspec.to_builtins(status) | event.changes | {"events": event.number}
        status = msgspec.convert(plain, RolloutStatus)
    return status
