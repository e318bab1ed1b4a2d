"""The status of a rollout: everything that the engine remembers between two steps."""

import enum

import msgspec

from tidegate.evidence.assessment import Assessment
from tidegate.evidence.state import EvidenceState
from tidegate.rollout.traffic import TrafficSplit

__all__ = ["ACTIVE", "DECIDED", "ENDED", "RUNNING", "PauseCause", "Phase", "RolloutStatus"]


class Phase(enum.Enum):
    """Where a rollout is.

    ``PENDING``: it has not touched traffic. ``PROGRESSING``: it gives the candidate traffic and
    watches. ``PAUSED``: it holds the split until somebody resumes it. ``PROMOTING``,
    ``ABORTING``, ``COMPLETING``: it has decided and brings the last split into force. The others
    are the ends: the candidate has all traffic; the baseline has it; a comparison has ended; the
    rollout was refused; a newer one has replaced it.
    """

    PENDING = "pending"
    PROGRESSING = "progressing"
    PAUSED = "paused"
    PROMOTING = "promoting"
    ABORTING = "aborting"
    COMPLETING = "completing"
    PROMOTED = "promoted"
    ABORTED = "aborted"
    COMPLETED = "completed"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


ENDED = frozenset({Phase.PROMOTED, Phase.ABORTED, Phase.COMPLETED, Phase.REFUSED, Phase.SUPERSEDED})
"""The phases in which a rollout does nothing more by itself."""

RUNNING = frozenset({Phase.PROGRESSING, Phase.PAUSED})
"""The phases in which nothing is decided yet."""

DECIDED = frozenset({Phase.PROMOTING, Phase.ABORTING, Phase.COMPLETING})
"""The phases that bring the last split into force."""

ACTIVE = RUNNING | DECIDED
"""The phases in which a rollout owns the traffic of its host."""


class PauseCause(enum.Enum):
    """Why a rollout is paused."""

    USER = "a user paused it"
    FOREIGN_CHANGE = "somebody else changed the traffic"
    OBJECTIVE = "an objective of importance pause is missed"
    TIME_UP = "the time is up and nothing is proven"
    HARM_BUDGET = "the harm budget is spent"
    SAMPLE_RATIO = "the versions do not get the shares that they are meant to get"


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the engine remembers of a rollout.

    Times are in seconds since the epoch.

    Attributes:
        generation: The generation of the spec that this status is about; it grows with each
            change of the spec.
        phase: Where the rollout is.
        decision: What ended the rollout, in words; empty before that.
        reason: Why, as one CamelCase word for programs, such as ``WaitingForEvidence``.
        message: Why, in words with the numbers.
        stage: The current stage, from 0; see `tidegate.rollout.engine.stages`.
        stage_since_s: When the stage's split came into force; None before that.
        started_s: When the rollout first changed traffic; None before that.
        clock_s: When the time of `decide.within` began. It begins again when somebody resumes a
            rollout whose time was up, and leaves out pauses.
        pause_began_s: When the pause began; None if it is not paused.
        pause_cause: Why it is paused; None if it is not.
        ended_s: When it ended; None before that.
        original: The split that it found.
        desired: The split that it wants; None before it has decided one.
        desired_id: Grows with each new desired split.
        in_force_id: The `desired_id` of the last split that came into force.
        in_force_since_s: Since when that split is in force.
        observed: The split that was read last.
        apply_failures: How often in a row the desired split could not be put in force.
        next_try_s: Before this time the engine does not try again.
        reasserts: How often the rollout has put its split back within a while.
        reasserted_s: When that while began.
        counted_s: The end of the time that `requests_per_s` covers.
        counted_until_s: Before when requests are in `evidence`; 0 if nobody knows. A router that
            goes on with the rollout counts those that began later.
        lost_requests: About how many requests are not in `evidence` because their records were
            lost.
        forced: Whether a user promoted the rollout whatever the evidence says.
        evidence: What is remembered of the traffic, by candidate.
        assessments: What the evidence says, by candidate.
        harm_spent: Extra bad requests so far, by the best estimate.
        harm_forgiven: Extra bad requests that do not count, because somebody resumed the rollout
            after them.
        ramp_weight: The candidate's share of a ramp in percent; 0 before it begins.
        requests_per_s: The host's requests per second, by a moving average.
        accepted: The objectives, and ``sampleRatio``, that somebody accepted by resuming.
        superseding: Whether the rollout ends because a newer one replaces it.
        winner: The version that an A/B test found; empty if none.
        events: How many events the history has.
    """

    generation: int = 1
    phase: Phase = Phase.PENDING
    reason: str = "New"
    message: str = ""
    decision: str = ""
    stage: int = 0
    stage_since_s: float | None = None
    started_s: float | None = None
    clock_s: float | None = None
    pause_began_s: float | None = None
    pause_cause: PauseCause | None = None
    ended_s: float | None = None
    original: TrafficSplit | None = None
    desired: TrafficSplit | None = None
    desired_id: int = 0
    in_force_id: int = 0
    in_force_since_s: float | None = None
    observed: TrafficSplit | None = None
    apply_failures: int = 0
    next_try_s: float = 0.0
    reasserts: int = 0
    reasserted_s: float | None = None
    counted_s: float | None = None
    counted_until_s: float = 0.0
    lost_requests: int = 0
    forced: bool = False
    evidence: dict[str, EvidenceState] = {}
    assessments: dict[str, Assessment] = {}
    harm_spent: float = 0.0
    harm_forgiven: float = 0.0
    ramp_weight: float = 0.0
    requests_per_s: float = 0.0
    accepted: tuple[str, ...] = ()
    superseding: bool = False
    winner: str = ""
    events: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether the desired split is in force."""
        return self.in_force_id == self.desired_id
