"""One step of a rollout: ``advance(rollout, status, inputs, now) -> Step``, a pure function.

A step does these things, in this order:

1. A user's command is carried out.
2. A change of the traffic by somebody else is noticed.
3. The outcome of the last action is taken in.
4. The windows of traffic go into the evidence. Evidence of harm aborts the rollout, also while it
   is paused or its promotion is on the way.
5. The stage's gate is tried.

The step returns the split to bring into force until that has happened, so a crash between the
status and the action only repeats the action.
"""

from typing import Final

from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.window import TrafficWindow
from tidegate.rollout.engine.commands import refusal
from tidegate.rollout.engine.draft import VOLATILE, Draft
from tidegate.rollout.engine.foreign_changes import notice_foreign_change
from tidegate.rollout.engine.gates import try_gate
from tidegate.rollout.engine.history import EventKind
from tidegate.rollout.engine.inputs import ApplySplit, Command, CommandKind, Inputs, Step
from tidegate.rollout.engine.moves import Moves, numbers_of
from tidegate.rollout.engine.outcomes import LONGEST_RETRY_S, take_outcome
from tidegate.rollout.engine.starting import start
from tidegate.rollout.engine.status import DECIDED, ENDED, PauseCause, Phase, RolloutStatus
from tidegate.rollout.spec.model import Rollout

__all__ = ["advance"]

# The rate of requests is averaged with this half-life.
_RATE_HALF_LIFE_S: Final = 10.0


def advance(rollout: Rollout, status: RolloutStatus, inputs: Inputs, now_s: float) -> Step:
    """Takes one step.

    Args:
        rollout: The rollout.
        status: Its status.
        inputs: What was seen since the last step.
        now_s: The time, in seconds since the epoch.

    Returns:
        The next status, what happened, and what to do. The caller writes the status and the events
        before it acts. A command that the phase does not allow changes nothing; see
        `tidegate.rollout.engine.commands.refusal`.
    """
    draft = Draft(status, now_s)
    moves = Moves(rollout, draft)
    if inputs.traffic is not None:
        draft.note(observed=inputs.traffic.split)
    if inputs.command is not None:
        _command(moves, inputs.command, inputs.blocked_by)
    if draft.status.phase is Phase.PENDING:
        if inputs.outcome is not None:
            take_outcome(moves, inputs.outcome)
        if draft.status.phase is Phase.PENDING:
            start(moves, inputs)
    elif draft.status.phase not in ENDED:
        _go_on(moves, inputs)
    return _step(draft, inputs)


def _go_on(moves: Moves, inputs: Inputs) -> None:
    changed = notice_foreign_change(moves, inputs)
    if inputs.outcome is not None:
        take_outcome(moves, inputs.outcome)
    phase = moves.status.phase
    if phase not in (Phase.PROGRESSING, Phase.PAUSED, Phase.PROMOTING) or moves.status.forced:
        return
    if not changed:
        _take_windows(moves, inputs.windows)
    if not _aborts_for_harm(moves):
        try_gate(moves)


def _step(draft: Draft, inputs: Inputs) -> Step:
    status = draft.status
    # Traffic leaves a bad version now, whatever an action of an earlier split still waits for.
    urgent = status.phase is Phase.ABORTING or status.pause_cause is PauseCause.HARM_BUDGET
    applying = inputs.applying and not urgent
    # A longer wait comes from a clock that was set back.
    retries_later = 0 < status.next_try_s - draft.now_s <= LONGEST_RETRY_S
    waits = applying or retries_later or status.phase in ENDED
    actions: tuple[ApplySplit, ...] = ()
    if status.desired is not None and not status.is_settled and not waits:
        release = status.phase in DECIDED or status.phase is Phase.PENDING
        action = ApplySplit(
            id=status.desired_id, split=status.desired, release=release, urgent=urgent
        )
        actions = (action,)
    return Step(status=status, events=tuple(draft.events), actions=actions)


def _command(moves: Moves, command: Command, blocked_by: str) -> None:
    observed = moves.status.observed
    if refusal(moves.rollout, moves.status, command.kind, blocked_by, observed):
        return
    why = f": {command.reason}" if command.reason else ""
    match command.kind:
        case CommandKind.PAUSE:
            moves.pause(PauseCause.USER, f"paused by a user{why}", "PausedByUser")
        case CommandKind.RESUME:
            moves.resume(why)
        case CommandKind.PROMOTE:
            moves.next_stage(f"approved by a user{why}")
        case CommandKind.PROMOTE_FULL:
            moves.promote(f"promoted by a user{why}, whatever the evidence says", forced=True)
        case CommandKind.ABORT:
            moves.abort(f"aborted by a user{why}", "AbortedByUser")
        case CommandKind.SUPERSEDE:
            moves.abort("a newer rollout replaces this one", "Superseded", superseding=True)
        case CommandKind.RETRY:
            _retry(moves, why)
        case CommandKind.UNDO | CommandKind.UNDO_FORCE:
            moves.undo(why)


def _retry(moves: Moves, why: str) -> None:
    """Begins again: every field but the generation and the history is as in a new rollout."""
    fresh = RolloutStatus(generation=moves.status.generation)
    changes = {
        name: getattr(fresh, name)
        for name in RolloutStatus.__struct_fields__
        if name not in ("events", "desired_id", "in_force_id")
    }
    # The ids go on, so that a late outcome of an earlier split is not taken for one of these.
    changes["in_force_id"] = moves.status.desired_id
    moves.draft.note(**{name: changes.pop(name) for name in VOLATILE})
    moves.draft.record(EventKind.RETRIED, f"begins again, without evidence{why}", **changes)


def _take_windows(moves: Moves, windows: tuple[TrafficWindow, ...]) -> None:
    if not windows:
        return
    status, spec = moves.status, moves.spec
    evidence, assessments = dict(status.evidence), dict(status.assessments)
    for name in spec.candidate_names:
        plan = spec.evidence_plan(name)
        state = evidence.get(name) or begin(plan)
        for window in windows:
            state = observe(plan, state, window)
        evidence[name] = state
        assessments[name] = assess(plan, state)
    # Windows of several epochs cover the same time, so their requests are added first.
    latest_s = max(each.end_s for each in windows)
    before_s = min(each.start_s for each in windows) if not status.counted_s else status.counted_s
    rate, length_s = status.requests_per_s, latest_s - before_s
    if length_s > 0:
        kept = 0.5 ** (length_s / _RATE_HALF_LIFE_S) if rate else 0.0
        rate = kept * rate + (1 - kept) * sum(each.requests for each in windows) / length_s
    harm = max(each.extra_bad_requests for each in assessments.values())
    moves.draft.note(
        evidence=evidence,
        assessments=assessments,
        harm_spent=max(0.0, harm),
        requests_per_s=rate,
        counted_s=max(latest_s, before_s),
        counted_until_s=max(status.counted_until_s, *(each.counted_until_s for each in windows)),
        lost_requests=status.lost_requests + sum(each.lost for each in windows),
    )


def _aborts_for_harm(moves: Moves) -> bool:
    for assessment in moves.status.assessments.values():
        if assessment.abort:
            moves.abort(assessment.reason, "HarmProven", numbers_of(assessment))
            return True
    return False
