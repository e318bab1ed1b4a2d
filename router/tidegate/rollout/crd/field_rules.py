"""How the fields of a rollout fit together, as rules that the API server evaluates.

Most are in CEL, each with the words that the user gets. CEL sees no field without a type (see
`tidegate.rollout.crd.quantity_schemas`), so what depends on a share or a bound is in the
schema's own `anyOf` and `not`, whose refusals have no words of ours.

The model stays the judge: a rule here never refuses what the model accepts. `BEYOND_A_SCHEMA`
lists what the model alone refuses.
"""

from collections.abc import Iterable
from typing import Any, Final

from tidegate.rollout.crd.quantity_schemas import DURATION_BOUND, NUMBER_BOUND, RATIO, SHARE
from tidegate.rollout.spec.model import Rollout, RolloutSpec, StickyBy, TrafficObjects
from tidegate.rollout.spec.objectives import Objective, Signal, SignalKind, StrictModel
from tidegate.rollout.spec.strategies import (
    AbStrategy,
    BlueGreenStrategy,
    CanaryStrategy,
    Pause,
    Ramp,
    Step,
    Strategy,
    Tester,
)

__all__ = ["BEYOND_A_SCHEMA", "FIELD_RULES", "IMMUTABLE", "SHAPES"]

_Rule = dict[str, Any]

BEYOND_A_SCHEMA: Final = (
    "null instead of a value: the server takes the field as left out",
    "two objectives with the same measure, such as `latency above 200ms` twice",
    "a ramp whose only objectives compare a quantile",
    "a quantity that is zero, or out of its range, only after it is rounded",
    "labels of the group `tidegate.dev/`, which Tidegate leaves out",
)
"""What only the controller refuses, or nobody on a cluster; the controller then says so in the
condition `Accepted`."""


def _rule(rule: str, message: str, at: str = "") -> _Rule:
    found: _Rule = {"rule": rule, "message": message}
    return found | ({"fieldPath": at} if at else {})


def _exactly_one(what: str, fields: Iterable[str], flags: Iterable[str] = ()) -> _Rule:
    """Returns the rule that exactly one field is given; a flag that is false counts as absent."""
    names = [*fields, *flags]
    given = [f"has(self.{_escaped(name)})" for name in fields]
    given += [f"has(self.{name}) && self.{name}" for name in flags]
    return _rule(
        f"[{', '.join(given)}].filter(given, given).size() == 1",
        f"{what} has exactly one of {', '.join(names)}",
    )


def _escaped(name: str) -> str:
    return f"__{name}__" if name == "for" else name


def _signals(*kinds: SignalKind) -> list[str]:
    return [str(each) for each in Signal if each.kind in kinds]


def _listed(names: Iterable[str]) -> str:
    return f"[{', '.join(repr(name) for name in names)}]"


_EVENTS: Final = _signals(SignalKind.EVENT)
_NUMBERS: Final = _signals(SignalKind.NUMBER)
_CATEGORIES: Final = _signals(SignalKind.CATEGORY)
_WITHOUT_BOUNDS: Final = [*_EVENTS, *_CATEGORIES]
_DURATIONS: Final = [str(each) for each in Signal if each.is_duration]
_OTHER_NUMBERS: Final = [str(each) for each in Signal if str(each) not in _DURATIONS]

_OBJECTIVES: Final = "(has(self.objectives) ? self.objectives : [])"
_CANDIDATES: Final = (
    "(has(self.candidates) ? self.candidates : has(self.candidate) ? [self.candidate] : [])"
)
_ABORTS: Final = "(has(o.importance) ? o.importance == 'abort' : o.signal != 'promql')"

IMMUTABLE: Final[dict[tuple[type[StrictModel], str], _Rule]] = {
    (RolloutSpec, "host"): _rule(
        "self == oldSelf",
        "cannot change; delete this rollout when it has ended, and create another",
    )
}
"""Rules of fields that never change, by model and field."""

FIELD_RULES: Final[dict[type[StrictModel], list[_Rule]]] = {
    Rollout: [
        _rule(
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",
            "metadata.name is not a name; use a-z, 0-9 and - inside, at most 63 characters",
        )
    ],
    RolloutSpec: [
        _rule(
            "has(self.candidate) != has(self.candidates)",
            "name the new subset, like `candidate: v2`, or several with candidates, not both",
        ),
        _rule(
            "!has(self.candidates) || has(self.strategy.ab)",
            "only `ab` compares several; write `candidate: v2`",
            ".candidates",
        ),
        _rule(
            f"!(self.baseline in {_CANDIDATES})",
            "the baseline is a candidate too; name another subset",
            ".baseline",
        ),
        _rule(
            "!has(self.testers) || self.testers.all(t, !has(t.to) || t.to == self.baseline"
            f" || t.to in {_CANDIDATES})",
            "`to` is neither the baseline nor a candidate",
            ".testers",
        ),
        _rule(
            "!has(self.testers) || !has(self.candidates) || self.candidates.size() == 1"
            " || self.testers.all(t, has(t.to))",
            "`to` is missing; with several candidates name one of them",
            ".testers",
        ),
        _rule(
            "!has(self.strategy.ab) || !has(self.strategy.ab.weights)"
            " || (self.baseline in self.strategy.ab.weights"
            f" && {_CANDIDATES}.all(c, c in self.strategy.ab.weights)"
            f" && self.strategy.ab.weights.size() == {_CANDIDATES}.size() + 1)",
            "name every version once: the baseline and the candidates",
            ".strategy.ab.weights",
        ),
        _rule(
            "!has(self.strategy.ab) || !has(self.strategy.ab.untilEvidence)"
            f" || !self.strategy.ab.untilEvidence || {_OBJECTIVES}.size() > 0",
            "nothing can be decided without objectives; add one, or remove it",
            ".strategy.ab",
        ),
        _rule(
            "!has(self.strategy.canary) || !has(self.strategy.canary.ramp)"
            f" || {_OBJECTIVES}.exists(o, o.signal in {_listed([*_EVENTS, *_NUMBERS])}"
            f" && {_ABORTS})",
            "needs an objective that counts bad requests; add `{signal: grpcFailures}` to"
            " objectives",
            ".strategy.canary.ramp",
        ),
        _rule(
            f"has(self.strategy.manual) || has(self.strategy.ab) || {_OBJECTIVES}.exists(o,"
            " !has(o.importance) || o.importance != 'report')",
            "nothing can promote the candidate; add `{signal: grpcFailures}` to objectives, or"
            " use the strategy `manual`",
        ),
        _rule(
            "has(self.strategy.shadow) || has(self.strategy.blueGreen)"
            f" || {_OBJECTIVES}.all(o, o.signal != 'answerDisagreement')",
            "answers can be compared only where requests are mirrored; use the strategy `shadow`",
            ".objectives",
        ),
        _rule(
            f"!has(self.objectives) || self.objectives.all(o, has(o.name)"
            f" ? self.objectives.exists_one(p, has(p.name) && p.name == o.name)"
            f" : !(o.signal in {_listed(_WITHOUT_BOUNDS)})"
            " || self.objectives.exists_one(p, !has(p.name) && p.signal == o.signal))",
            "an objective is there twice; remove one, or give one a `name`",
            ".objectives",
        ),
    ],
    Strategy: [_exactly_one("a strategy", ("canary", "ab", "blueGreen", "shadow", "manual"))],
    CanaryStrategy: [
        _exactly_one("a canary", ("steps", "ramp")),
        _rule(
            "!has(self.steps) || self.steps.size() == 0 || has(self.steps[0].weight)",
            "begin with a weight, like `weight: 1`",
            ".steps",
        ),
    ],
    Step: [_exactly_one("a step", ("weight", "pause"))],
    Pause: [_exactly_one("a pause", ("for",), ("untilEvidence", "untilApproved"))],
    Ramp: [
        _rule(
            "(has(self.startWeight) ? self.startWeight : 1.0)"
            " <= (has(self.maxWeight) ? self.maxWeight : 50.0)",
            "startWeight is above maxWeight; make it smaller",
        )
    ],
    AbStrategy: [
        _rule(
            "has(self.__for__) || (has(self.untilEvidence) && self.untilEvidence)",
            "never ends; add `for: 24h`, `untilEvidence: true`, or both",
        ),
        _rule(
            "!has(self.weights) || [self.weights.map(v, self.weights[v]).sum()]"
            ".all(sum, sum > 99.999999999 && sum < 100.000000001)",
            "make the weights sum to 100",
            ".weights",
        ),
    ],
    BlueGreenStrategy: [
        _rule(
            "(has(self.mirror) && self.mirror > 0.0)"
            " || (has(self.untilApproved) && self.untilApproved)",
            "switches without a condition; add `mirror: 10` (then evidence decides),"
            " `untilApproved: true`, or both",
        )
    ],
    Tester: [_exactly_one("a tester", ("header", "cookie"))],
    StickyBy: [_exactly_one("sticky", ("header", "cookie"))],
    TrafficObjects: [
        _rule(
            "!has(self.port) || (has(self.write) && self.write != 'patch')",
            "port has no effect with `write: patch`; remove it",
            ".port",
        ),
        *(
            _rule(
                f"!has(self.{name}) || self.{name}.size() == 0"
                " || (has(self.write) && self.write == 'own')",
                f"{name} has an effect with `write: own` only; remove it",
                f".{name}",
            )
            for name in ("hosts", "gateways")
        ),
    ],
    Objective: [
        _rule(
            "self.signal == 'promql' ? has(self.name) && has(self.query)"
            " : !has(self.query) && !has(self.__for__)",
            "promql needs `name` and `query`; query and for apply to promql only",
        ),
        _rule(
            "!has(self.codes) || self.signal == 'grpcFailures'",
            "codes apply to grpcFailures only; remove them",
            ".codes",
        ),
    ],
}
"""The rules of how fields fit together, by model."""


def _signal_is(*names: str) -> dict[str, Any]:
    return {"properties": {"signal": {"enum": list(names)}}}


def _has(*names: str) -> dict[str, Any]:
    return {"required": list(names)}


def _without(*names: str) -> dict[str, Any]:
    return {"not": {"anyOf": [_has(name) for name in names]}}


def _either(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": list(choices)}


def _fits(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"properties": fields}


SHAPES: Final[dict[type[StrictModel], list[dict[str, Any]]]] = {
    Objective: [
        # Which bounds a signal has.
        _either(
            _signal_is(*_WITHOUT_BOUNDS) | _without("above", "below", "quantile"),
            _signal_is(*_NUMBERS) | {"oneOf": [_has("above"), _has("below"), _has("quantile")]},
            _signal_is("promql")
            | {"oneOf": [_has("above"), _has("below")]}
            | _without("quantile", "tolerate", "margin"),
        ),
        # How the bounds are written: `200ms` for a duration, a number otherwise.
        _either(
            _fits(
                signal={"enum": _DURATIONS}, above=dict(DURATION_BOUND), below=dict(DURATION_BOUND)
            ),
            _fits(
                signal={"enum": _OTHER_NUMBERS}, above=dict(NUMBER_BOUND), below=dict(NUMBER_BOUND)
            ),
        ),
        # A mix has a distance, a quantile a ratio, and a rate may have either.
        _either(
            {"not": _signal_is(*_CATEGORIES)},
            _fits(tolerate=dict(SHARE)) | _without("margin"),
        ),
        _either(_without("quantile"), _fits(tolerate=dict(RATIO)) | _without("margin")),
        _either(_without("margin"), _fits(tolerate=dict(RATIO))),
    ],
}
"""What the schema itself says about how fields fit together, by model."""
