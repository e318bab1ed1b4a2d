"""The strategies: how a rollout brings traffic from the baseline to the candidate."""

import enum
from typing import Annotated, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from tidegate.rollout.spec.faults import Fault, FaultsError
from tidegate.rollout.spec.objectives import StrictModel
from tidegate.rollout.spec.quantities import Seconds

__all__ = [
    "AbStrategy",
    "AfterTest",
    "BlueGreenStrategy",
    "CanaryStrategy",
    "CookieName",
    "Flag",
    "HeaderName",
    "ManualStrategy",
    "Pause",
    "Percent",
    "Portion",
    "Ramp",
    "ShadowStrategy",
    "Step",
    "Strategy",
    "Tester",
    "Wait",
]


def _few_decimals(percent: float) -> float:
    if round(percent, 3) != percent:
        raise ValueError("has too many decimals; write at most three")
    return percent


Percent = Annotated[float, Strict(), Field(ge=0, le=100), AfterValidator(_few_decimals)]
"""A share in percent, from 0 to 100."""

Portion = Annotated[float, Strict(), Field(gt=0, le=100), AfterValidator(_few_decimals)]
"""A share in percent that is not 0."""

Flag = Annotated[bool, Strict()]
HeaderName = Annotated[str, Field(pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]{1,256}$")]
CookieName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$")]
Wait = Annotated[Seconds, Field(gt=0)]
"""A duration that is not 0."""


def _one_of(model: StrictModel, what: str) -> None:
    # A weight of 0 is given, and equals False.
    names = [
        field.alias or name
        for name, field in type(model).model_fields.items()
        if getattr(model, name) is not None and getattr(model, name) is not False
    ]
    known = [field.alias or name for name, field in type(model).model_fields.items()]
    if len(names) != 1:
        found = f"has {' and '.join(names)}" if names else "is empty"
        raise ValueError(f"{found}; {what} has exactly one of {', '.join(known)}")


class Tester(StrictModel):
    """Requests of testers, which go to the candidate whatever the weights are."""

    header: HeaderName | None = None
    """The request header to compare, in lower case."""

    cookie: CookieName | None = None
    """The cookie to compare."""

    value: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """The exact value; without it any value does."""

    to: str | None = None
    """The version that gets the requests; the candidate by default."""

    @model_validator(mode="after")
    def _names_one_place(self) -> Self:
        if (self.header is None) == (self.cookie is None):
            raise ValueError("needs either header or cookie; write `{header: x-tester}`")
        return self


class Pause(StrictModel):
    """What a step waits for. Exactly one of the fields."""

    for_time: Wait | None = Field(None, alias="for")
    """Waits so long, and then until every objective that decides has data."""

    until_evidence: Flag = False
    """Waits until every objective is proven to be met."""

    until_approved: Flag = False
    """Waits until somebody runs `tidegate rollout promote`."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        _one_of(self, "a pause")
        return self


class Step(StrictModel):
    """One step of a canary: sets the candidate's weight, or waits. Exactly one of the fields."""

    weight: Percent | None = None
    """The candidate's share in percent, with at most three decimals."""

    pause: Pause | None = None
    """What to wait for."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        _one_of(self, "a step")
        return self


class Ramp(StrictModel):
    """Raises the candidate's weight as fast as the evidence and the harm budget allow."""

    harm_budget: Annotated[float, Strict(), Field(gt=0, le=1e9)]
    """How many more bad requests than the baseline's the rollout may cost users."""

    max_weight: Portion = 50
    """The largest share of the candidate in percent before it is promoted."""

    start_weight: Portion = 1
    """The smallest share of the candidate in percent, with which the ramp begins."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        if self.start_weight > self.max_weight:
            text = f"is above maxWeight, {self.max_weight:g}; make it smaller"
            raise FaultsError([Fault("startWeight", text)])
        return self


class CanaryStrategy(StrictModel):
    """Gives the candidate a growing share, by steps or by a ramp."""

    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=100)] | None = None
    """The steps, in order. After the last one the rollout waits until every objective is met, and
    promotes the candidate."""

    ramp: Ramp | None = None
    """The ramp, instead of steps."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        _one_of(self, "a canary")
        if self.steps is not None and self.steps[0].weight is None:
            text = "is a pause; begin with a weight, like `weight: 1`"
            raise FaultsError([Fault("steps[0]", text)])
        return self


class AfterTest(enum.StrEnum):
    """Where traffic goes when an A/B test has ended."""

    BASELINE = "baseline"
    WINNER = "winner"
    KEEP = "keep"


class AbStrategy(StrictModel):
    """Divides users among versions for a time and reports how they differ."""

    weights: dict[str, Percent] | None = None
    """The share of each version in percent, summing to 100; equal shares by default. With `testers`
    only, give the baseline 100."""

    lasting: Wait | None = Field(None, alias="for")
    """How long the test runs: a fixed horizon."""

    until_evidence: Flag = False
    """Ends the test as soon as every objective is decided for every candidate."""

    then: AfterTest = AfterTest.BASELINE
    """Where traffic goes when the test has ended: back to the baseline, to the winner (the only
    candidate that met every objective; else the baseline), or as it is (`keep`)."""

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.lasting is None and not self.until_evidence:
            raise ValueError("never ends; add `for: 24h`, `untilEvidence: true`, or both")
        if self.weights is not None and abs(sum(self.weights.values()) - 100) > 1e-9:
            total = sum(self.weights.values())
            raise FaultsError([Fault("weights", f"sum to {total:g}; make them sum to 100")])
        return self


class BlueGreenStrategy(StrictModel):
    """Tries the candidate on testers or on copies of requests, then switches all traffic."""

    mirror: Percent | None = None
    """The percentage of requests that are copied to the candidate before the switch."""

    until_approved: Flag = False
    """Waits for `tidegate rollout promote` before the switch."""

    watch: Wait = 600.0
    """How long the rollout watches after the switch before it ends; an abort switches back."""

    hold_back: Annotated[Percent, Field(lt=100)] = 5
    """The percentage of requests that stay with the baseline while the rollout watches. Both can
    then be compared after the switch; with 0 nothing can be proven there."""

    @model_validator(mode="after")
    def _has_a_condition(self) -> Self:
        if not self.mirror and not self.until_approved:
            raise ValueError(
                "switches without a condition; add `mirror: 10` (then evidence decides),"
                " `untilApproved: true`, or both"
            )
        return self


class ShadowStrategy(StrictModel):
    """Copies requests to the candidate, discards its answers, and compares both versions."""

    mirror: Portion = 100
    """The percentage of requests that are copied."""

    lasting: Wait | None = Field(None, alias="for")
    """How long at most; `decide.within` by default. It ends earlier when every objective is
    decided."""


class ManualStrategy(StrictModel):
    """Gives the candidate each weight when somebody approves it."""

    weights: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=100)]
    """The candidate's shares in percent, in order. Each waits for `tidegate rollout promote`."""


class Strategy(StrictModel):
    """How traffic moves. Exactly one of the fields."""

    canary: CanaryStrategy | None = None
    """A growing share, by steps or by a ramp."""

    ab: AbStrategy | None = None
    """A comparison of versions on divided users, with a report."""

    blue_green: BlueGreenStrategy | None = None
    """One switch of all traffic."""

    shadow: ShadowStrategy | None = None
    """Copies of requests; users see only the baseline."""

    manual: ManualStrategy | None = None
    """Each weight is approved by a person."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        _one_of(self, "a strategy")
        return self

    @property
    def kind(self) -> str:
        """Which strategy it is, as files name it: ``canary``, ``blueGreen``."""
        return next(
            field.alias or name
            for name, field in type(self).model_fields.items()
            if getattr(self, name) is not None
        )
