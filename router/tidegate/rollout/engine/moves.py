"""The moves of a rollout: enter a stage, pause, go on, promote, abort, complete.

Each move is one event and, where traffic changes, a new split to bring into force. `Moves` also
gives the parts of the rollout that the rules of the engine look at.
"""

import msgspec

from tidegate.evidence.assessment import Assessment, ObjectiveAssessment, Verdict
from tidegate.evidence.plan import Importance
from tidegate.rollout.engine.draft import Draft
from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.stages import (
    End,
    GateKind,
    StagePlan,
    baseline_split,
    plan_of,
    ramp_split,
    version_split,
)
from tidegate.rollout.engine.status import PauseCause, Phase, RolloutStatus
from tidegate.rollout.spec.model import Rollout, RolloutSpec
from tidegate.rollout.spec.strategies import AfterTest, Ramp
from tidegate.rollout.traffic import TrafficSplit

__all__ = ["SAMPLE_RATIO", "Moves", "numbers_of", "pausing"]

SAMPLE_RATIO = "sampleRatio"
"""What `RolloutStatus.accepted` calls a sample-ratio mismatch."""


class Moves:
    """The moves of one step.

    Args:
        rollout: The rollout.
        draft: The status in the making.
    """

    def __init__(self, rollout: Rollout, draft: Draft) -> None:
        self.rollout = rollout
        self.draft = draft

    @property
    def status(self) -> RolloutStatus:
        """The status so far."""
        return self.draft.status

    @property
    def now_s(self) -> float:
        """The time of the step."""
        return self.draft.now_s

    @property
    def spec(self) -> RolloutSpec:
        """What the rollout does."""
        return self.rollout.spec

    @property
    def original(self) -> TrafficSplit:
        """The split that the rollout found. Every phase after PENDING has one."""
        original = self.status.original
        assert original is not None  # noqa: S101 - `starting` sets it
        return original

    @property
    def plan(self) -> StagePlan:
        """The stages."""
        return plan_of(self.spec, self.original)

    @property
    def ramp(self) -> Ramp:
        """The ramp; only a rollout with its gate has one."""
        canary = self.spec.strategy.canary
        assert canary is not None  # noqa: S101
        assert canary.ramp is not None  # noqa: S101
        return canary.ramp

    @property
    def assessment(self) -> Assessment | None:
        """What the evidence says about the candidate; the first one of several."""
        return self.status.assessments.get(self.spec.candidate_names[0])

    def next_stage(self, why: str, numbers: dict[str, float] | None = None) -> None:
        """Enters the next stage, or does what follows the last one."""
        plan = self.plan
        if self.status.stage + 1 < len(plan.stages):
            self.enter_stage(self.status.stage + 1, why, numbers)
        elif plan.end is End.PROMOTE:
            self.promote(why, numbers)
        else:
            self.complete(why)

    def enter_stage(self, number: int, why: str, numbers: dict[str, float] | None = None) -> None:
        """Enters a stage. One with the split in force begins at once."""
        plan, status = self.plan, self.status
        stage = plan.stages[number]
        changes: dict[str, object] = {"stage": number, "reason": "StageEntered"}
        if number and plan.stages[number - 1].gate.kind is GateKind.APPROVAL:
            changes["clock_s"] = self._clock_without_this_stage()
        if stage.gate.kind is GateKind.RAMP:
            changes["ramp_weight"] = self.ramp.start_weight
        if status.is_settled and status.desired is not None and stage.split.same_as(status.desired):
            changes["stage_since_s"] = self.now_s
        else:
            changes |= self._wants(stage.split) | {"stage_since_s": None}
        text = f"stage {number + 1} of {len(plan.stages)}: {stage} ({why})"
        self.draft.record(EventKind.STAGE_ENTERED, text, numbers, **changes)

    def change_weight(self, weight: float, why: str, numbers: dict[str, float]) -> None:
        """Gives the candidate of a ramp another weight."""
        split = ramp_split(self.spec, self.original, weight)
        changes = self._wants(split) | {"ramp_weight": weight}
        self.draft.record(EventKind.SPLIT_DECIDED, f"{split}: {why}", numbers, **changes)

    def promote(
        self, why: str, numbers: dict[str, float] | None = None, *, forced: bool = False
    ) -> None:
        """Gives the candidate all traffic."""
        candidate = self.spec.candidate_names[0]
        split = version_split(self.spec, self.original, candidate)
        message = f"{candidate} gets all traffic: {why}"
        self._end(
            *(Phase.PROMOTING, split, EventKind.PROMOTING, message, "Promoting", numbers),
            forced=forced,
        )

    def abort(
        self,
        why: str,
        reason: str,
        numbers: dict[str, float] | None = None,
        *,
        superseding: bool = False,
    ) -> None:
        """Gives the baseline all traffic; a rollout that has not begun ends at once."""
        if self.status.original is None:
            phase = Phase.SUPERSEDED if superseding else Phase.ABORTED
            kind = EventKind.SUPERSEDED if superseding else EventKind.ABORTED
            ended_s = self.now_s
            self.draft.record(
                kind, why, numbers, phase=phase, reason=reason, decision=why, ended_s=ended_s
            )
            return
        split = baseline_split(self.spec, self.original)
        self._end(
            *(Phase.ABORTING, split, EventKind.ABORTING, why, reason, numbers),
            superseding=superseding,
        )

    def undo(self, why: str) -> None:
        """Puts the traffic back to what the rollout found."""
        message = f"undone by a user{why}; traffic goes back to {self.original}"
        self._end(Phase.ABORTING, self.original, EventKind.UNDONE, message, "Undone")

    def complete(self, why: str) -> None:
        """Ends a comparison."""
        winner = self._winner()
        ab = self.spec.strategy.ab
        split = None
        version = self.spec.baseline
        if ab is not None and ab.then is AfterTest.WINNER:
            version = winner or version
        elif ab is not None and ab.then is AfterTest.KEEP and self.status.desired is not None:
            # Users stay where they are; testers are the rollout's own.
            split = msgspec.structs.replace(self.status.desired, testers=self.original.testers)
        split = split or version_split(self.spec, self.original, version)
        if ab is None:
            names = winner or " and ".join(self.spec.candidate_names)
            found = f"{names} {'met' if winner else 'did not meet'} every objective"
        else:
            found = f"the winner is {winner}" if winner else "there is no winner"
        message = f"{why}; {found}; traffic then: {split}"
        self._end(
            *(Phase.COMPLETING, split, EventKind.COMPLETING, message, "Completing"), winner=winner
        )

    def pause(
        self,
        cause: PauseCause,
        message: str,
        reason: str,
        kind: EventKind = EventKind.PAUSED,
        numbers: dict[str, float] | None = None,
    ) -> None:
        """Holds the split. A ramp whose budget is spent takes the candidate's traffic away."""
        began_s = self.status.pause_began_s
        changes: dict[str, object] = {
            "phase": Phase.PAUSED,
            "reason": reason,
            "pause_cause": cause,
            "pause_began_s": self.now_s if began_s is None else began_s,
        }
        if cause is PauseCause.HARM_BUDGET:
            split = ramp_split(self.spec, self.original, 0.0)
            changes |= self._wants(split) | {"ramp_weight": 0.0}
        self.draft.record(kind, message, numbers, **changes)

    def resume(self, why: str) -> None:
        """Goes on after a pause. What would pause the rollout again at once is accepted."""
        status, cause = self.status, self.status.pause_cause
        began_s = self.now_s if status.pause_began_s is None else status.pause_began_s
        changes: dict[str, object] = {
            "phase": Phase.PROGRESSING,
            "reason": "Resumed",
            "pause_cause": None,
            "pause_began_s": None,
            "accepted": tuple(dict.fromkeys([*status.accepted, *self._concerns()])),
        }
        if status.stage_since_s is not None:
            # The pause does not count, as far as it lies within the stage.
            lost_s = self.now_s - max(began_s, status.stage_since_s)
            changes["stage_since_s"] = status.stage_since_s + lost_s
        if status.clock_s is not None:
            again = cause is PauseCause.TIME_UP
            changes["clock_s"] = self.now_s if again else status.clock_s + self.now_s - began_s
        if cause is PauseCause.FOREIGN_CHANGE:
            # The stage begins again: what happened meanwhile was not its split.
            changes |= {"desired_id": status.desired_id + 1, "stage_since_s": None}
        elif cause is PauseCause.HARM_BUDGET:
            weight = self.ramp.start_weight
            changes |= self._wants(ramp_split(self.spec, self.original, weight))
            changes |= {"ramp_weight": weight, "harm_forgiven": status.harm_spent}
        self.draft.record(EventKind.RESUMED, f"resumed by a user{why}", None, **changes)

    def _clock_without_this_stage(self) -> float | None:
        status = self.status
        if status.clock_s is None or status.stage_since_s is None:
            return status.clock_s
        return status.clock_s + max(0.0, self.now_s - status.stage_since_s)

    def _wants(self, split: TrafficSplit) -> dict[str, object]:
        return {"desired": split, "desired_id": self.status.desired_id + 1}

    def _end(
        self,
        phase: Phase,
        split: TrafficSplit,
        kind: EventKind,
        message: str,
        reason: str,
        numbers: dict[str, float] | None = None,
        **changes: object,
    ) -> None:
        self.draft.note(apply_failures=0, next_try_s=0.0)
        changes |= self._wants(split) | {
            "phase": phase,
            "reason": reason,
            "decision": message,
            "pause_cause": None,
            "pause_began_s": None,
            "ended_s": None,
        }
        self.draft.record(kind, message, numbers, **changes)

    def _concerns(self) -> list[str]:
        found: list[str] = []
        for assessment in self.status.assessments.values():
            found += [each.metric for each in pausing(assessment)]
            if assessment.sample_ratio.mismatch:
                found.append(SAMPLE_RATIO)
        return found

    def _winner(self) -> str:
        """The only candidate that meets every objective; empty if none or several do."""
        met = [name for name, each in self.status.assessments.items() if each.promote]
        return met[0] if len(met) == 1 else ""


def pausing(assessment: Assessment) -> list[ObjectiveAssessment]:
    """Returns the objectives of importance pause that are proven to be missed.

    If only their evidence together proves it, these are all of them that have such evidence.
    """
    if not assessment.pause:
        return []
    watched = [each for each in assessment.objectives if each.importance is Importance.PAUSE]
    missed = [each for each in watched if each.verdict is Verdict.MISSED]
    return missed or [each for each in watched if each.harm_e > 1.0]


def numbers_of(assessment: Assessment) -> dict[str, float]:
    """Returns the numbers of a decision by name, for the history."""
    numbers = {
        "harm_e": assessment.harm_e,
        "harm_threshold": assessment.harm_threshold,
        "extra_bad_requests": assessment.extra_bad_requests,
    }
    for each in assessment.objectives:
        numbers[f"{each.metric}: harm e"] = each.harm_e
        numbers[f"{each.metric}: safe e"] = each.safe_e
        for name in ("effect", "effect_low", "effect_high"):
            value = getattr(each, name)
            if value is not None:
                numbers[f"{each.metric}: {name}"] = value
    return numbers
