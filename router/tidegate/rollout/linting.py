"""Finds mistakes in rollouts that are right by themselves: what can never work, and what surprises.

Each finding is certain, given what the caller says about the traffic and the hosts. So an empty
list does not prove that a rollout works, but a finding is always worth a look.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.evidence.assessment import Verdict
from tidegate.evidence.judge import assess, begin, observe
from tidegate.evidence.plan import EvidencePlan, Importance, RateTest
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic
from tidegate.rollout.engine.stages import GateKind, StagePlan, plan_of
from tidegate.rollout.spec.checking import Steps, path_of
from tidegate.rollout.spec.model import Otherwise, RolloutSpec
from tidegate.rollout.spec.objectives import Objective, Signal
from tidegate.rollout.spec.quantities import duration_text, number_text
from tidegate.rollout.spec.reading import Placed
from tidegate.rollout.traffic import TrafficSplit

__all__ = ["Finding", "Severity", "lint"]

# The evidence depends a little on how traffic falls into windows.
_MARGIN: Final = 1.2
_WINDOWS: Final = 50
_START_S: Final = 1e9


class Severity(enum.Enum):
    """How bad a finding is: the rollout cannot run, or it may not do what is meant."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        source: The file.
        line: The line there.
        path: The field's path.
        severity: How bad it is.
        rule: The rule's name.
        text: What is found and what follows from it.
        fix: What to do.
    """

    source: str
    line: int
    path: str
    severity: Severity
    rule: str
    text: str
    fix: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}: {self.severity.value} [{self.rule}]"
        return f"{where} {self.path}: {self.text}; {self.fix}"


Subsets = Callable[[str], Sequence[str]]
"""Returns the subsets of a host; raises ValueError, with words, if there is no such host."""

_Found = tuple[Steps, Severity, str, str, str]


def lint(
    placed: Iterable[Placed], subsets: Subsets | None = None, requests_per_s: float | None = None
) -> list[Finding]:
    """Returns the findings, in the order of the files.

    Args:
        placed: The rollouts.
        subsets: Gives the subsets of hosts; None leaves hosts unchecked.
        requests_per_s: The requests of each host per second; None leaves traffic unchecked.
    """
    findings: list[Finding] = []
    hosts: dict[str, str] = {}
    for each in placed:
        spec, key = each.rollout.spec, each.rollout.key
        rules = [_steps(spec), _time(spec), _watched(spec), _shared_host(spec, key, hosts)]
        rules += [_host(spec, subsets)] if subsets is not None else []
        rules += [_traffic(spec, requests_per_s)] if requests_per_s is not None else []
        for steps, severity, rule, text, fix in (found for found_by in rules for found in found_by):
            place = (each.source, each.line(steps), path_of(steps))
            findings.append(Finding(*place, severity, rule, text, fix))
    return findings


def _steps(spec: RolloutSpec) -> Iterator[_Found]:
    canary = spec.strategy.canary
    if canary is None or canary.steps is None:
        return
    here: Steps = ("spec", "strategy", "canary", "steps")
    last = 0.0
    for index, step in enumerate(canary.steps):
        if step.weight is None:
            continue
        if step.weight < last:
            text = f"{number_text(step.weight)}% is less than the step before, {number_text(last)}%"
            fix = "let the weights grow"
            yield (*here, index, "weight"), Severity.WARNING, "steps-shrink", text, fix
        last = step.weight
    if last < 50:
        text = f"all traffic moves at once from {number_text(last)}% to 100%"
        fix = "add `weight: 50` as the last step, so that the candidate carries half before that"
        yield here, Severity.WARNING, "steps-end-low", text, fix


def _time(spec: RolloutSpec) -> Iterator[_Found]:
    plan = _plan(spec)
    within: Steps = ("spec", "decide", "within")
    waits_s = sum(
        each.gate.seconds or 0.0 for each in plan.stages if each.gate.kind is GateKind.TIME
    )
    if plan.time_limit_s is not None and waits_s >= plan.time_limit_s:
        text = f"the pauses take {duration_text(waits_s)}, so the time is up before the last step"
        fix = f"write more than {duration_text(waits_s)}"
        yield within, Severity.ERROR, "pauses-too-long", text, fix
    if spec.decide.otherwise is Otherwise.PROMOTE and plan.time_limit_s is not None:
        text = "a candidate that is not proven good is promoted when the time is up"
        fix = "write pause or abort, or know that badPromotion does not hold"
        otherwise: Steps = ("spec", "decide", "otherwise")
        yield otherwise, Severity.WARNING, "promotes-unproven", text, fix


def _watched(spec: RolloutSpec) -> Iterator[_Found]:
    here: Steps = ("spec", "objectives")
    followed = [each for each in spec.objectives if each.followed_by is Importance.ABORT]
    if any(each.signal is Signal.GRPC_FAILURES for each in followed):
        return
    canary = spec.strategy.canary
    if canary is not None and canary.ramp is not None:
        text = "the ramp does not count failed requests as harm"
        ramp: Steps = ("spec", "strategy", "canary", "ramp")
        fix = "add `{signal: grpcFailures}` to objectives"
        yield ramp, Severity.WARNING, "harm-without-failures", text, fix
    elif spec.strategy.shadow is None:
        text = "no objective aborts the rollout if the candidate's calls fail"
        fix = "add `{signal: grpcFailures}`"
        yield here, Severity.WARNING, "failures-unwatched", text, fix


def _shared_host(spec: RolloutSpec, key: str, hosts: dict[str, str]) -> Iterator[_Found]:
    if spec.host in hosts:
        text = f"{hosts[spec.host]} is on this host too; the second to start is refused"
        fix = "apply one after the other"
        yield ("spec", "host"), Severity.WARNING, "host-shared", text, fix
    hosts.setdefault(spec.host, key)


def _host(spec: RolloutSpec, subsets: Subsets) -> Iterator[_Found]:
    try:
        known = subsets(spec.host)
    except ValueError as error:
        fix = "name a host of the Istio objects"
        yield ("spec", "host"), Severity.ERROR, "host-unknown", str(error), fix
        return
    named: list[tuple[Steps, str]] = [(("spec", "baseline"), spec.baseline)]
    if spec.candidate is not None:
        named.append((("spec", "candidate"), spec.candidate))
    named += [
        (("spec", "candidates", index), name) for index, name in enumerate(spec.candidates or ())
    ]
    for steps, name in named:
        if name not in known:
            text = f"{spec.host} has no subset {name}; it has {', '.join(known) or 'none'}"
            fix = "add it to the DestinationRule, or name another"
            yield steps, Severity.ERROR, "subset-unknown", text, fix


def _traffic(spec: RolloutSpec, requests_per_s: float) -> Iterator[_Found]:
    plan = _plan(spec)
    horizon_s = plan.time_limit_s or plan.stages[-1].gate.seconds
    if horizon_s is None:
        return
    for name in spec.candidate_names:
        share, mirrored = _largest_share(spec, plan, name)
        requests = requests_per_s * horizon_s * share
        baseline = requests_per_s * horizon_s * (1.0 if mirrored else 1.0 - share)
        evidence = spec.evidence_plan(name)
        undecided = _undecided(evidence, round(requests * _MARGIN), round(baseline * _MARGIN))
        words = f"{number_text(requests_per_s)} requests/s give {name} at most {requests:,.0f}"
        words += f" within {duration_text(horizon_s)}"
        for index, (each, judged) in enumerate(
            zip(spec.objectives, evidence.objectives, strict=True)
        ):
            steps: Steps = ("spec", "objectives", index)
            if requests < judged.least_trials and each.signal is not Signal.PROMQL:
                text = f"{words}, too few to say anything: {judged.least_trials} are needed"
                fix = "give it more traffic or more time (decide.within)"
                yield steps, Severity.ERROR, "too-little-traffic", text, fix
            elif index in undecided and each.followed_by is not Importance.REPORT:
                text = f"{words}, too few to prove it met even if neither version has a bad one"
                yield steps, Severity.WARNING, "undecidable", text, _more(each)


def _more(objective: Objective) -> str:
    how = "tolerate more" if objective.margin is None else "raise its margin"
    return f"give it more traffic or more time (decide.within), or {how}"


def _largest_share(spec: RolloutSpec, plan: StagePlan, candidate: str) -> tuple[float, bool]:
    """Returns the largest share of requests that a candidate gets before the decision.

    Returns:
        The share from 0 to 1, and whether it is of copies.
    """
    before = [each for each in plan.stages if each.gate.kind is not GateKind.WATCH]
    weights = [each.split.weights.get(candidate, 0.0) for each in before]
    canary = spec.strategy.canary
    if canary is not None and canary.ramp is not None:
        weights.append(canary.ramp.max_weight)
    mirrors = [each.split.mirrors.get(candidate, 0.0) for each in before]
    share = max([*weights, *mirrors], default=0.0) / 100
    return share, max(mirrors, default=0.0) / 100 == share


def _undecided(plan: EvidencePlan, requests: int, baseline: int) -> set[int]:
    """Returns the rate objectives that traffic without any bad event does not prove."""
    state = begin(plan)
    step_s = plan.within_s / _WINDOWS
    for number in range(_WINDOWS):
        found: Mapping[str, int] = {
            plan.baseline: _part(baseline, number),
            plan.candidate: _part(requests, number),
        }
        total = sum(found.values())
        if not total:
            continue
        window = TrafficWindow(
            start_s=_START_S + number * step_s,
            end_s=_START_S + (number + 1) * step_s,
            shares={
                plan.baseline: found[plan.baseline] / total,
                plan.candidate: found[plan.candidate] / total,
            },
            versions={
                name: VersionTraffic(
                    requests=found[name],
                    rates={
                        each.metric: Counted(found[name], 0)
                        for each in plan.objectives
                        if isinstance(each.test, RateTest)
                    },
                )
                for name in (plan.baseline, plan.candidate)
            },
        )
        state = observe(plan, state, window)
    verdicts = [each.verdict for each in assess(plan, state).objectives]
    return {
        index
        for index, (objective, verdict) in enumerate(zip(plan.objectives, verdicts, strict=True))
        if isinstance(objective.test, RateTest) and verdict is not Verdict.MET
    }


def _part(total: int, number: int) -> int:
    return total * (number + 1) // _WINDOWS - total * number // _WINDOWS


def _plan(spec: RolloutSpec) -> StagePlan:
    return plan_of(spec, TrafficSplit(weights={}))
