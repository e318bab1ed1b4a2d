"""How a version behaves in a simulation: its rates, numbers and mixes, which may change with time.

Numbers are log-normal, as latencies nearly are; shares such as a confidence are logistic-normal. So
a median and a spread say everything, and the probability of passing a bound is exact.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import numpy as np

from tidegate.errors import TidegateError
from tidegate.evidence.buckets import BUCKETS, upper_edge
from tidegate.rollout.measures import Measure
from tidegate.rollout.spec.objectives import Signal, SignalKind
from tidegate.rollout.spec.quantities import Bound, number_text

Array = np.ndarray[tuple[int], np.dtype[np.float64]]

__all__ = ["Behaviour", "BehaviourError", "Change", "parse_facts"]

_SPREAD: Final = 0.5
"""The standard deviation of the logarithm: the 99th percentile is 3.2 times the median."""

_SHARE_SPREAD: Final = 1.0
_SHARES: Final = (Signal.CONFIDENCE, Signal.ENDPOINT_LOAD)
_NAMES: Final = {"failures": Signal.GRPC_FAILURES}
_DEFAULTS: Final = {
    Signal.GRPC_FAILURES: 0.001,
    Signal.DEADLINE_EXCEEDED: 0.001,
    Signal.EMPTY_ANSWERS: 0.001,
    Signal.TRUNCATED_ANSWERS: 0.01,
    Signal.ANSWER_DISAGREEMENT: 0.0,
    Signal.LATENCY: 0.02,
    Signal.TIME_TO_FIRST_TOKEN: 0.2,
    Signal.INTER_TOKEN_LATENCY: 0.03,
    Signal.TOKENS_PER_ANSWER: 100.0,
    Signal.CONFIDENCE: 0.8,
    Signal.ENDPOINT_LOAD: 0.5,
    Signal.PREDICTION_DRIFT: 0.0,
    Signal.FINISH_REASON_DRIFT: 0.0,
}
_MIXES: Final = {
    Signal.PREDICTION_DRIFT: tuple(1 / (rank * 2.93) for rank in range(1, 11)),
    Signal.FINISH_REASON_DRIFT: (0.85, 0.15),
}


class BehaviourError(TidegateError):
    """A version's behaviour is not written right."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A change of a version's behaviour.

    Attributes:
        after_s: When, in seconds from the start.
        facts: What is then otherwise, by signal or by the name of a PromQL objective.
    """

    after_s: float
    facts: Mapping[str, float]


class Behaviour:
    """What a version does at a time.

    Args:
        facts: Its rates, medians and distances, by signal or by the name of a PromQL objective. The
            defaults are those of a healthy version.
        changes: What becomes otherwise, in the order of time.
    """

    def __init__(self, facts: Mapping[str, float], changes: tuple[Change, ...] = ()) -> None:
        self._epochs: list[tuple[float, dict[str, float]]] = [(0.0, dict(facts))]
        for change in sorted(changes, key=lambda each: each.after_s):
            self._epochs.append((change.after_s, self._epochs[-1][1] | dict(change.facts)))
        self._known: dict[tuple[int, str], Array] = {}

    def fact(self, signal: Signal) -> float:
        """Returns a rate, a median or a distance at the start."""
        return self._epochs[0][1].get(signal, _DEFAULTS[signal])

    def rate(self, measure: Measure, time_s: float) -> float:
        """Returns the probability of a bad event."""
        return float(self._remembered(measure, time_s, _rate)[0])

    def buckets(self, measure: Measure, time_s: float) -> Array:
        """Returns the probability of each bucket of `tidegate.evidence.buckets`."""
        return self._remembered(measure, time_s, _buckets)

    def mix(self, measure: Measure, time_s: float) -> Array:
        """Returns the probability of each category."""
        return self._remembered(measure, time_s, _mix)

    def gauge(self, measure: Measure, time_s: float) -> float | None:
        """Returns a gauge's value; None if none is known."""
        return self._epochs[self._epoch(time_s)][1].get(measure.metric)

    def _epoch(self, time_s: float) -> int:
        return max(at for at, (since_s, _) in enumerate(self._epochs) if since_s <= max(time_s, 0))

    def _remembered(
        self, measure: Measure, time_s: float, make: Callable[[Measure, float], Array]
    ) -> Array:
        key = (self._epoch(time_s), measure.metric)
        if key not in self._known:
            facts = self._epochs[key[0]][1]
            value = facts.get(measure.signal, _DEFAULTS[measure.signal])
            self._known[key] = make(measure, value)
        return self._known[key]


def _rate(measure: Measure, value: float) -> Array:
    if measure.signal.kind is not SignalKind.NUMBER:
        return np.array([value])
    if measure.above is not None:
        return np.array([1 - _below(measure.signal, value, measure.above)])
    return np.array([_below(measure.signal, value, measure.below or 0.0)])


def _buckets(measure: Measure, value: float) -> Array:
    edges = [_below(measure.signal, value, upper_edge(at)) for at in range(BUCKETS - 1)]
    return np.diff(np.array([0.0, *edges, 1.0]))


def _mix(measure: Measure, value: float) -> Array:
    mix = np.array(_MIXES[measure.signal])
    mix /= mix.sum()
    # A share of the answers goes from the most frequent categories to the rarest.
    left = min(value, float(mix[:-1].sum()))
    mix[-1] += left
    for at in range(len(mix) - 1):
        taken = min(left, float(mix[at]))
        mix[at] -= taken
        left -= taken
    return mix


def parse_facts(text: str, names: tuple[str, ...] = ()) -> dict[str, float]:
    """Reads ``failures=2%,latency=30ms``.

    Args:
        text: The facts.
        names: The names of the PromQL objectives.

    Raises:
        BehaviourError: A fact is unknown, or its value has another form.
    """
    found: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        key, equals, value = (each.strip() for each in part.partition("="))
        name = str(_NAMES.get(key, key))
        known = (*_NAMES, *(str(each) for each in _DEFAULTS), *names)
        if not equals or key not in known:
            raise BehaviourError(
                f"{part!r} is not a fact; write it like failures=2%, with one of {', '.join(known)}"
            )
        if name in found:
            raise BehaviourError(f"{key} is there twice; keep one")
        found[name] = _value(name, part, value, is_gauge=name in names)
    return found


def _value(name: str, part: str, value: str, *, is_gauge: bool) -> float:
    try:
        bound = Bound.parse(float(value) if _is_number(value) else value)
    except ValueError as error:
        raise BehaviourError(f"{part!r}: {value} {error}") from None
    if is_gauge:
        return bound.value
    signal = Signal(name)
    if signal.is_duration != bound.is_duration:
        form = "a duration like 30ms" if signal.is_duration else "a share like 2%"
        raise BehaviourError(f"{part!r}: write {form}")
    is_share = signal.kind is not SignalKind.NUMBER or signal in _SHARES
    if is_share and not 0 <= bound.value <= 1:
        raise BehaviourError(f"{part!r}: {number_text(bound.value)} is out of range; 0% to 100%")
    if signal.kind is SignalKind.NUMBER and bound.value <= 0:
        raise BehaviourError(f"{part!r}: is out of range; write more than 0")
    return bound.value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _below(signal: Signal, median: float, bound: float) -> float:
    """Returns the probability that a number is at most a bound."""
    if bound <= 0:
        return 0.0
    if signal in _SHARES:
        if bound >= 1:
            return 1.0
        median = min(max(median, 1e-6), 1 - 1e-6)
        place = math.log(bound / (1 - bound)) - math.log(median / (1 - median))
        return _normal(place / _SHARE_SPREAD)
    return 1.0 if math.isinf(bound) else _normal(math.log(bound / median) / _SPREAD)


def _normal(place: float) -> float:
    return 0.5 * math.erfc(-place / math.sqrt(2))
