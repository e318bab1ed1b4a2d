"""``tidegate trace``: shows a call hop by hop, and says where the time of many calls goes.

The traces come from the controller that `tidegate up` runs, or from any Jaeger.
"""

import json
import shutil
import sys
from dataclasses import asdict
from time import sleep
from typing import Annotated, Final

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from tidegate.cli.traces.analysing import analyse
from tidegate.cli.traces.jaeger_client import (
    DEFAULT_URL,
    JaegerClient,
    TraceLine,
    TraceSearch,
    UrlOption,
)
from tidegate.cli.traces.waterfall import duration_text, printable, time_text, waterfall

__all__ = ["app"]

app = typer.Typer(
    help="Show traces of calls, from the client through Envoy to the model, and analyse them.",
    no_args_is_help=True,
)

app.command()(analyse)

# Envoy and the servers that `tidegate up` starts send their spans every half second.
_SPAN_DELAY_S: Final = 1.0
_PIPED_WIDTH = 80
_MAX_WIDTH = 160

_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


@app.command("list")
def list_traces(
    service: Annotated[
        str, typer.Option(help="Only traces with a span of this service.", show_default=False)
    ] = "",
    operation: Annotated[
        str, typer.Option(help="Only traces with a span of this name.", show_default=False)
    ] = "",
    min_duration: Annotated[
        str,
        typer.Option(
            help="Only traces with a span at least this long: 100ms, 2s.",
            show_default=False,
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most traces.")] = 20,
    as_json: _Json = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """List the newest traces."""
    wanted = TraceSearch(
        service=service, operation=operation, min_duration=min_duration, limit=limit
    )
    found = JaegerClient(url).search(wanted)
    if as_json:
        for line in found:
            _print_json(asdict(line))
    elif found:
        _print(_table(found, _width()))
    else:
        typer.echo("no traces", err=True)


@app.command()
def show(
    trace: Annotated[
        str,
        typer.Argument(
            help="The trace's id, an unambiguous beginning of it, or last. With last, the command"
            " first waits for spans that may be in transit.",
            metavar="ID|last",
        ),
    ],
    as_json: _Json = False,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Show a trace as a waterfall."""
    client = JaegerClient(url)
    if trace == "last":
        sleep(_SPAN_DELAY_S)
    found = client.trace_object(trace)
    if as_json:
        _print_json(found)
    else:
        _print(waterfall(client.read(found), _width()))


def _table(lines: tuple[TraceLine, ...], width: int) -> Text:
    """Returns one line for each trace. The last column takes the remaining width."""
    head = f"{'TRACE':<16}  {'BEGAN':<24}  {'TIME':>8}  {'SPANS':>9}  "
    table = [Text(head + "SERVICE AND OPERATION", "dim")]
    for line in lines:
        title = printable(f"{line.service} {line.operation}".strip())
        room = max(width - len(head), 1)
        if cell_len(title) > room:
            title = set_cell_size(title, room - 1) + "…"
        spans = f"{line.spans} ✗{line.errors}" if line.errors else str(line.spans)
        row = (
            # Sixteen digits identify a trace, and are enough for `show`.
            f"{printable(line.trace_id)[:16]:<16}  {time_text(line.start_us):<24}"
            f"  {duration_text(line.duration_us):>8}  {spans:>9}  {title}"
        )
        table.append(Text(row, "red" if line.errors else ""))
    return Text("\n").join(table)


def _width() -> int:
    """Returns the cells in a line: the terminal's width, or a common width in a pipe."""
    if not sys.stdout.isatty():
        return _PIPED_WIDTH
    return min(shutil.get_terminal_size().columns, _MAX_WIDTH)


def _print(text: Text) -> None:
    Console(highlight=False, soft_wrap=True).print(text)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
