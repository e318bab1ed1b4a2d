"""The report of an analysis, as plain values; `dataclasses.asdict` of it is the JSON.

Times are in microseconds. Quantiles and stages are of the calls that got an answer: the time of a
call that was refused or failed says nothing about how fast answers are. Failed calls are counted.
"""

from dataclasses import dataclass
from enum import StrEnum

from tidegate.trace_analysis.intervals import Estimate

__all__ = [
    "BatchReport",
    "CallReport",
    "Comparison",
    "Difference",
    "LeftOut",
    "Report",
    "StageReport",
    "Summary",
    "Verdict",
    "VersionReport",
]


class Verdict(StrEnum):
    """What an interval of a difference says."""

    MORE = "more"
    LESS = "less"
    NOISE = "noise"
    TOO_FEW = "too few calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A distribution of times.

    Attributes:
        mean_us: The mean.
        p50: The median, with its interval of 95 %.
        p95: The 95 % quantile.
        p99: The 99 % quantile.
    """

    mean_us: float
    p50: Estimate
    p95: Estimate
    p99: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """The time of a stage on the critical path, over all calls of a version.

    Attributes:
        name: Service and name.
        kind: ``queue``, ``compute``, ``server`` or ``outside``.
        share: Its part of the time of all calls, 0 to 1.
        time: Its time in a call; 0 in a call whose critical path does not have it.
    """

    name: str
    kind: str
    share: float
    time: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """Calls that the model served in batches of similar size.

    Attributes:
        smallest: The smallest batch size.
        largest: The largest batch size.
        calls: Number of calls.
        time: The time of a call.
        compute: Its part that is spent computing.
    """

    smallest: int
    largest: int
    calls: int
    time: Summary
    compute: Summary


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionReport:
    """The calls of one version.

    Attributes:
        version: The version of the model; empty if spans name none.
        subset: The subset that Envoy chose for them; empty if spans name none, or several.
        calls: Number of calls.
        statuses: Their number by status.
        time: The time of a call; None if none got an answer. The same for the next two.
        kinds: The time on the critical path by kind: ``queue``, ``compute``, ``server``,
            ``outside``.
        stages: The stages, the largest first.
        batches: The calls by batch size, the smallest first.
    """

    version: str
    subset: str
    calls: int
    statuses: dict[str, int]
    time: Summary | None
    kinds: dict[str, Summary]
    stages: tuple[StageReport, ...]
    batches: tuple[BatchReport, ...]

    @property
    def answered(self) -> int:
        """The number of calls that got an answer."""
        return self.statuses.get("OK", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a number differs between two versions.

    Attributes:
        what: What is compared: ``call``, a stage, or ``failed calls``.
        quantile: The quantile of its time; None for a share.
        first: The first version's number: microseconds, or a share from 0 to 1.
        second: The second version's.
        low: The least that the second has more than the first; None without an interval.
        high: The most.
        verdict: Whether that is more than noise.
    """

    what: str
    quantile: float | None
    first: float
    second: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the second version differs from the first.

    Attributes:
        first: The first version.
        second: The second version.
        confidence: The probability that all intervals together are right.
        mean_us: By how much the mean time of a call differs.
        mean_by_stage_us: The same by stage; these add up to it. The largest first.
        differences: What was compared.
        overlap: The part of the calls that began while both versions had calls, 0 to 1.
    """

    first: str
    second: str
    confidence: float
    mean_us: float
    mean_by_stage_us: dict[str, float]
    differences: tuple[Difference, ...]
    overlap: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallReport:
    """One call.

    Attributes:
        trace_id: The trace's id.
        start_us: When it began, in microseconds since 1970.
        duration_us: Its duration.
        version: The version of the model.
        batch_size: Images in the model's batch; None if no span says.
        status: Its status.
        stage: The stage on the critical path that took longest.
        stage_us: The time of that stage.
    """

    trace_id: str
    start_us: int
    duration_us: int
    version: str
    batch_size: int | None
    status: str
    stage: str
    stage_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What the traces had that the report is not about, and what it had to assume.

    Attributes:
        incomplete: Traces with a call of which spans are missing; such a call is left out.
        cyclic: Traces with spans that are their own ancestors; such a call is left out.
        skewed: Calls in which the clocks of hosts contradict each other; they are corrected.
        largest_skew_us: By how much they do at most.
        without_caller: Calls whose caller sends no spans; they begin at the first span there is.
        other_versions: Calls of versions that were not asked for.
    """

    incomplete: int = 0
    cyclic: int = 0
    skewed: int = 0
    largest_skew_us: int = 0
    without_caller: int = 0
    other_versions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Where the time of a service's calls goes.

    Attributes:
        service: The service.
        calls: Number of calls.
        spans: Number of their spans.
        first_us: When the first call began, in microseconds since 1970.
        last_us: When the last one began.
        versions: The versions, the one with most calls first.
        comparison: The comparison of two of them, if asked for.
        slowest: The slowest calls that got an answer.
        failed: The last calls that got none.
        left_out: What the report is not about.
    """

    service: str
    calls: int
    spans: int
    first_us: int
    last_us: int
    versions: tuple[VersionReport, ...]
    comparison: Comparison | None
    slowest: tuple[CallReport, ...]
    failed: tuple[CallReport, ...]
    left_out: LeftOut
