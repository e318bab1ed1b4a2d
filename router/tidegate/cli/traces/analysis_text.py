"""The report of `tidegate trace analyse` as text: tables, and what to know about them."""

from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tidegate.cli.traces.waterfall import duration_text, printable, time_text
from tidegate.trace_analysis.intervals import Estimate
from tidegate.trace_analysis.report import (
    CallReport,
    Comparison,
    Difference,
    LeftOut,
    Report,
    Summary,
    Verdict,
    VersionReport,
)

__all__ = ["report_text"]

_KINDS: Final = ("queue", "compute", "server", "outside")
_MOST_STAGES: Final = 12
_MOST_PARTS: Final = 4
_BAR_CELLS: Final = 16
# Sixteen digits identify a trace, and are enough for `tidegate trace show`.
_ID_DIGITS: Final = 16
_STYLES: Final = {Verdict.MORE: "red", Verdict.LESS: "green", Verdict.TOO_FEW: "dim"}
_SHARED: Final = 0.5
_LONG: Final = frozenset({" LONGEST STAGE", " STAGE", " WHAT"})
_LEAST_PART: Final = 0.005


def report_text(report: Report) -> RenderableType:
    """Returns the report of one service.

    Args:
        report: The report.
    """
    parts: list[RenderableType] = [
        Text(
            f"{printable(report.service)}: {_counted(report.calls, 'call')},"
            f" {_counted(report.spans, 'span')}, {time_text(report.first_us)} to"
            f" {time_text(report.last_us)}",
            "bold",
        ),
        Text(),
        _versions(report.versions),
    ]
    for version in report.versions:
        if version.time is not None:
            parts += _headed(f"Where the time goes, {_name(version)}", _stages(version))
    if any(version.batches for version in report.versions):
        parts += _headed("By batch size", _batches(report.versions))
    if report.comparison is not None:
        parts += _comparison(report.comparison)
    if report.slowest:
        parts += _headed("Slowest calls", _calls(report.slowest))
    if report.failed:
        parts += _headed("Last calls that failed", _calls(report.failed))
    notes = list(_notes(report.left_out))
    if notes:
        parts.append(Text())
        parts += [Text(note, "yellow") for note in notes]
    return Group(*parts)


def _headed(title: str, *below: RenderableType) -> list[RenderableType]:
    return [Text(), Text(printable(title), "bold"), *below]


def _table(*titles: str) -> Table:
    """Returns a table whose columns are numbers, unless their titles begin with a space."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        is_text = title.startswith(" ")
        # On a narrow terminal the long names wrap, and the numbers stay whole.
        table.add_column(
            title.strip(), justify="left" if is_text else "right", no_wrap=title not in _LONG
        )
    return table


def _versions(versions: Sequence[VersionReport]) -> Table:
    table = _table(
        *(" VERSION", "CALLS", "FAILED", "MEAN", "P50", "P95", "P99"),
        *(kind.upper() for kind in _KINDS),
    )
    for version in versions:
        time = version.time
        row = [_name(version), f"{version.calls:,}", f"{version.calls - version.answered:,}"]
        if time is None:
            row += ["–"] * (4 + len(_KINDS))
        else:
            row += [duration_text(time.mean_us), *_quantiles(time)]
            row += [_share(version.kinds[kind].mean_us, time.mean_us) for kind in _KINDS]
        table.add_row(*row)
    return table


def _stages(version: VersionReport) -> Table:
    table = _table(" STAGE", " KIND", "MEAN", "SHARE", "P50", "P95", "P99", " ")
    for stage in version.stages[:_MOST_STAGES]:
        table.add_row(
            *(printable(stage.name), stage.kind, duration_text(stage.time.mean_us)),
            *(f"{stage.share:.1%}", *_quantiles(stage.time)),
            "█" * round(stage.share * _BAR_CELLS),
        )
    others = version.stages[_MOST_STAGES:]
    if others:
        mean_us = sum(stage.time.mean_us for stage in others)
        share = sum(stage.share for stage in others)
        name = _counted(len(others), "other stage")
        table.add_row(name, "", duration_text(mean_us), f"{share:.1%}")
    return table


def _batches(versions: Sequence[VersionReport]) -> Table:
    table = _table(" VERSION", "BATCH", "CALLS", "P50", "P95", "P99", "COMPUTE P50", "P95")
    for version in versions:
        for batch in version.batches:
            sizes = (batch.smallest, batch.largest)
            table.add_row(
                _name(version),
                "–".join(map(str, dict.fromkeys(sizes))),
                *(f"{batch.calls:,}", *_quantiles(batch.time)),
                *_quantiles(batch.compute)[:2],
            )
    return table


def _comparison(comparison: Comparison) -> list[RenderableType]:
    first, second = (printable(each) for each in (comparison.first, comparison.second))
    table = _table(" WHAT", "QUANTILE", first, second, "DIFFERENCE", "INTERVAL", " SECOND IS")
    for each in comparison.differences:
        table.add_row(
            printable(each.what),
            "" if each.quantile is None else f"{each.quantile:.0%}",
            *(_value(each, number) for number in (each.first, each.second)),
            _signed(each, each.second - each.first),
            f"{_end(each, each.low)} to {_end(each, each.high)}",
            Text(each.verdict, _STYLES.get(each.verdict, "")),
        )
    parts = [
        f"{name} {_signed_time(time_us)}"
        for name, time_us in comparison.mean_by_stage_us.items()
        if abs(time_us) >= _LEAST_PART * max(map(abs, comparison.mean_by_stage_us.values()))
    ][:_MOST_PARTS]
    mean = f"A mean call takes {_signed_time(comparison.mean_us)}"
    lines = [f"{mean}: {printable(', '.join(parts))}" if parts else mean]
    if comparison.overlap < _SHARED:
        lines.append(
            f"Only {comparison.overlap:.0%} of the calls were made while both versions had calls:"
            " a difference may be one of the times, not of the versions."
        )
    below = (
        f"All intervals are right at once with {comparison.confidence:.0%}; noise: 0 is in the"
        " interval."
    )
    return _headed(
        f"{second} compared with {first}", *map(Text, lines), Text(), table, Text(below, "dim")
    )


def _calls(calls: Sequence[CallReport]) -> Table:
    table = _table(*(" TRACE", " BEGAN", "TIME", " VERSION", "BATCH", " STATUS", " LONGEST STAGE"))
    for call in calls:
        stage = f"{call.stage} {duration_text(call.stage_us)}" if call.stage else "–"
        table.add_row(
            *(printable(call.trace_id)[:_ID_DIGITS], time_text(call.start_us)),
            duration_text(call.duration_us),
            printable(call.version) or "–",
            "–" if call.batch_size is None else str(call.batch_size),
            *(printable(call.status), printable(stage)),
        )
    return table


def _notes(left_out: LeftOut) -> Iterator[str]:
    if left_out.incomplete:
        yield (
            f"Left out: {_counted(left_out.incomplete, 'trace')} with a call of which spans are"
            " missing. They may be on their way."
        )
    if left_out.cyclic:
        yield (
            f"Left out: {_counted(left_out.cyclic, 'trace')} with spans that are their own"
            " ancestors."
        )
    if left_out.skewed:
        yield (
            f"Corrected: {_counted(left_out.skewed, 'call')} in which the clocks of hosts differ,"
            f" by {duration_text(left_out.largest_skew_us)} at most."
        )
    if left_out.without_caller:
        yield (
            f"The callers of {_counted(left_out.without_caller, 'call')} send no spans: what they"
            " and the network take is not in these numbers."
        )
    if left_out.other_versions:
        yield f"Not shown: {_counted(left_out.other_versions, 'call')} of other versions."


def _name(version: VersionReport) -> str:
    name = version.version or "(no version)"
    if version.subset and version.subset != version.version:
        name += f" ({version.subset})"
    return printable(name)


def _quantiles(summary: Summary) -> tuple[str, str, str]:
    return _quantile(summary.p50), _quantile(summary.p95), _quantile(summary.p99)


def _quantile(estimate: Estimate) -> str:
    # Of few calls the largest may not have come yet.
    return f"{'≥ ' if estimate.high is None else ''}{duration_text(estimate.value)}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _value(difference: Difference, number: float) -> str:
    return f"{number:.2%}" if difference.quantile is None else duration_text(number)


def _signed(difference: Difference, number: float) -> str:
    if difference.quantile is None:
        return f"{number:+.2%}".replace("-", "−")
    return _signed_time(number)


def _signed_time(time_us: float) -> str:
    return f"{'−' if time_us < 0 else '+'}{duration_text(abs(time_us))}"


def _end(difference: Difference, end: float | None) -> str:
    return "?" if end is None else _signed(difference, end)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
