"""The stages of a rollout: every strategy becomes a list of splits, each with a gate.

The engine knows no strategy. It brings the split of a stage into force, waits until the gate opens,
and goes on. So a canary's steps, a blue-green switch and an A/B test differ only in this list.
"""

import enum
from collections.abc import Iterator

import msgspec

from tidegate.rollout.spec.model import RolloutSpec
from tidegate.rollout.spec.quantities import duration_text
from tidegate.rollout.spec.strategies import CanaryStrategy, Pause
from tidegate.rollout.traffic import MatchKind, Sticky, TesterMatch, TrafficSplit

__all__ = [
    "End",
    "Gate",
    "GateKind",
    "Stage",
    "StagePlan",
    "baseline_split",
    "plan_of",
    "ramp_split",
    "sticky_of",
    "version_split",
]


class GateKind(enum.Enum):
    """What a stage waits for once its split is in force.

    ``NONE``: nothing. ``TIME``: a time, and data for every objective. ``EVIDENCE``: every
    objective is met. ``APPROVAL``: a user. ``RAMP``: every objective is met; meanwhile the weight
    follows the harm budget. ``TEST``: a time, or every objective is decided. ``WATCH``: a time.
    """

    NONE = "none"
    TIME = "time"
    EVIDENCE = "evidence"
    APPROVAL = "approval"
    RAMP = "ramp"
    TEST = "test"
    WATCH = "watch"


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage waits for.

    Attributes:
        kind: What.
        seconds: How long; None if time alone does not open it.
        until_evidence: Whether a test ends as soon as every objective is decided.
    """

    kind: GateKind
    seconds: float | None = None
    until_evidence: bool = False

    def __str__(self) -> str:
        length = "" if self.seconds is None else duration_text(self.seconds)
        match self.kind:
            case GateKind.NONE:
                return "then the next stage"
            case GateKind.TIME:
                return f"for {length}"
            case GateKind.EVIDENCE:
                return "until every objective is met"
            case GateKind.APPROVAL:
                return "until somebody approves it"
            case GateKind.RAMP:
                return "as fast as the harm budget allows, until every objective is met"
            case GateKind.WATCH:
                return f"and watch for {length}"
            case GateKind.TEST:
                ends = [f"for {length}"] if length else []
                ends += ["until every objective is decided"] if self.until_evidence else []
                return " or ".join(ends)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage.

    Attributes:
        split: The split to bring into force; of a ramp its first.
        gate: What to wait for then.
    """

    split: TrafficSplit
    gate: Gate

    def __str__(self) -> str:
        return f"{self.split}, {self.gate}"


class End(enum.Enum):
    """What follows the last stage: the candidate gets all traffic, or the comparison is over."""

    PROMOTE = "promote"
    COMPLETE = "complete"


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The stages of a rollout.

    Attributes:
        stages: The stages, in order; at least one.
        end: What follows the last one.
        time_limit_s: How long the stages may take without a decision; None if the last stage has a
            time of its own.
    """

    stages: tuple[Stage, ...]
    end: End
    time_limit_s: float | None


def plan_of(spec: RolloutSpec, original: TrafficSplit) -> StagePlan:
    """Returns the stages of a rollout.

    Args:
        spec: What the rollout does.
        original: The split that it found, of which it keeps the mirrors to other versions.
    """
    splits = _Splits(spec, original)
    end = End.PROMOTE
    limit: float | None = spec.decide.within
    strategy = spec.strategy
    if strategy.canary is not None:
        stages = tuple(_canary(strategy.canary, splits))
    elif strategy.manual is not None:
        approval = Gate(kind=GateKind.APPROVAL)
        stages = tuple(
            Stage(split=splits.canary(weight), gate=approval) for weight in strategy.manual.weights
        )
        limit = None
    elif strategy.blue_green is not None:
        blue_green = strategy.blue_green
        evidence, approval = Gate(kind=GateKind.EVIDENCE), Gate(kind=GateKind.APPROVAL)
        before = splits.mirrored(blue_green.mirror) if blue_green.mirror else splits.canary(0)
        gates = [evidence] if blue_green.mirror else []
        gates += [approval] if blue_green.until_approved else []
        watch = Gate(kind=GateKind.WATCH, seconds=blue_green.watch)
        stages = (
            *(Stage(split=before, gate=gate) for gate in gates),
            Stage(split=splits.canary(_rest(blue_green.hold_back)), gate=watch),
        )
    elif strategy.shadow is not None:
        seconds = spec.decide.within if strategy.shadow.lasting is None else strategy.shadow.lasting
        gate = Gate(kind=GateKind.TEST, seconds=seconds, until_evidence=True)
        stages = (Stage(split=splits.mirrored(strategy.shadow.mirror), gate=gate),)
        end, limit = End.COMPLETE, None
    else:
        ab = strategy.ab
        assert ab is not None  # noqa: S101 - the spec has exactly one strategy
        gate = Gate(kind=GateKind.TEST, seconds=ab.lasting, until_evidence=ab.until_evidence)
        stages = (Stage(split=splits.test(ab.weights), gate=gate),)
        end = End.COMPLETE
        limit = spec.decide.within if ab.lasting is None else None
    return StagePlan(stages=stages, end=end, time_limit_s=limit)


def sticky_of(spec: RolloutSpec) -> Sticky | None:
    """Returns what keeps a user on one version; None if a rollout says nothing about it."""
    sticky = spec.sticky
    if sticky is None:
        return None
    if sticky.header is not None:
        return Sticky(kind=MatchKind.HEADER, name=sticky.header)
    return Sticky(kind=MatchKind.COOKIE, name=sticky.cookie or "")


def baseline_split(spec: RolloutSpec, original: TrafficSplit) -> TrafficSplit:
    """Returns the split that gives the baseline everything, and nothing of the rollout's own."""
    return version_split(spec, original, spec.baseline)


def version_split(spec: RolloutSpec, original: TrafficSplit, version: str) -> TrafficSplit:
    """Returns the split that gives one version everything, and nothing of the rollout's own."""
    return _Splits(spec, original).only(version)


def ramp_split(spec: RolloutSpec, original: TrafficSplit, weight: float) -> TrafficSplit:
    """Returns the split of a ramp that gives the candidate a weight in percent."""
    return _Splits(spec, original).canary(weight)


def _canary(canary: CanaryStrategy, splits: "_Splits") -> Iterator[Stage]:
    evidence = Gate(kind=GateKind.EVIDENCE)
    if canary.ramp is not None:
        yield Stage(split=splits.canary(canary.ramp.start_weight), gate=Gate(kind=GateKind.RAMP))
        return
    split: TrafficSplit | None = None
    gates: list[Gate] = []
    for step in canary.steps or ():
        if step.pause is not None:
            gates.append(_gate(step.pause))
            continue
        if split is not None:
            yield from _with_gates(split, gates)
        split, gates = splits.canary(step.weight or 0.0), []
    assert split is not None  # noqa: S101 - the first step has a weight
    # Promotion is evidence too, whatever the last step waited for.
    if not gates or gates[-1] != evidence:
        gates.append(evidence)
    yield from _with_gates(split, gates)


def _with_gates(split: TrafficSplit, gates: list[Gate]) -> Iterator[Stage]:
    for gate in gates or [Gate(kind=GateKind.NONE)]:
        yield Stage(split=split, gate=gate)


def _gate(pause: Pause) -> Gate:
    if pause.until_evidence:
        return Gate(kind=GateKind.EVIDENCE)
    if pause.until_approved:
        return Gate(kind=GateKind.APPROVAL)
    return Gate(kind=GateKind.TIME, seconds=pause.for_time)


class _Splits:
    """Makes the splits of a rollout.

    Args:
        spec: What the rollout does.
        original: The split that it found.
    """

    def __init__(self, spec: RolloutSpec, original: TrafficSplit) -> None:
        self._spec = spec
        self._original = original
        self._candidates = spec.candidate_names
        self._foreign_mirrors = {
            name: percent
            for name, percent in original.mirrors.items()
            if name not in self._candidates
        }

    def canary(self, weight: float) -> TrafficSplit:
        """The candidate gets a weight in percent, and the baseline the rest."""
        # Rounded, so that 100 - 0.1 is 99.9.
        return self._during({self._candidates[0]: weight, self._spec.baseline: _rest(weight)})

    def mirrored(self, percent: float) -> TrafficSplit:
        """The baseline answers everything, and the candidate gets copies."""
        weights = {self._spec.baseline: 100.0}
        return self._during(weights, {self._candidates[0]: percent})

    def test(self, weights: dict[str, float] | None) -> TrafficSplit:
        """Every version gets its weight; equal ones by default."""
        versions = (*self._candidates, self._spec.baseline)
        if weights is None:
            share = round(100 / len(versions), 3)
            weights = dict.fromkeys(self._candidates, share)
            weights[self._spec.baseline] = round(100 - share * len(self._candidates), 3)
        return self._during({version: weights[version] for version in versions})

    def only(self, version: str) -> TrafficSplit:
        """One version gets everything, and what the rollout added is gone."""
        others = [each for each in (*self._candidates, self._spec.baseline) if each != version]
        return TrafficSplit(
            weights={version: 100.0} | dict.fromkeys(others, 0.0),
            testers=self._original.testers,
            sticky=self._original.sticky,
            mirrors=self._foreign_mirrors,
        )

    def _during(
        self, weights: dict[str, float], mirrors: dict[str, float] | None = None
    ) -> TrafficSplit:
        return TrafficSplit(
            weights=weights,
            testers=self._testers() or self._original.testers,
            sticky=sticky_of(self._spec) or self._original.sticky,
            mirrors=self._foreign_mirrors | (mirrors or {}),
        )

    def _testers(self) -> tuple[TesterMatch, ...]:
        return tuple(
            TesterMatch(
                kind=MatchKind.COOKIE if each.header is None else MatchKind.HEADER,
                name=each.header or each.cookie or "",
                value=each.value or "",
                version=each.to or self._candidates[0],
            )
            for each in self._spec.testers
        )


def _rest(weight: float) -> float:
    return round(100.0 - weight, 3)
