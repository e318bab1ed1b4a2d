"""The interface of a store: it keeps rollouts, their statuses and their histories.

`SqliteStore` keeps them in a file on a laptop. On a cluster they are in the `Rollout` objects
themselves.
"""

from typing import Protocol

import msgspec

from tidegate.rollout.engine.history import Event
from tidegate.rollout.engine.samples import Sample
from tidegate.rollout.engine.status import RolloutStatus
from tidegate.rollout.spec.model import Rollout

__all__ = [
    "Delete",
    "Put",
    "PutStatus",
    "RolloutStore",
    "Stored",
    "Write",
    "from_json",
    "to_json",
]


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Writes a rollout, in place of an earlier one.

    Attributes:
        rollout: The rollout.
        successor: The rollout that replaces it once its traffic is back at the baseline.
        file: The file that it came from; empty if it came from a call.
        file_rollout: The rollout as that file held it, as JSON; empty if it came from a call.
    """

    rollout: Rollout
    successor: Rollout | None = None
    file: str = ""
    file_rollout: str = ""


class Stored(Put, frozen=True, kw_only=True):
    """A rollout as the store has it.

    Attributes:
        status: Its status.
    """

    status: RolloutStatus


class PutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Writes a status, and adds events to the history.

    Attributes:
        key: The rollout's.
        status: The status.
        events: The events.
        sample: What the evidence said, for reports; it is kept if the series needs one.
        command_id: The id of the command that the status carries out; empty for none. A store that
            commands reach through its own objects keeps it, so that none is carried out twice.
    """

    key: str
    status: RolloutStatus
    events: tuple[Event, ...] = ()
    sample: Sample | None = None
    command_id: str = ""


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Removes a rollout with its status and history.

    Attributes:
        key: The rollout's.
    """

    key: str


Write = Put | PutStatus | Delete


class RolloutStore(Protocol):
    """Keeps rollouts, statuses and histories."""

    async def load(self) -> tuple[Stored, ...]:
        """Returns all rollouts, by key.

        Raises:
            StoreError: The store is damaged or does not answer.
        """
        ...

    async def history(self, key: str, after: int = 0) -> tuple[Event, ...]:
        """Returns the events of a rollout, in order. A store may have forgotten the oldest.

        Args:
            key: The rollout's.
            after: Only events with a larger number.

        Raises:
            StoreError: The store is damaged or does not answer.
        """
        ...

    async def samples(self, key: str) -> tuple[Sample, ...]:
        """Returns what the evidence about a rollout said over time, in order.

        Raises:
            StoreError: The store is damaged or does not answer.
        """
        ...

    async def commit(self, *writes: Write) -> None:
        """Writes all or nothing; returns once it lasts.

        A caller that is cancelled meanwhile does not know whether it was written.

        Raises:
            StoreError: Nothing was written.
        """
        ...


def to_json(rollout: Rollout) -> str:
    """Returns a rollout as JSON, as the file format writes it."""
    return rollout.model_dump_json(by_alias=True)


def from_json(text: str) -> Rollout:
    """Returns the rollout that JSON holds.

    Raises:
        ValueError: The text holds none.
    """
    return Rollout.model_validate_json(text)
