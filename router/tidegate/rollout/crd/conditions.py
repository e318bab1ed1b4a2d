"""The conditions of a rollout, for `kubectl wait` and for tools that read any object.

`Ready` and `Stalled` are those of the kstatus library, by which Flux and kpt judge health: a
rollout is ready when it has ended well, and stalled when it has ended badly or cannot run. The
other conditions answer one question each.
"""

import datetime as dt
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tidegate.evidence.assessment import ObjectiveAssessment, Verdict
from tidegate.evidence.plan import Importance
from tidegate.rollout.engine.status import ENDED, PauseCause, Phase, RolloutStatus

__all__ = [
    "Condition",
    "ConditionType",
    "conditions_of",
    "instant_text",
    "merged",
    "verdict_of",
]


class ConditionType(enum.StrEnum):
    """The questions that conditions answer.

    ``ACCEPTED``: can the spec as it is now be carried out? ``READY``: has the rollout ended well?
    ``STALLED``: has it ended badly, or can it not run? ``PROGRESSING``: does it do something by
    itself? ``PAUSED``: does it wait for somebody to resume it? ``HEALTHY``: is the candidate fine
    so far? ``IN_FORCE``: is the desired split in force? ``FOREIGN_CHANGE``: has somebody else
    changed the traffic, and does the rollout wait because of that? ``PROMOTED``: has the candidate
    all traffic? ``ENDED``: does the rollout do nothing more?
    """

    ACCEPTED = "Accepted"
    READY = "Ready"
    STALLED = "Stalled"
    PROGRESSING = "Progressing"
    PAUSED = "Paused"
    HEALTHY = "Healthy"
    IN_FORCE = "InForce"
    FOREIGN_CHANGE = "ForeignChange"
    PROMOTED = "Promoted"
    ENDED = "Ended"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Attributes:
        kind: Its question.
        holds: The answer; None if it is not known.
        reason: Why, as one CamelCase word.
        message: Why, in words.
    """

    kind: ConditionType
    holds: bool | None
    reason: str
    message: str = ""


_ENDED_WELL: Final = frozenset({Phase.PROMOTED, Phase.COMPLETED})
_ENDED_BADLY: Final = frozenset({Phase.ABORTED, Phase.REFUSED})
_CAUSES: Final = {
    PauseCause.USER: "PausedByUser",
    PauseCause.FOREIGN_CHANGE: "ForeignChange",
    PauseCause.OBJECTIVE: "ObjectiveMissed",
    PauseCause.TIME_UP: "TimeUp",
    PauseCause.HARM_BUDGET: "HarmBudgetSpent",
    PauseCause.SAMPLE_RATIO: "SampleRatioMismatch",
}
_STATUSES: Final = {True: "True", False: "False", None: "Unknown"}
_LONGEST: Final = 1024


def conditions_of(status: RolloutStatus, refusal: str = "") -> tuple[Condition, ...]:
    """Returns the conditions of a status: all but ``Accepted``, which is about the spec.

    Args:
        status: The status.
        refusal: Why the spec, as it is now, is refused; empty if it is right.
    """
    phase, message = status.phase, status.message
    word = phase.value.capitalize()
    is_paused = phase is Phase.PAUSED
    cause = status.pause_cause if is_paused else None
    has_ended = phase in ENDED
    is_stuck = phase in _ENDED_BADLY or bool(refusal)
    foreign = cause is PauseCause.FOREIGN_CHANGE
    return (
        Condition(ConditionType.READY, phase in _ENDED_WELL and not refusal, word, message),
        Condition(
            *(ConditionType.STALLED, is_stuck, "SpecRefused" if refusal else word),
            refusal or (message if is_stuck else ""),
        ),
        Condition(ConditionType.PROGRESSING, not has_ended and not is_paused, word),
        Condition(
            *(ConditionType.PAUSED, is_paused, "NotPaused" if cause is None else _CAUSES[cause]),
            message if is_paused else "",
        ),
        _health(status),
        _in_force(status),
        Condition(
            *(ConditionType.FOREIGN_CHANGE, foreign, "Changed" if foreign else "Unchanged"),
            message if foreign else "",
        ),
        Condition(ConditionType.PROMOTED, phase is Phase.PROMOTED, word),
        Condition(ConditionType.ENDED, has_ended, word),
    )


def merged(
    conditions: Iterable[Condition],
    before: Iterable[Mapping[str, Any]],
    generation: int,
    now_s: float,
) -> list[dict[str, Any]]:
    """Returns conditions as an object has them. Their times change only with their statuses.

    Args:
        conditions: The conditions.
        before: The conditions that the object has.
        generation: The generation of the spec that they are about.
        now_s: The time, in seconds since the epoch.
    """
    earlier = {each.get("type"): each for each in before}
    found = []
    for each in conditions:
        kind, status = each.kind.value, _STATUSES[each.holds]
        last = earlier.get(kind, {})
        since = last.get("lastTransitionTime") if last.get("status") == status else None
        found.append(
            {
                "type": kind,
                "status": status,
                "reason": each.reason,
                "message": each.message[:_LONGEST],
                "observedGeneration": generation,
                "lastTransitionTime": since or instant_text(now_s, decimals=0),
            }
        )
    return found


def instant_text(time_s: float, decimals: int = 6) -> str:
    """Returns a time as Kubernetes writes it, such as ``2026-05-01T12:00:00.250000Z``.

    Args:
        time_s: The time, in seconds since the epoch.
        decimals: 6 for microseconds, 0 for seconds.
    """
    moment = dt.datetime.fromtimestamp(time_s, dt.UTC)
    kind = "microseconds" if decimals else "seconds"
    return moment.replace(tzinfo=None).isoformat(timespec=kind) + "Z"


def verdict_of(status: RolloutStatus) -> str:
    """Returns what the evidence says in a word: of the objectives that decide, for all candidates.

    It is empty before there is any evidence.
    """
    deciding = _deciding(status)
    for verdict in (Verdict.MISSED, Verdict.NO_DATA, Verdict.OPEN, Verdict.MET):
        if any(each.verdict is verdict for each in deciding):
            return str(verdict.value)
    return ""


def _deciding(status: RolloutStatus) -> list[ObjectiveAssessment]:
    return [
        each
        for found in status.assessments.values()
        for each in found.objectives
        if each.importance is not Importance.REPORT
    ]


def _health(status: RolloutStatus) -> Condition:
    verdict = verdict_of(status)
    missed = [each.detail for each in _deciding(status) if each.verdict is Verdict.MISSED]
    harmed = [each.reason for each in status.assessments.values() if each.abort]
    if missed or harmed:
        words = "; ".join([*harmed, *missed])
        return Condition(ConditionType.HEALTHY, False, "ObjectiveMissed", words)
    if verdict in ("", Verdict.NO_DATA.value):
        return Condition(ConditionType.HEALTHY, None, "NoData")
    reason = "ObjectivesMet" if verdict == Verdict.MET.value else "NothingProven"
    return Condition(ConditionType.HEALTHY, True, reason)


def _in_force(status: RolloutStatus) -> Condition:
    if status.desired is None:
        return Condition(ConditionType.IN_FORCE, None, "NothingDesired")
    if status.phase is Phase.PAUSED and status.pause_cause is PauseCause.FOREIGN_CHANGE:
        return Condition(ConditionType.IN_FORCE, False, "ForeignChange", status.message)
    if status.is_settled:
        return Condition(ConditionType.IN_FORCE, True, "InForce", str(status.desired))
    reason = "Failing" if status.apply_failures else "Applying"
    return Condition(ConditionType.IN_FORCE, False, reason, str(status.desired))
