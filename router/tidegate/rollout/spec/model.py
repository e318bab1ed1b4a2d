"""The `Rollout` object: the source from which the JSON Schema and the CRD are generated.

A wrong object is refused with the path of each wrong field, its value, and what to write instead;
see `tidegate.rollout.spec.reading`.
"""

import enum
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from tidegate.evidence.plan import EvidencePlan, Importance
from tidegate.evidence.window import VersionName
from tidegate.istio.scalars import is_label_name, is_label_value
from tidegate.rollout.spec.faults import Fault, FaultsError
from tidegate.rollout.spec.objectives import Objective, SignalKind, StrictModel
from tidegate.rollout.spec.quantities import Fraction, Seconds
from tidegate.rollout.spec.strategies import CookieName, HeaderName, Strategy, Tester

__all__ = [
    "API_VERSION",
    "KIND",
    "Decide",
    "EvidenceFrom",
    "EvidenceSource",
    "ForeignChange",
    "Metadata",
    "Otherwise",
    "Rollout",
    "RolloutSpec",
    "StickyBy",
    "TrafficObjects",
    "WriteMode",
]

API_VERSION = "tidegate.dev/v1alpha1"
KIND = "Rollout"

_Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
_Host = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
_CallersHost = Annotated[str, Field(pattern=r"^(\*|(\*\.)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)$")]
_Gateway = Annotated[
    str, Field(pattern=r"^([a-z0-9][-a-z0-9]*/)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
]


class Metadata(StrictModel):
    """The rollout's name."""

    name: _Name
    """The name, unique in its namespace."""

    namespace: _Name = "default"
    """The namespace."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the user's own."""

    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the user's own."""

    @model_validator(mode="after")
    def _suits_kubernetes(self) -> Self:
        faults = [
            Fault(field, f"{name!r} is not a name; write it like team or example.com/team")
            for field, texts in (("labels", self.labels), ("annotations", self.annotations))
            for name in texts
            if not is_label_name(name)
        ]
        faults += [
            Fault(
                "labels",
                f"{value!r} is not a value; use letters, 0-9, -, _ and dots, at most 63",
            )
            for value in self.labels.values()
            if not is_label_value(value)
        ]
        if faults:
            raise FaultsError(faults)
        return self


class Otherwise(enum.StrEnum):
    """What happens when the time is up and nothing is proven."""

    PAUSE = "pause"
    ABORT = "abort"
    PROMOTE = "promote"


class ForeignChange(enum.StrEnum):
    """What happens when somebody else changes the host's traffic during the rollout."""

    PAUSE = "pause"
    REASSERT = "reassert"
    ADOPT = "adopt"


class Decide(StrictModel):
    """When the evidence is enough."""

    false_abort: Annotated[Fraction, Field(gt=0, le=0.5)] = 0.01
    """The probability that a candidate that meets every objective is ever aborted."""

    bad_promotion: Annotated[Fraction, Field(gt=0, le=0.5)] = 0.05
    """The probability that a candidate that misses an objective is promoted."""

    within: Annotated[Seconds, Field(ge=1, le=30 * 86400)] = 7200.0
    """How long the rollout may run without a decision."""

    otherwise: Otherwise = Otherwise.PAUSE
    """What happens then: `pause`, `abort` or `promote`."""


class StickyBy(StrictModel):
    """What keeps a user on one version. Exactly one of the fields."""

    header: HeaderName | None = None
    """The request header that names the user, in lower case."""

    cookie: CookieName | None = None
    """The cookie that names the user."""

    @model_validator(mode="after")
    def _names_one_place(self) -> Self:
        if (self.header is None) == (self.cookie is None):
            raise ValueError("needs either header or cookie; write `{header: x-user-id}`")
        return self


class EvidenceFrom(enum.StrEnum):
    """Where counts come from."""

    ACCESS_LOG = "accessLog"
    PROMETHEUS = "prometheus"


class EvidenceSource(StrictModel):
    """Where the evidence comes from."""

    source: EvidenceFrom = EvidenceFrom.ACCESS_LOG
    """`accessLog`: every request, from the proxies. `prometheus`: counters of a Prometheus."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$", max_length=2048)] | None = None
    """The address of Prometheus, for the source `prometheus` and for the signal `promql`; by
    default that of the router's settings."""


class WriteMode(enum.StrEnum):
    """How a rollout writes traffic on a cluster."""

    PATCH = "patch"
    DELEGATE = "delegate"
    OWN = "own"


class TrafficObjects(StrictModel):
    """Which Istio objects the rollout writes on a cluster. A laptop's objects are its files."""

    write: WriteMode = WriteMode.PATCH
    """`patch`: the weights in a VirtualService of somebody else. `delegate`: a VirtualService of
    the rollout's own, to which one of somebody else delegates. `own`: all routes of the host."""

    virtual_service: _Name | None = None
    """The VirtualService to write, in the rollout's namespace. By default, with `patch` the only
    one that routes the host; otherwise the first label of the host, with `-rollout` behind it for
    `delegate`."""

    port: Annotated[int, Strict(), Field(ge=1, le=65535)] | None = None
    """The host's port for `delegate` and `own`; by default the only port of its Service."""

    hosts: Annotated[tuple[_CallersHost, ...], Field(max_length=100)] = ()
    """The host names of the callers, for `own`; by default the host itself."""

    gateways: Annotated[tuple[_Gateway, ...], Field(max_length=100)] = ()
    """The gateways with these routes, for `own`: NAME, NAMESPACE/NAME, or `mesh` for sidecars; by
    default `mesh`."""

    @model_validator(mode="after")
    def _suits_the_mode(self) -> Self:
        fixed = {"port": self.port, "hosts": self.hosts, "gateways": self.gateways}
        allowed = {
            WriteMode.PATCH: frozenset(),
            WriteMode.DELEGATE: frozenset({"port"}),
            WriteMode.OWN: frozenset(fixed),
        }[self.write]
        faults = [
            Fault(name, f"has no effect with `write: {self.write}`; remove it")
            for name, value in fixed.items()
            if value and name not in allowed
        ]
        if faults:
            raise FaultsError(faults)
        return self


class RolloutSpec(StrictModel):
    """What the rollout does."""

    host: _Host
    """The Istio host whose traffic is divided: its full name, or the first label of it."""

    baseline: _Name
    """The subset that serves now and is trusted."""

    candidate: _Name | None = None
    """The subset that is new."""

    candidates: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=10)] | None = None
    """The subsets that are new, for an A/B test of several."""

    strategy: Strategy
    """How traffic moves."""

    testers: Annotated[tuple[Tester, ...], Field(max_length=20)] = ()
    """Requests that go to the candidate whatever the weights are."""

    sticky: StickyBy | None = None
    """Keeps each user on one version. Evidence then counts users, not requests."""

    objectives: Annotated[tuple[Objective, ...], Field(max_length=20)] = ()
    """What the candidate must not do worse than the baseline."""

    decide: Decide = Decide()
    """When the evidence is enough."""

    on_foreign_change: ForeignChange = ForeignChange.PAUSE
    """What happens when somebody else changes the host's traffic meanwhile: `pause`, `reassert` or
    `adopt`."""

    evidence: EvidenceSource = EvidenceSource()
    """Where the evidence comes from."""

    traffic: TrafficObjects = TrafficObjects()
    """Which Istio objects the rollout writes on a cluster."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if found := self._faults():
            raise FaultsError(found)
        return self

    @property
    def candidate_names(self) -> tuple[str, ...]:
        """The candidates."""
        return self.candidates or ((self.candidate,) if self.candidate else ())

    def evidence_plan(self, candidate: str) -> EvidencePlan:
        """Returns how the evidence judges a candidate.

        With several candidates each gets an equal part of the error rates (Bonferroni), so that
        they hold for the whole rollout.
        """
        count = len(self.candidate_names)
        return EvidencePlan(
            baseline=VersionName(self.baseline),
            candidate=VersionName(candidate),
            objectives=tuple(each.judged for each in self.objectives),
            false_abort=self.decide.false_abort / count,
            bad_promotion=self.decide.bad_promotion / count,
            within_s=self.decide.within,
        )

    def _faults(self) -> list[Fault]:
        return [*self._version_faults(), *self._strategy_faults(), *self._objective_faults()]

    def _version_faults(self) -> Iterator[Fault]:
        names = self.candidate_names
        if self.candidate is not None and self.candidates is not None:
            yield Fault("candidates", "is there beside candidate; keep one of them")
        elif not names:
            yield Fault("candidate", "is missing; name the new subset, like `candidate: v2`")
        if self.candidates is not None and self.strategy.ab is None:
            yield Fault("candidates", "only `ab` compares several; write `candidate: v2`")
        if self.candidate == self.baseline:
            yield Fault("candidate", f"{self.baseline} is the baseline; name another subset")
        for index, name in enumerate(self.candidates or ()):
            if name == self.baseline:
                text = f"{name} is the baseline; name another subset"
                yield Fault(f"candidates[{index}]", text)
            elif name in (self.candidates or ())[:index]:
                yield Fault(f"candidates[{index}]", f"{name} is named twice; name it once")
        versions = (self.baseline, *names)
        for index, tester in enumerate(self.testers):
            if tester.to is not None and tester.to not in versions:
                yield Fault(
                    f"testers[{index}].to",
                    f"{tester.to} is neither the baseline nor a candidate; name one of"
                    f" {', '.join(versions)}",
                )
            if tester.to is None and len(names) > 1:
                text = f"is missing; name one of {', '.join(names)}"
                yield Fault(f"testers[{index}].to", text)

    def _strategy_faults(self) -> Iterator[Fault]:
        ab = self.strategy.ab
        if ab is not None and ab.weights is not None:
            versions = (self.baseline, *self.candidate_names)
            if set(ab.weights) != set(versions):
                text = f"name every version once: {', '.join(versions)}"
                yield Fault("strategy.ab.weights", text)
        if ab is not None and ab.until_evidence and not self.objectives:
            text = "nothing can be decided without objectives; add one, or remove it"
            yield Fault("strategy.ab.untilEvidence", text)
        canary = self.strategy.canary
        if canary is not None and canary.ramp is not None:
            kinds = {each.signal.kind for each in self._aborting() if each.quantile is None}
            if SignalKind.EVENT not in kinds and SignalKind.NUMBER not in kinds:
                yield Fault(
                    "strategy.canary.ramp",
                    "needs an objective that counts bad requests; add `{signal: grpcFailures}` to"
                    " objectives",
                )

    def _objective_faults(self) -> Iterator[Fault]:
        names = [each.metric for each in self.objectives]
        for index, name in enumerate(names):
            if name in names[:index]:
                text = f"{name} is there twice; remove one, or give one a `name`"
                yield Fault(f"objectives[{index}]", text)
        needs_evidence = self.strategy.manual is None and self.strategy.ab is None
        if needs_evidence and not self._deciding():
            yield Fault(
                "objectives",
                "nothing can promote the candidate; add `{signal: grpcFailures}`, or use the"
                " strategy `manual`",
            )
        if self.strategy.shadow is None and self.strategy.blue_green is None:
            for index, each in enumerate(self.objectives):
                if each.signal == "answerDisagreement":
                    yield Fault(
                        f"objectives[{index}].signal",
                        "answers can be compared only where requests are mirrored; use the"
                        " strategy `shadow`",
                    )

    def _aborting(self) -> "list[Objective]":
        return [each for each in self.objectives if each.followed_by is Importance.ABORT]

    def _deciding(self) -> "list[Objective]":
        return [each for each in self.objectives if each.followed_by is not Importance.REPORT]


class Rollout(StrictModel):
    """A rollout of a model version."""

    api_version: Literal["tidegate.dev/v1alpha1"]
    """`tidegate.dev/v1alpha1`."""

    kind: Literal["Rollout"]
    """`Rollout`."""

    metadata: Metadata
    """The rollout's name."""

    spec: RolloutSpec
    """What the rollout does."""

    @property
    def key(self) -> str:
        """The rollout's identity, ``namespace/name``."""
        return f"{self.metadata.namespace}/{self.metadata.name}"
