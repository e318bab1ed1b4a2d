"""The gates: what opens them, and what a rollout waits for while they are shut."""

from tidegate.evidence.assessment import Assessment, Verdict
from tidegate.evidence.plan import Importance
from tidegate.rollout.engine.moves import SAMPLE_RATIO, Moves, numbers_of, pausing
from tidegate.rollout.engine.ramp import next_weight
from tidegate.rollout.engine.stages import End, Gate, GateKind, StagePlan
from tidegate.rollout.engine.status import PauseCause, Phase
from tidegate.rollout.spec.model import Otherwise
from tidegate.rollout.spec.quantities import duration_text

__all__ = ["try_gate"]


def try_gate(moves: Moves) -> None:
    """Pauses a rollout that has a reason to, opens its gate, or says what it waits for."""
    status = moves.status
    if status.phase is not Phase.PROGRESSING or _pauses(moves):
        return
    plan = moves.plan
    gate = plan.stages[status.stage].gate
    # A split that cannot be put in force must not make the rollout wait for ever.
    if status.is_settled and _opens(moves, gate):
        return
    if status.is_settled and gate.kind is GateKind.APPROVAL:
        # A person's time is not the evidence's.
        return
    clock_s = moves.now_s if status.clock_s is None else status.clock_s
    if plan.time_limit_s is not None and moves.now_s - clock_s >= plan.time_limit_s:
        _time_is_up(moves, plan)


def _pauses(moves: Moves) -> bool:
    accepted = moves.status.accepted
    for name, assessment in moves.status.assessments.items():
        missed = [each for each in pausing(assessment) if each.metric not in accepted]
        if missed:
            words = "; ".join(f"{each.metric}: {each.detail}" for each in missed)
            numbers = numbers_of(assessment)
            moves.pause(
                PauseCause.OBJECTIVE, f"{name}: {words}", "ObjectiveMissed", numbers=numbers
            )
            return True
        ratio = assessment.sample_ratio
        if ratio.mismatch and SAMPLE_RATIO not in accepted:
            observed, intended = ratio.observed or 0.0, ratio.intended or 0.0
            moves.pause(
                PauseCause.SAMPLE_RATIO,
                f"{name} gets {observed:.1%} of the requests and was meant to get {intended:.1%},"
                " so the comparison cannot be trusted: look for pinned connections, a sticky rule,"
                " clients that pass the proxy, or requests that do not end",
                "SampleRatioMismatch",
                numbers={"observed": observed, "intended": intended, "e": ratio.e},
            )
            return True
    return False


def _opens(moves: Moves, gate: Gate) -> bool:
    """Goes on if the gate is open; else says what the rollout waits for."""
    status, draft = moves.status, moves.draft
    since_s = moves.now_s if status.stage_since_s is None else status.stage_since_s
    length_s = gate.seconds or 0.0
    left_s = max(0.0, length_s - (moves.now_s - since_s))
    match gate.kind:
        case GateKind.NONE:
            moves.next_stage("nothing to wait for")
            return True
        case GateKind.APPROVAL:
            draft.explain(
                "WaitingForApproval", f"{status.desired}: waits until somebody promotes it"
            )
        case GateKind.TIME | GateKind.WATCH if left_s:
            text = duration_text(round(left_s, 1))
            draft.explain("WaitingForTime", f"{status.desired}: {text} are left")
        case GateKind.TIME if missing := _without_data(moves):
            draft.explain("WaitingForData", missing)
        case GateKind.TIME | GateKind.WATCH:
            moves.next_stage(f"{duration_text(length_s)} have passed")
            return True
        case GateKind.EVIDENCE:
            return _evidence_opens(moves)
        case GateKind.RAMP:
            return _evidence_opens(moves) or _moves_ramp(moves)
        case GateKind.TEST:
            return _test_opens(moves, gate, left_s)
    return False


def _evidence_opens(moves: Moves) -> bool:
    assessment = moves.assessment
    if assessment is not None and assessment.promote:
        words = "; ".join(f"{each.metric}: {each.detail}" for each in assessment.objectives)
        moves.next_stage(f"every objective is met: {words}", numbers_of(assessment))
        return True
    if missing := _without_data(moves):
        moves.draft.explain("WaitingForData", missing)
    elif assessment is not None:
        moves.draft.explain("WaitingForEvidence", f"waits for evidence: {assessment.reason}")
    return False


def _test_opens(moves: Moves, gate: Gate, left_s: float) -> bool:
    if gate.until_evidence and _all_decided(moves.status.assessments):
        moves.next_stage("every objective is decided")
        return True
    if gate.seconds is None:
        moves.draft.explain("Testing", "waits until every objective is decided")
        return False
    if left_s:
        text = duration_text(round(left_s, 1))
        moves.draft.explain("Testing", f"{text} of the test are left")
        return False
    moves.next_stage("the time of the test is over")
    return True


def _all_decided(assessments: dict[str, Assessment]) -> bool:
    verdicts = [each.verdict for found in assessments.values() for each in found.objectives]
    return bool(verdicts) and all(each in (Verdict.MET, Verdict.MISSED) for each in verdicts)


def _moves_ramp(moves: Moves) -> bool:
    ramp, status, assessment = moves.ramp, moves.status, moves.assessment
    spent = status.harm_spent - status.harm_forgiven
    since_s = moves.now_s if status.in_force_since_s is None else status.in_force_since_s
    weight = next_weight(
        ramp,
        status.ramp_weight,
        budget_left=ramp.harm_budget - spent,
        requests_per_s=status.requests_per_s,
        excess_rate_high=1.0 if assessment is None else assessment.excess_rate_high,
        harm_e=1.0 if assessment is None else assessment.harm_e,
        in_force_for_s=moves.now_s - since_s,
    )
    if weight == status.ramp_weight:
        return False
    numbers = {"harm_spent": spent, "harm_budget": ramp.harm_budget, "weight": weight}
    if weight == 0:
        moves.pause(
            PauseCause.HARM_BUDGET,
            f"the harm budget is spent: {spent:.1f} extra bad requests of {ramp.harm_budget:g}; the"
            " candidate gets no traffic until somebody resumes the rollout",
            "HarmBudgetSpent",
            numbers=numbers,
        )
    else:
        why = (
            f"{spent:.1f} of the harm budget of {ramp.harm_budget:g} are spent, at"
            f" {status.requests_per_s:.0f} requests/s"
        )
        moves.change_weight(weight, why, numbers)
    return True


def _time_is_up(moves: Moves, plan: StagePlan) -> None:
    waits_for, length = moves.status.message, duration_text(plan.time_limit_s or 0.0)
    words = f"{length} have passed and nothing is proven ({waits_for})"
    match moves.spec.decide.otherwise:
        case Otherwise.PROMOTE if plan.end is End.COMPLETE:
            # A comparison has no candidate to promote; it ends with the winner that it has.
            moves.complete(words)
        case Otherwise.PROMOTE:
            moves.promote(f"{words}; decide.otherwise is promote")
        case Otherwise.ABORT:
            moves.abort(f"{words}; decide.otherwise is abort", "TimeUp")
        case Otherwise.PAUSE:
            moves.pause(PauseCause.TIME_UP, words, "TimeUp")


def _without_data(moves: Moves) -> str:
    """Says which of the objectives that decide have no data, and why; empty if all have some."""
    assessment = moves.assessment
    if assessment is None:
        return f"no request of {moves.spec.candidate_names[0]} has been counted yet"
    missing = [
        f"{each.metric}: {each.detail}" if each.detail else each.metric
        for each in assessment.objectives
        if each.verdict is Verdict.NO_DATA and each.importance is not Importance.REPORT
    ]
    return f"too few data yet: {'; '.join(missing)}" if missing else ""
