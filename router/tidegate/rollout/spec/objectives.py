"""The objectives of a rollout: which signal, how much worse is acceptable, and what follows."""

import difflib
import enum
from collections.abc import Iterator
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from tidegate.evidence.plan import (
    Importance,
    LimitTest,
    MixTest,
    QuantileTest,
    RateTest,
    Test,
)
from tidegate.evidence.plan import Objective as JudgedObjective
from tidegate.evidence.window import MetricName
from tidegate.rollout.spec.faults import Fault, FaultsError
from tidegate.rollout.spec.quantities import Bound, Fraction, Seconds, Tolerance, fraction_text

__all__ = [
    "DEFAULT_MARGIN",
    "DEFAULT_RATIO",
    "ERROR_CODES",
    "FAILURE_CODES",
    "Objective",
    "Signal",
    "SignalKind",
    "StrictModel",
]


class StrictModel(BaseModel):
    """A part of a rollout. Keys are in camelCase, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class SignalKind(enum.Enum):
    """How a signal is measured, which decides how versions are compared."""

    EVENT = "event"
    NUMBER = "number"
    CATEGORY = "category"
    QUERY = "query"


class Signal(enum.StrEnum):
    """What is measured of each request."""

    GRPC_FAILURES = "grpcFailures"
    DEADLINE_EXCEEDED = "deadlineExceeded"
    EMPTY_ANSWERS = "emptyAnswers"
    TRUNCATED_ANSWERS = "truncatedAnswers"
    ANSWER_DISAGREEMENT = "answerDisagreement"
    LATENCY = "latency"
    TIME_TO_FIRST_TOKEN = "timeToFirstToken"  # noqa: S105 - no password
    INTER_TOKEN_LATENCY = "interTokenLatency"  # noqa: S105 - no password
    TOKENS_PER_ANSWER = "tokensPerAnswer"
    CONFIDENCE = "confidence"
    ENDPOINT_LOAD = "endpointLoad"
    PREDICTION_DRIFT = "predictionDrift"
    FINISH_REASON_DRIFT = "finishReasonDrift"
    PROMQL = "promql"

    @property
    def kind(self) -> SignalKind:
        """How the signal is measured."""
        return _KINDS[self]

    @property
    def is_duration(self) -> bool:
        """Whether the signal's numbers are durations."""
        return self in _DURATIONS


_KINDS: Final = {
    Signal.GRPC_FAILURES: SignalKind.EVENT,
    Signal.DEADLINE_EXCEEDED: SignalKind.EVENT,
    Signal.EMPTY_ANSWERS: SignalKind.EVENT,
    Signal.TRUNCATED_ANSWERS: SignalKind.EVENT,
    Signal.ANSWER_DISAGREEMENT: SignalKind.EVENT,
    Signal.LATENCY: SignalKind.NUMBER,
    Signal.TIME_TO_FIRST_TOKEN: SignalKind.NUMBER,
    Signal.INTER_TOKEN_LATENCY: SignalKind.NUMBER,
    Signal.TOKENS_PER_ANSWER: SignalKind.NUMBER,
    Signal.CONFIDENCE: SignalKind.NUMBER,
    Signal.ENDPOINT_LOAD: SignalKind.NUMBER,
    Signal.PREDICTION_DRIFT: SignalKind.CATEGORY,
    Signal.FINISH_REASON_DRIFT: SignalKind.CATEGORY,
    Signal.PROMQL: SignalKind.QUERY,
}
_DURATIONS: Final = frozenset(
    {Signal.LATENCY, Signal.TIME_TO_FIRST_TOKEN, Signal.INTER_TOKEN_LATENCY}
)

FAILURE_CODES: Final = (
    *("UNKNOWN", "RESOURCE_EXHAUSTED", "ABORTED", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
)
"""The gRPC codes that are the version's failure, unless the objective names others. A deadline that
a proxy's timeout set counts too; a caller's own deadline, cancellation or bad input never does."""

ERROR_CODES: Final = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)
"""The gRPC codes of errors."""

DEFAULT_RATIO: Final = 1.2
"""The ratio to the baseline that is tolerated, unless the objective says another."""

DEFAULT_MARGIN: Final = 0.001
"""The margin beside a tolerated ratio of rates, unless the objective says another."""

_DEFAULT_DISTANCE: Final = 0.05
_DEFAULT_LASTING_S: Final = 60.0


class Objective(StrictModel):
    """Something that the candidate must not do worse than the baseline.

    Write ``above`` or ``below`` to compare the share of requests past a bound, ``quantile`` to
    compare a quantile, and neither for events and categories.
    """

    signal: Signal
    """What is measured."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,62}$")] | None = None
    """A name for reports, needed for `promql`. By default the signal with its bound."""

    above: Bound | None = None
    """A request is bad if the number is above this: `200ms` for a duration, `0.9` for a share."""

    below: Bound | None = None
    """A request is bad if the number is below this."""

    quantile: Annotated[Fraction, Field(gt=0, lt=1)] | None = None
    """Compares this quantile of the number, such as `99%`."""

    tolerate: Tolerance | None = None
    """How much worse the candidate may be: `1.2x` the baseline, or a difference of `5%`."""

    margin: Annotated[Fraction, Field(ge=0, le=1)] | None = None
    """A difference of the rates that does not matter, on top of a tolerated ratio; 0.1% by
    default."""

    codes: tuple[str, ...] | None = None
    """The gRPC codes that count as failures (`grpcFailures` only)."""

    query: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """A PromQL query that gives one number (`promql` only). `$version` stands for the subset,
    `$host` for the host."""

    lasting: Annotated[Seconds, Field(gt=0)] | None = Field(None, alias="for")
    """How long the query's number must be past its bound before that counts (`promql` only); one
    minute by default."""

    importance: Importance | None = None
    """What follows when the objective is missed: `abort`, `pause` or `report`. By default abort,
    and pause for `promql`."""

    @field_validator("codes")
    @classmethod
    def _known_codes(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if codes == ():
            raise ValueError("is empty; name at least one code, or leave it out")
        faults = [
            Fault(f"[{index}]", f"{code} is not a gRPC code of an error; {_meant(code)}")
            for index, code in enumerate(codes or ())
            if code not in ERROR_CODES
        ]
        if faults:
            raise FaultsError(faults)
        return codes

    @model_validator(mode="after")
    def _fits_its_signal(self) -> Self:
        if found := list(self._faults()):
            raise FaultsError(found)
        return self

    @property
    def metric(self) -> MetricName:
        """The name of the measure, such as ``latency above 200ms``."""
        if self.name is not None:
            return MetricName(self.name)
        if self.above is not None:
            return MetricName(f"{self.signal} above {self.above}")
        if self.below is not None:
            return MetricName(f"{self.signal} below {self.below}")
        if self.quantile is not None:
            return MetricName(f"{self.signal} {fraction_text(self.quantile)}")
        return MetricName(str(self.signal))

    @property
    def followed_by(self) -> Importance:
        """What follows when the objective is missed."""
        if self.importance is not None:
            return self.importance
        return Importance.PAUSE if self.signal is Signal.PROMQL else Importance.ABORT

    @property
    def judged(self) -> JudgedObjective:
        """The objective as the evidence takes it."""
        return JudgedObjective(
            metric=self.metric,
            test=self._test(),
            importance=self.followed_by,
            is_duration=self.signal.is_duration,
        )

    def _test(self) -> Test:
        if self.signal.kind is SignalKind.QUERY:
            bound = self.above or self.below
            assert bound is not None  # noqa: S101 - checked by _query_faults
            return LimitTest(
                limit=bound.value,
                large_is_bad=self.above is not None,
                for_s=_DEFAULT_LASTING_S if self.lasting is None else self.lasting,
            )
        if self.signal.kind is SignalKind.CATEGORY:
            distance = None if self.tolerate is None else self.tolerate.difference
            return MixTest(distance=_DEFAULT_DISTANCE if distance is None else distance)
        ratio = None if self.tolerate is None else self.tolerate.ratio
        difference = None if self.tolerate is None else self.tolerate.difference
        if self.quantile is not None:
            return QuantileTest(
                quantile=self.quantile,
                ratio=DEFAULT_RATIO if ratio is None else ratio,
                large_is_bad=self.signal is not Signal.CONFIDENCE,
            )
        if difference is not None:
            return RateTest(ratio=1.0, margin=difference)
        return RateTest(
            ratio=DEFAULT_RATIO if ratio is None else ratio,
            margin=DEFAULT_MARGIN if self.margin is None else self.margin,
        )

    def _faults(self) -> Iterator[Fault]:
        signal, kind = self.signal, self.signal.kind
        bounds = [n for n in ("above", "below", "quantile") if getattr(self, n) is not None]
        if len(bounds) > 1:
            both = " and ".join(bounds)
            yield Fault("", f"has both {both}; keep one, or write two objectives")
        if kind is SignalKind.NUMBER and not bounds:
            example = "above: 200ms" if signal.is_duration else "below: 0.5"
            text = f"{signal} needs a bound or a quantile; add `{example}` or `quantile: 99%`"
            yield Fault("", text)
        if kind in (SignalKind.EVENT, SignalKind.CATEGORY):
            for name in bounds:
                yield Fault(name, f"{signal} is not a number, so it has no {name}; remove it")
        elif kind is SignalKind.QUERY and self.quantile is not None:
            yield Fault("quantile", "promql gives one number, so it has no quantile; remove it")
        for name in ("above", "below"):
            bound: Bound | None = getattr(self, name)
            if bound is None or kind in (SignalKind.EVENT, SignalKind.CATEGORY):
                continue
            if signal.is_duration and not bound.is_duration:
                yield Fault(name, f"{signal} is a duration; write a unit too, like 200ms")
            if not signal.is_duration and bound.is_duration:
                yield Fault(name, f"{signal} is not a duration; write a number without a unit")
        if self.codes is not None and signal is not Signal.GRPC_FAILURES:
            yield Fault("codes", f"apply to grpcFailures only; remove them from {signal}")
        yield from self._query_faults()
        yield from self._tolerance_faults()

    def _query_faults(self) -> Iterator[Fault]:
        if self.signal is Signal.PROMQL:
            if self.name is None:
                yield Fault("name", "is missing; promql needs one, like `name: gpuErrors`")
            if self.query is None:
                example = 'query: max(...{version="$version"})'
                yield Fault("query", f"is missing; promql needs one, like `{example}`")
            if self.above is None and self.below is None:
                yield Fault("", "promql needs a bound; add `above: 0.9` or `below: 0.1`")
            for name in ("tolerate", "margin"):
                if getattr(self, name) is not None:
                    text = "promql is compared with a bound and not with the baseline; remove it"
                    yield Fault(name, text)
            return
        if self.query is not None:
            yield Fault("query", f"applies to promql only; remove it from {self.signal}")
        if self.lasting is not None:
            yield Fault("for", f"applies to promql only; remove it from {self.signal}")

    def _tolerance_faults(self) -> Iterator[Fault]:
        kind = self.signal.kind
        is_ratio = self.tolerate is None or self.tolerate.ratio is not None
        if self.margin is not None and kind is SignalKind.CATEGORY:
            yield Fault("margin", "applies to rates and not to a mix; remove it")
        elif self.margin is not None and self.quantile is not None:
            yield Fault("margin", "applies to rates and not to quantiles; remove it")
        elif self.margin is not None and not is_ratio:
            yield Fault("margin", "adds to a tolerated ratio; remove it, or tolerate a ratio")
        if self.tolerate is None:
            return
        if kind is SignalKind.CATEGORY and is_ratio:
            text = "a mix has no ratio; write the share of answers that may move, like 5%"
            yield Fault("tolerate", text)
        if self.quantile is not None and not is_ratio:
            text = "a quantile is compared by its ratio; write it like 1.5x"
            yield Fault("tolerate", text)


def _meant(code: str) -> str:
    close = difflib.get_close_matches(code.upper(), ERROR_CODES, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(ERROR_CODES)}"
