"""Who may lead: decided from a lease's record and a clock of this process alone.

The times in a record come from other machines' clocks, so they decide nothing. A follower counts
the lease's duration from when *it* saw the record change. A leader counts from when it *began* the
write that renewed the lease. Every follower sees that write later than it began, and waits for the
whole duration; the leader stops before. So no two lead at once, whatever the clocks of the machines
say, as long as they run equally fast.
"""

import enum
from dataclasses import dataclass

from tidegate.kube.resources import LeaseSpec

__all__ = ["LeaseSettings", "Move", "Observed", "is_held", "leads_until_s", "next_move", "observe"]


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """The times of a lease; those of Kubernetes' own controllers.

    Attributes:
        duration_s: How long followers wait after the last renewal that they saw.
        renew_deadline_s: How long the leader leads after the last renewal that it began. The rest
            of the duration is the time in which its work must stop.
        retry_s: Between renewals; a follower looks twice as often.
    """

    duration_s: int = 15
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry_s < self.renew_deadline_s < self.duration_s:
            raise ValueError(
                "a lease needs retry_s < renew_deadline_s < duration_s, not"
                f" {self.retry_s:g}, {self.renew_deadline_s:g} and {self.duration_s:g}"
            )


@dataclass(frozen=True, slots=True)
class Observed:
    """A record, and when this process first saw it so.

    Attributes:
        spec: The record.
        seen_s: When, by this process's clock.
    """

    spec: LeaseSpec
    seen_s: float


class Move(enum.Enum):
    """What a process that does not lead does next."""

    WAIT = "wait"
    TAKE = "take"


def observe(before: Observed | None, spec: LeaseSpec, now_s: float) -> Observed:
    """Takes note of a record that was read.

    Args:
        before: What was seen before; None if nothing was.
        spec: The record.
        now_s: The time after it was read.
    """
    if before is not None and before.spec == spec:
        return before
    return Observed(spec, now_s)


def is_held(observed: Observed, now_s: float) -> bool:
    """Whether the holder of a record may still lead."""
    spec = observed.spec
    return bool(spec.holder_identity) and now_s < observed.seen_s + spec.lease_duration_seconds


def next_move(observed: Observed | None, identity: str, now_s: float) -> Move:
    """What a process that does not lead does next.

    Args:
        observed: The record that was seen last, even if the lease is gone by now; None if there
            never was one.
        identity: The process's own.
        now_s: The time.
    """
    if observed is None or observed.spec.holder_identity == identity:
        return Move.TAKE
    return Move.WAIT if is_held(observed, now_s) else Move.TAKE


def leads_until_s(began_s: float, settings: LeaseSettings) -> float:
    """Until when a process leads that wrote its name into the lease.

    Args:
        began_s: When it began the write.
        settings: The times.
    """
    return began_s + settings.renew_deadline_s
