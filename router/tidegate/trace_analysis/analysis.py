"""The analysis: traces and a question in, a report out."""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tidegate.errors import TidegateError
from tidegate.trace_analysis.calls import Call, Fault, calls_of
from tidegate.trace_analysis.comparison import compare
from tidegate.trace_analysis.flame import FlameGraph, flame_graph
from tidegate.trace_analysis.intervals import quantile
from tidegate.trace_analysis.report import (
    BatchReport,
    CallReport,
    Comparison,
    LeftOut,
    Report,
    StageReport,
    Summary,
    VersionReport,
)
from tidegate.trace_analysis.spans import Trace
from tidegate.trace_analysis.stages import Stage, StageKind

__all__ = ["Analysis", "NoCallsError", "Question", "UnknownVersionError"]

_ERROR: Final = 0.05
_MOST_FAILED: Final = 5


class NoCallsError(TidegateError):
    """The traces have no call of the service that can be analysed."""


class UnknownVersionError(TidegateError):
    """No call was served by the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to analyse.

    Attributes:
        service: The service whose calls are analysed.
        operation: Only calls of this method of it, with or without its package; empty for any.
        versions: Only calls of these versions; empty for all. A version of the model or a subset.
        compare: The two versions to compare; None for none.
        slowest: How many of the slowest calls to name.
    """

    service: str
    operation: str = ""
    versions: tuple[str, ...] = ()
    compare: tuple[str, str] | None = None
    slowest: int = 5


class Analysis:
    """Takes traces one by one, and reports at the end.

    Args:
        question: What to analyse.

    Attributes:
        question: The same.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self._calls: list[Call] = []
        self._faults: Counter[Fault] = Counter()

    def add(self, trace: Trace) -> None:
        """Takes in a trace."""
        question = self.question
        for found in calls_of(trace, question.service, question.operation):
            if isinstance(found, Fault):
                self._faults[found] += 1
            else:
                self._calls.append(found)

    def add_all(self, traces: Iterable[Trace]) -> None:
        """Takes in traces."""
        for trace in traces:
            self.add(trace)

    def report(self) -> Report:
        """Reports on the calls so far.

        Raises:
            NoCallsError: There are none.
            UnknownVersionError: A version was asked for that served none of them.
        """
        by_version, others = self._wanted()
        calls = sorted((each for some in by_version.values() for each in some), key=_by_start)
        answered = [call for call in calls if call.is_ok]
        slowest = sorted(answered, key=lambda call: -call.duration_us)[: self.question.slowest]
        failed = [call for call in calls if not call.is_ok][-_MOST_FAILED:]
        return Report(
            service=self.question.service,
            calls=len(calls),
            spans=sum(call.spans for call in calls),
            first_us=calls[0].start_us,
            last_us=calls[-1].start_us,
            versions=tuple(_version(name, some) for name, some in by_version.items()),
            comparison=self._comparison(by_version),
            slowest=tuple(map(_call, slowest)),
            failed=tuple(map(_call, failed)),
            left_out=LeftOut(
                incomplete=self._faults[Fault.INCOMPLETE],
                cyclic=self._faults[Fault.CYCLE],
                skewed=sum(call.skew_us > 0 for call in calls),
                largest_skew_us=max(call.skew_us for call in calls),
                without_caller=sum(not call.has_caller for call in calls),
                other_versions=others,
            ),
        )

    def flame_graph(self) -> FlameGraph:
        """Returns the flame graph of the versions that `report` reports on. Raises as it does."""
        by_version, _ = self._wanted()
        return flame_graph(self.question.service, by_version)

    def _wanted(self) -> tuple[dict[str, list[Call]], int]:
        """Returns the calls by version, those with most calls first, and how many are others."""
        if not self._calls:
            raise NoCallsError(self._no_calls())
        by_version: dict[str, list[Call]] = {}
        for call in sorted(self._calls, key=_by_start):
            by_version.setdefault(call.version, []).append(call)
        question = self.question
        asked = (*question.versions, *(question.compare or ()))
        if asked:
            names = dict.fromkeys(self._version_named(each, by_version) for each in asked)
            by_version = {name: by_version[name] for name in names}
        by_version = dict(sorted(by_version.items(), key=lambda each: -len(each[1])))
        return by_version, len(self._calls) - sum(map(len, by_version.values()))

    def _no_calls(self) -> str:
        question = self.question
        what = f"of {question.service}" + (f" {question.operation}" if question.operation else "")
        left_out = self._faults.total()
        if left_out:
            return (
                f"all {left_out} traces with calls {what} are incomplete: a span between the caller"
                " and the server is missing; do all of them send their spans to the same collector?"
            )
        return f"there are no calls {what} in the traces"

    def _version_named(self, name: str, by_version: dict[str, list[Call]]) -> str:
        """Returns the version of a name: the version itself, or that which a subset serves."""
        if name in by_version:
            return name
        # Calls that no model answers, such as ListModels, tell their subset but no version.
        served = {each for each, calls in by_version.items() if each and _subset(calls) == name}
        if len(served) == 1:
            return served.pop()
        known = ", ".join(
            f"{each or '(no version)'}" + (f" ({_subset(calls)})" if _subset(calls) else "")
            for each, calls in by_version.items()
        )
        close = difflib.get_close_matches(name, by_version, n=1)
        hint = f"; did you mean {close[0]}?" if close and close[0] else ""
        raise UnknownVersionError(
            f"no call of {self.question.service} was served by version {name}; there are"
            f" {known}{hint}"
        )

    def _comparison(self, by_version: dict[str, list[Call]]) -> Comparison | None:
        if self.question.compare is None:
            return None
        names = [self._version_named(each, by_version) for each in self.question.compare]
        for name in names:
            if not any(call.is_ok for call in by_version[name]):
                raise NoCallsError(
                    f"no call of {self.question.service} got an answer from version {name}, so"
                    " there are no times to compare"
                )
        first, second = names
        return compare(first, by_version[first], second, by_version[second])


def _by_start(call: Call) -> int:
    return call.start_us


def _subset(calls: Sequence[Call]) -> str:
    """Returns the subset of calls if they all have the same, or none."""
    subsets = {call.subset for call in calls} - {""}
    return subsets.pop() if len(subsets) == 1 else ""


def _version(name: str, calls: Sequence[Call]) -> VersionReport:
    answered = [call for call in calls if call.is_ok]
    return VersionReport(
        version=name,
        subset=_subset(calls),
        calls=len(calls),
        statuses=dict(Counter(call.status for call in calls).most_common()),
        time=_summary([call.duration_us for call in answered]) if answered else None,
        kinds=_kinds(answered) if answered else {},
        stages=_stages(answered),
        batches=_batches(answered),
    )


def _summary(times_us: Sequence[int]) -> Summary:
    return Summary(
        mean_us=sum(times_us) / len(times_us),
        p50=quantile(times_us, 0.5, _ERROR),
        p95=quantile(times_us, 0.95, _ERROR),
        p99=quantile(times_us, 0.99, _ERROR),
    )


def _kinds(calls: Sequence[Call]) -> dict[str, Summary]:
    return {kind.value: _summary([_time_of(call, kind) for call in calls]) for kind in StageKind}


def _time_of(call: Call, kind: StageKind) -> int:
    return sum(time_us for stage, time_us in call.stages.items() if stage.kind is kind)


def _stages(calls: Sequence[Call]) -> tuple[StageReport, ...]:
    totals: Counter[Stage] = Counter()
    for call in calls:
        totals.update(call.stages)
    whole = max(totals.total(), 1)
    return tuple(
        StageReport(
            name=stage.name,
            kind=stage.kind.value,
            share=total / whole,
            time=_summary([call.stages.get(stage, 0) for call in calls]),
        )
        for stage, total in totals.most_common()
    )


def _batches(calls: Sequence[Call]) -> tuple[BatchReport, ...]:
    """Groups calls by batch size: 1, 2, 3 and 4, 5 to 8, and so on."""
    groups: dict[int, list[tuple[int, Call]]] = {}
    for call in calls:
        size = call.batch_size
        if size is not None and size > 0:
            groups.setdefault((size - 1).bit_length(), []).append((size, call))
    return tuple(
        BatchReport(
            smallest=min(size for size, _ in group),
            largest=max(size for size, _ in group),
            calls=len(group),
            time=_summary([call.duration_us for _, call in group]),
            compute=_summary([_time_of(call, StageKind.COMPUTE) for _, call in group]),
        )
        for _, group in sorted(groups.items())
    )


def _call(call: Call) -> CallReport:
    stage, stage_us = max(
        ((stage.name, time_us) for stage, time_us in call.stages.items()),
        key=lambda each: each[1],
        default=("", 0),
    )
    return CallReport(
        trace_id=call.trace_id,
        start_us=call.start_us,
        duration_us=call.duration_us,
        version=call.version,
        batch_size=call.batch_size,
        status=call.status,
        stage=stage,
        stage_us=stage_us,
    )
