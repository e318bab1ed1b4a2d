"""``tidegate trace analyse``: says where the time of a service's calls goes.

The command reads whole traces, part by part, and keeps only what the report needs of each.
"""

import enum
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from tidegate.cli.console import errors, results
from tidegate.cli.traces.analysis_text import report_text
from tidegate.cli.traces.jaeger_client import DEFAULT_URL, JaegerClient, UrlOption, now_us
from tidegate.cli.traces.period_reading import read_period
from tidegate.cli.traces.waterfall import time_text
from tidegate.mesh.traces.errors import TracesError
from tidegate.trace_analysis.analysis import Analysis, NoCallsError, Question
from tidegate.trace_analysis.flame import d3_tree, speedscope
from tidegate.trace_analysis.flame_picture import flame_picture
from tidegate.trace_analysis.report import Report
from tidegate.trace_analysis.spans import Trace

__all__ = ["Output", "analyse"]

_SCHEMA: Final = "tidegate.trace-analysis/v1"
_VERSION: Final = "tidegate.model.version"
# How many of a service's newest traces are searched for versions.
_PROBED: Final = 20
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SHOWN_EVERY: Final = 500


class Output(enum.StrEnum):
    """The forms of the report."""

    TEXT = "text"
    JSON = "json"


class FlameFormat(enum.StrEnum):
    """The forms of the flame graph."""

    SPEEDSCOPE = "speedscope"
    D3 = "d3"
    SVG = "svg"


def analyse(
    service: Annotated[
        str,
        typer.Option(
            help="The service to analyse. Default: those whose spans name the version of a model.",
            show_default=False,
        ),
    ] = "",
    operation: Annotated[
        str,
        typer.Option(help="Only calls of this method: VisionService/Classify.", show_default=False),
    ] = "",
    version: Annotated[
        list[str] | None,
        typer.Option(
            help="Only calls of this version of the model, or of this subset. May be repeated.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str, typer.Option(help="Only calls of the last 30s, 15m, 2h or 1d.", metavar="TIME")
    ] = "1h",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Compare two versions, or subsets: what differs, and is it more than noise?",
            metavar="V1 V2",
            show_default=False,
        ),
    ] = None,
    slowest: Annotated[int, typer.Option(min=0, max=1000, help="Slowest calls to name.")] = 5,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1_000_000, help="Most traces; the newest.")
    ] = 20_000,
    output: Annotated[Output, typer.Option("--output", "-o", help="The report's form.")] = (
        Output.TEXT
    ),
    flame: Annotated[
        Path | None,
        typer.Option(
            help="Also write a flame graph to this file.", metavar="FILE", show_default=False
        ),
    ] = None,
    flame_format: Annotated[
        FlameFormat | None,
        typer.Option(
            help="Its form: for speedscope.app, for d3-flame-graph, or a picture. Default: svg for"
            " a FILE that ends with .svg, else speedscope.",
            show_default=False,
        ),
    ] = None,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Say where the time of calls goes, and what differs between two versions."""
    since_s = _seconds("--since", since)
    if compare is not None and compare[0] == compare[1]:
        raise typer.BadParameter(f"--compare needs two versions, and both are {compare[0]!r}")
    if flame is None and flame_format is not None:
        raise typer.BadParameter("--flame-format needs --flame FILE")
    client = JaegerClient(url)
    end_us = now_us()
    period = end_us - int(since_s * 1e6), end_us
    services = [service] if service else _services_with_models(client, period, url)
    if flame is not None and len(services) > 1:
        raise typer.BadParameter(
            f"a flame graph is of one service; choose one of {', '.join(services)} with --service"
        )
    reports = []
    for name in services:
        analysis = Analysis(
            Question(
                service=name,
                operation=operation,
                versions=tuple(version or ()),
                compare=compare,
                slowest=slowest,
            )
        )
        read = _read(client, analysis, period, limit)
        try:
            reports.append(analysis.report())
        except NoCallsError as error:
            raise _explained(client, name, since, url, error, read) from error
        if read == limit:
            errors().print(
                f"these are the newest {read:,} traces of {name}; --limit reads more",
                style="yellow",
            )
        if flame is not None:
            _write_flame(analysis, flame, flame_format)
    _print(reports, output, period)


def _print(reports: list[Report], output: Output, period: tuple[int, int]) -> None:
    if output is Output.TEXT:
        for place, report in enumerate(reports):
            if place:
                typer.echo()
            results().print(report_text(report))
        return
    document = {
        "schema": _SCHEMA,
        "start_us": period[0],
        "end_us": period[1],
        "services": [asdict(report) for report in reports],
    }
    typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))


def _read(client: JaegerClient, analysis: Analysis, period: tuple[int, int], limit: int) -> int:
    """Reads traces into an analysis; returns how many."""
    service, read = analysis.question.service, 0
    console = errors()
    with console.status("") as status:
        for trace in read_period(client, service, *period, limit):
            analysis.add(trace)
            read += 1
            if read % _SHOWN_EVERY == 0:
                status.update(f"{read:,} traces of {service}")
    return read


def _services_with_models(client: JaegerClient, period: tuple[int, int], url: str) -> list[str]:
    """Returns the services whose spans name the version of a model.

    Raises:
        TracesError: There are none.
    """
    services = client.services()
    found = [
        service
        for service in services
        if any(_names_versions(trace, service) for trace in _newest(client, service, period))
    ]
    if found:
        return found
    if not services:
        raise TracesError(f"there are no traces at {url}")
    raise TracesError(
        f"no service at {url} has named the version of a model lately; choose one with --service:"
        f" {', '.join(services)}"
    )


def _newest(client: JaegerClient, service: str, period: tuple[int, int]) -> tuple[Trace, ...]:
    return client.whole_traces(service, *period, _PROBED)


def _names_versions(trace: Trace, service: str) -> bool:
    return any(span.service == service and _VERSION in span.tags for span in trace.spans)


def _explained(
    client: JaegerClient, service: str, since: str, url: str, error: NoCallsError, read: int
) -> TracesError:
    """Says why there are no calls of a service."""
    if read:
        return TracesError(f"{error} ({read:,} of the last {since} at {url})")
    services = client.services()
    if service not in services:
        known = f"there are {', '.join(services)}" if services else "there are none at all"
        return TracesError(f"there is no service {service} at {url}; {known}")
    newest = max((trace.start_us for trace in _newest(client, service, (0, 2**53))), default=None)
    when = "" if newest is None else f"; one of the newest began {time_text(newest)}"
    return TracesError(
        f"there are no traces of {service} of the last {since} at {url}{when}; --since looks back"
        " further"
    )


def _write_flame(analysis: Analysis, file: Path, chosen: FlameFormat | None) -> None:
    graph = analysis.flame_graph()
    svg = FlameFormat.SVG if file.suffix == ".svg" else FlameFormat.SPEEDSCOPE
    match chosen or svg:
        case FlameFormat.SVG:
            text = flame_picture(graph)
        case FlameFormat.D3:
            text = json.dumps(d3_tree(graph), ensure_ascii=False) + "\n"
        case FlameFormat.SPEEDSCOPE:
            text = json.dumps(speedscope(graph), ensure_ascii=False) + "\n"
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--flame: cannot write {file}: {error.strerror}") from error


def _seconds(option: str, text: str) -> float:
    """Reads a duration such as ``1h30m``, in seconds.

    Raises:
        typer.BadParameter: It is none.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(
            f"{option} is {text!r}, which is not a duration; write it like 30s, 15m, 2h or 1d"
        )
    return float(sum(float(number) * _UNITS_S[unit] for number, unit in parts))
