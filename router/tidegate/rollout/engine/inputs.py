"""What a step of the engine takes beside the status, and what it gives."""

import enum

import msgspec

from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.rollout.traffic import Applied, HostTraffic, TrafficSplit

__all__ = ["ApplySplit", "Command", "CommandKind", "Inputs", "Outcome", "Step"]


class CommandKind(enum.Enum):
    """What a user can ask of a rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"
    PROMOTE_FULL = "promote fully"
    ABORT = "abort"
    RETRY = "retry"
    UNDO = "undo"
    UNDO_FORCE = "undo by force"
    SUPERSEDE = "supersede"


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks of a rollout.

    Attributes:
        kind: What to do.
        reason: Why, in the user's words; may be empty.
    """

    kind: CommandKind
    reason: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an `ApplySplit`.

    Attributes:
        id: The action's id.
        applied: The split that is in force; None if the action failed.
        error: Why it failed; empty if it did not.
        permanent: Whether to try again is useless until somebody changes something.
    """

    id: int
    applied: Applied | None = None
    error: str = ""
    permanent: bool = False


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen since the last step.

    Attributes:
        windows: What the traffic did, in the order of time.
        traffic: The host's traffic as it is now; None if it could not be read, and the engine then
            changes nothing.
        traffic_problem: Why it could not be read; empty if it was, or if that is not known.
        traffic_s: When that reading began, in seconds since the epoch. A reading that began before
            the last split came into force says nothing about foreign changes.
        outcome: What became of the last action; None if it has not ended.
        applying: Whether an action of this rollout runs now, so that the split may be either.
        command: What a user asks.
        blocked_by: The other rollout that owns the host, as ``namespace/name``; empty if none does.
    """

    windows: tuple[TrafficWindow, ...] = ()
    traffic: HostTraffic | None = None
    traffic_problem: str = ""
    traffic_s: float = 0.0
    outcome: Outcome | None = None
    applying: bool = False
    command: Command | None = None
    blocked_by: str = ""


class ApplySplit(msgspec.Struct, frozen=True, kw_only=True):
    """The one action: put a split in force. To repeat it does no harm.

    Attributes:
        id: The `desired_id` of the split.
        split: The split.
        release: Whether the rollout gives the host back with this split.
        urgent: Whether it takes traffic from a bad version. It then takes the place of a running
            action with another id, and waits for no proxy that does not answer.
    """

    id: int
    split: TrafficSplit
    release: bool = False
    urgent: bool = False


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a step gives. The status is written before the actions are done.

    Attributes:
        status: The next status.
        events: What to add to the history.
        actions: What to do.
    """

    status: RolloutStatus
    events: tuple[Event, ...] = ()
    actions: tuple[ApplySplit, ...] = ()
