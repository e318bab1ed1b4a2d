"""``tidegate dashboard render``: the dashboards of a Prometheus as one HTML page."""

import asyncio
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer
from rich.text import Text

from tidegate.cli.console import errors
from tidegate.cli.dashboard.answers import TimeRange, ask
from tidegate.cli.dashboard.definitions import (
    DashboardError,
    find_dashboard,
    read_dashboard,
    shipped_dashboards,
)
from tidegate.cli.dashboard.pages import DrawnDashboard, dashboards_page

__all__ = ["app"]

_DURATION: Final = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[smhd])")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LEAST_S, _MOST_S = 10, 31 * 86_400

app = typer.Typer(
    help="Draw the dashboards of a Prometheus, without Grafana.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """Draw the dashboards of a Prometheus, without Grafana."""


@app.command()
def render(
    prometheus: Annotated[
        str, typer.Option("--prometheus", help="The address of the Prometheus.", metavar="URL")
    ] = "http://127.0.0.1:9090",
    dashboard: Annotated[
        list[str] | None,
        typer.Option(
            "--dashboard",
            "-d",
            help="A dashboard of Tidegate by name, or the file of one in Grafana's classic JSON;"
            " may be repeated. Default: all of Tidegate's.",
            metavar="NAME|FILE",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Where to write the page; - for standard output.", metavar="FILE"
        ),
    ] = Path("dashboards.html"),
    since: Annotated[
        str, typer.Option("--since", help="How far back the plots go, such as 15m or 2h.")
    ] = "15m",
    var: Annotated[
        list[str] | None,
        typer.Option(
            "--var",
            help="The value of a variable of the dashboards, as a regular expression:"
            " service=vision; may be repeated. Default: all.",
            metavar="NAME=VALUE",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw dashboards from a Prometheus into one HTML page that needs no network.

    The panels are those of the Grafana dashboards in mesh/istio/components/dashboards.
    """
    url = _checked_url(prometheus)
    now_s = time.time()
    span = TimeRange(now_s - _seconds(since), now_s)
    given = dict(map(_assignment, var or ()))
    found = [read_dashboard(find_dashboard(each)) for each in dashboard or shipped_dashboards()]
    if not found:
        raise DashboardError("this installation has no dashboards; name a file with --dashboard")
    known = {each.name for one in found for each in one.variables}
    for name in given:
        if name not in known:
            there = ", ".join(sorted(known))
            raise typer.BadParameter(f"--var {name}: is in no dashboard; there are {there}")

    async def gathered() -> list[DrawnDashboard]:
        return [DrawnDashboard(each, *await ask(url, each, span, given)) for each in found]

    drawn = asyncio.run(gathered())
    text = dashboards_page(drawn, span, url)
    if str(output) == "-":
        sys.stdout.write(text)
    else:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"--output {output}: {error.strerror or error}") from error
    _tell(drawn, output)


def _tell(drawn: Sequence[DrawnDashboard], output: Path) -> None:
    panels = sum(1 for one in drawn for each in one.panels if each.panel.queries)
    empty = sum(len(each.empty) for each in drawn)
    wrote = "" if str(output) == "-" else f"wrote {output}: "
    errors().print(Text(f"{wrote}{panels} panels, {empty} of them without data"))
    problems = [each for one in drawn for each in one.problems]
    if problems:
        raise DashboardError(f"failed queries: {len(problems)}, such as {problems[0]}")


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    seconds = float(match["number"]) * _UNITS_S[match["unit"]] if match else 0.0
    if not _LEAST_S <= seconds <= _MOST_S:
        raise typer.BadParameter(f"--since {text}: write a duration from 10s to 31d, such as 15m")
    return seconds


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--var {text}: write NAME=VALUE, such as service=vision")
    return name, value


def _checked_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise typer.BadParameter(
            f"--prometheus {text}: write an address like http://127.0.0.1:9090"
        )
    return text
