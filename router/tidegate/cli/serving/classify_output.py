"""The output of ``tidegate classify``: all labels for a few images, a row each for many."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.serving.classify_results import ImageOutcome, LatencySummary, RepeatReport
from tidegate.client import ClassifyResult, TidegateRpcError

__all__ = ["as_object", "print_failure", "print_repeats", "print_results"]

_MAX_IN_FULL = 3
_BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def print_results(console: Console, outcomes: Sequence[ImageOutcome]) -> None:
    """Prints the labels of the images."""
    answered = [(item.name, item.result) for item in outcomes if item.result is not None]
    if len(outcomes) > _MAX_IN_FULL:
        _print_rows(console, answered)
        return
    for index, (name, result) in enumerate(answered):
        if index:
            console.print()
        _print_in_full(console, name, result)


def print_failure(console: Console, outcome: ImageOutcome) -> None:
    """Prints the error of one image."""
    console.print(Text.assemble((f"{outcome.name}: ", "bold red"), str(outcome.error)))


def print_repeats(console: Console, report: RepeatReport, concurrency: int) -> None:
    """Prints the share of each version, the errors by status, and the latencies."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("MODEL", "VERSION"):
        table.add_column(title)
    for title in ("CALLS", "SHARE"):
        table.add_column(title, justify="right")
    table.add_column()
    for version in report.versions:
        table.add_row(
            *(version.model, version.version, str(version.count), f"{version.share:.1%}"),
            Text(_bar(version.share), "green"),
        )
    for status, count in report.errors.items():
        table.add_row("", status, str(count), style="red")
    console.print()
    console.print(table)
    if report.latency is not None:
        _print_latency(console, report.latency, concurrency)


def _print_latency(console: Console, summary: LatencySummary, concurrency: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("CALLS", "FAILED", "PER SECOND", "MIN", "P50", "P90", "P95", "P99", "MAX"):
        table.add_column(title, justify="right")
    times = (summary.min_ms, summary.p50_ms, summary.p90_ms, summary.p95_ms)
    table.add_row(
        str(summary.count),
        str(summary.failed),
        f"{summary.per_second:.1f}",
        *(f"{time_ms:.1f} ms" for time_ms in (*times, summary.p99_ms, summary.max_ms)),
    )
    console.print()
    console.print(table)
    console.print(f"as this client saw them, {concurrency} at a time", style="dim")


def as_object(outcome: ImageOutcome) -> Mapping[str, object]:
    """Returns the outcome of one image as a JSON object."""
    if outcome.result is None:
        error = outcome.error
        code = error.code.name if isinstance(error, TidegateRpcError) else None
        reason = error.reason if isinstance(error, TidegateRpcError) else None
        return {"image": outcome.name, "error": str(error), "code": code, "reason": reason}
    result = outcome.result
    return {
        "image": outcome.name,
        "model": result.model,
        "version": result.version,
        "precision": result.precision,
        "classifications": [asdict(item) for item in result[0].classifications],
        "timings": asdict(result.timings),
        "latency_s": min(outcome.latencies_s),
    }


def _print_in_full(console: Console, name: str, result: ClassifyResult) -> None:
    timings = result.timings
    served = f"{result.model} {result.version} ({result.precision})"
    took = f"{timings.total_s * 1000:.1f} ms in the server"
    console.print(Text.assemble((name, "bold"), ("  " + served + ", " + took, "dim")))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column(width=_BAR_WIDTH)
    table.add_column()
    for rank, item in enumerate(result[0].classifications):
        style = "green" if rank == 0 else "dim"
        table.add_row(
            f"{item.score:.1%}", Text(_bar(item.score), style), Text(item.label, style * (not rank))
        )
    console.print(table)


def _print_rows(console: Console, answered: Sequence[tuple[str, ClassifyResult]]) -> None:
    if not answered:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("IMAGE", overflow="fold")
    table.add_column("LABEL")
    table.add_column("SCORE", justify="right")
    table.add_column("NEXT", style="dim", no_wrap=True, overflow="ellipsis")
    for name, result in answered:
        best, *others = result[0].classifications
        runners_up = ", ".join(f"{item.label} {item.score:.0%}" for item in others[:2])
        table.add_row(Text(name), Text(best.label), f"{best.score:.1%}", Text(runners_up))
    console.print(table)
    served = sorted({f"{result.model} {result.version}" for _, result in answered})
    console.print(f"{len(answered)} images, by {', '.join(served)}", style="dim")


def _bar(share: float) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * _BAR_WIDTH * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
