"""The results of ``tidegate classify``: for each image, and summed up with ``--repeat``.

Behind a mesh, repeated calls show a traffic split from outside: each answer names the version that
gave it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tidegate.client import ClassifyResult, TidegateRpcError
from tidegate.errors import TidegateError

__all__ = [
    "ImageOutcome",
    "LatencySummary",
    "RepeatReport",
    "VersionShare",
    "summarise_latencies",
    "summarise_repeats",
]


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """The outcome of one image, which is sent once or several times.

    Attributes:
        name: The image.
        results: The answers of the calls that succeeded.
        errors: The errors of the calls that failed.
        latencies_s: The latencies of the calls that succeeded, in seconds.
    """

    name: str
    results: tuple[ClassifyResult, ...]
    errors: tuple[TidegateError, ...]
    latencies_s: tuple[float, ...]

    @property
    def result(self) -> ClassifyResult | None:
        """The last answer, if any."""
        return self.results[-1] if self.results else None

    @property
    def error(self) -> TidegateError | None:
        """The first error, if any."""
        return self.errors[0] if self.errors else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySummary:
    """Latencies of many calls in milliseconds, as the client measured them.

    Attributes:
        count: Calls that succeeded.
        failed: Calls that failed.
        seconds: The time from the first to the last call.
        per_second: Calls that succeeded, a second.
        min_ms: The shortest latency.
        p50_ms: The 50th percentile.
        p90_ms: The 90th percentile.
        p95_ms: The 95th percentile.
        p99_ms: The 99th percentile.
        max_ms: The longest latency.
    """

    count: int
    failed: int
    seconds: float
    per_second: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShare:
    """The answers of one version.

    Attributes:
        model: The model.
        version: The version.
        count: The number of its answers.
        share: Its share of all answers, 0 to 1.
    """

    model: str
    version: str
    count: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatReport:
    """The sum of many calls.

    Attributes:
        versions: The versions that answered, by name.
        errors: Failed calls by gRPC status; ``NOT_SENT`` for calls that failed before they were
            sent.
        latency: The latencies of the calls that succeeded; ``None`` if none did.
    """

    versions: tuple[VersionShare, ...]
    errors: Mapping[str, int]
    latency: LatencySummary | None

    def as_object(self) -> Mapping[str, object]:
        """Returns the report as a JSON object."""
        return asdict(self)


def summarise_repeats(outcomes: Sequence[ImageOutcome], seconds: float) -> RepeatReport:
    """Summarises all calls of a run.

    Args:
        outcomes: The outcome of each image.
        seconds: The duration of the whole run.
    """
    answers = Counter(
        (result.model, result.version) for outcome in outcomes for result in outcome.results
    )
    errors = Counter(_status(error) for outcome in outcomes for error in outcome.errors)
    latencies = [latency for outcome in outcomes for latency in outcome.latencies_s]
    failed = errors.total()
    return RepeatReport(
        versions=tuple(
            VersionShare(model=model, version=version, count=count, share=count / answers.total())
            for (model, version), count in sorted(answers.items())
        ),
        errors=dict(sorted(errors.items())),
        latency=summarise_latencies(latencies, failed=failed, seconds=seconds)
        if latencies
        else None,
    )


def summarise_latencies(
    latencies_s: Sequence[float], *, failed: int, seconds: float
) -> LatencySummary:
    """Summarises latencies by the nearest-rank method.

    Args:
        latencies_s: The latencies of the calls that succeeded, in seconds; at least one.
        failed: Calls that failed.
        seconds: The duration of the whole run.
    """
    ordered = sorted(latencies_s)

    def at(percent: int) -> float:
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] * 1000

    return LatencySummary(
        count=len(ordered),
        failed=failed,
        seconds=seconds,
        per_second=len(ordered) / seconds if seconds > 0 else 0.0,
        min_ms=ordered[0] * 1000,
        p50_ms=at(50),
        p90_ms=at(90),
        p95_ms=at(95),
        p99_ms=at(99),
        max_ms=ordered[-1] * 1000,
    )


def _status(error: TidegateError) -> str:
    return error.code.name if isinstance(error, TidegateRpcError) else "NOT_SENT"
