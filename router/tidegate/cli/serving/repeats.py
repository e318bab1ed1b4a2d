"""Many calls for the same thing: which versions answered, why some failed, and what they took.

Behind a mesh this is how a split is seen from outside: each answer names the version that gave it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tidegate.cli.serving.latency import LatencySummary, summarise
from tidegate.cli.serving.outcomes import ImageOutcome
from tidegate.client import TidegateRpcError
from tidegate.errors import TidegateError

__all__ = ["RepeatReport", "VersionShare", "summarise_repeats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionShare:
    """What one version answered.

    Attributes:
        model: the model.
        version: its version.
        count: its answers.
        share: of all answers, 0 to 1.
    """

    model: str
    version: str
    count: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatReport:
    """What became of many calls.

    Attributes:
        versions: who answered, by name.
        errors: how many failed, by gRPC status; what failed before it was sent is ``NOT_SENT``.
        latency: what the answered ones took; ``None`` when none was answered.
    """

    versions: tuple[VersionShare, ...]
    errors: Mapping[str, int]
    latency: LatencySummary | None

    def as_object(self) -> Mapping[str, object]:
        """The report as a JSON object."""
        return asdict(self)


def summarise_repeats(outcomes: Sequence[ImageOutcome], seconds: float) -> RepeatReport:
    """Summarises all calls of a run.

    Args:
        outcomes: of each image.
        seconds: how long all of it took.
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
        latency=summarise(latencies, failed=failed, seconds=seconds) if latencies else None,
    )


def _status(error: TidegateError) -> str:
    return error.code.name if isinstance(error, TidegateRpcError) else "NOT_SENT"
