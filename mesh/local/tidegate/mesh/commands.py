"""``tidegate mesh``: check the mesh's Istio objects, explain them, show how the mesh is, reset it.

    tidegate mesh lint mesh/istio
    tidegate mesh explain vision
    tidegate mesh status
    tidegate mesh reset

Where no paths are given, the objects are those of `tidegate.yaml`, with the endpoints of the
servers that run here.
"""

import datetime as dt
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tidegate.mesh.control.journal import Journal
from tidegate.mesh.control.shift_command import reset
from tidegate.mesh.control.status_command import status
from tidegate.mesh.istio import EditError, IstioError, IstioObjectErrors, Loaded, read_files
from tidegate.mesh.istio.edits import find_host
from tidegate.mesh.istio.scalars import parse_duration
from tidegate.mesh.istio.shapes import HostName
from tidegate.mesh.lint import Report, Severity, check, explain, problems_as_report
from tidegate.mesh.lint.view import MeshView
from tidegate.mesh.supervisor.config import find_config, load_config
from tidegate.mesh.supervisor.state import StateDirectory

__all__ = ["app"]

app = typer.Typer(help="Check and explain the mesh's Istio objects.", no_args_is_help=True)
app.command("status")(status)
app.command("reset")(reset)

_Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Files of Istio objects, and folders of them. Default: those of tidegate.yaml.",
        show_default=False,
    ),
]
_P99 = Annotated[
    list[str] | None,
    typer.Option(
        "--p99",
        help="How long the slowest hundredth of a host's answers takes: HOST=1.5s. "
        "May be given again.",
        show_default=False,
        metavar="HOST=TIME",
    ),
]


@app.command()
def lint(
    paths: _Paths = None,
    p99: _P99 = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find mistakes in Istio objects, each with what it does to traffic and the fix.

    Exits with 1 when one of them is an error.
    """
    ignored: list[str] = []
    try:
        loaded = read_files(paths or _default_paths())
    except IstioObjectErrors as error:
        reports = problems_as_report(error.problems)
    else:
        reports = check(loaded, _limits(loaded, p99 or []))
        ignored = [str(each) for each in loaded.ignored]
    if as_json:
        findings = [{**asdict(each), "severity": each.severity.value} for each in reports]
        document = {"findings": findings, "ignored": ignored}
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    else:
        _show(reports, ignored)
    if any(each.severity is Severity.ERROR for each in reports):
        raise typer.Exit(1)


@app.command("explain")
def explain_command(
    target: Annotated[str, typer.Argument(help="A host, or a file or folder.")],
    paths: _Paths = None,
) -> None:
    """Say what happens to a request, route by route, and what is wrong with it."""
    given = Path(target)
    loaded = read_files([given] if given.exists() else paths or _default_paths())
    host = None if given.exists() else find_host(loaded.objects, target)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not given.exists() and not paths:
        _tell_shifted()
    view = MeshView(loaded.objects, loaded.ignored)
    for line in explain(view, host):
        console.print(Text(line))
    concerned = _concerned(view, host)
    reports = [each for each in check(loaded) if host is None or each.object in concerned]
    if reports:
        console.print()
        _show(reports, [])


def _show(reports: list[Report], ignored: list[str]) -> None:
    output = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    colours = {Severity.ERROR: "red", Severity.WARNING: "yellow"}
    for each in reports:
        where = ": ".join(part for part in (each.object, each.path) if part)
        output.print(
            Text.assemble(
                (f"{each.source}:{each.line}: ", "dim"),
                (each.severity.value, colours[each.severity]),
                f" [{each.rule}] {where}\n    {each.traffic}\n    fix: {each.fix}",
            )
        )
    errors = sum(each.severity is Severity.ERROR for each in reports)
    summary = Console(stderr=True, highlight=False, soft_wrap=True)
    for each_ignored in ignored:
        summary.print(Text(f"not looked at: {each_ignored}", style="dim"))
    summary.print(f"{errors} errors, {len(reports) - errors} warnings")


def _default_paths() -> list[Path]:
    """The objects of the mesh that ``tidegate up`` runs here.

    Raises:
        IstioError: there is none.
    """
    mesh = load_config(find_config(None, Path.cwd())).mesh
    if mesh is None:
        raise IstioError("tidegate.yaml has no mesh; name files or folders of Istio objects")
    workloads = StateDirectory().workloads
    return [*mesh.objects, *([workloads] if workloads.is_dir() else [])]


def _tell_shifted() -> None:
    """Says which files ``tidegate shift`` has changed the meaning of: here they are as written."""
    state = StateDirectory().mesh_state
    if not state.exists():
        return
    with Journal(state) as journal:
        for path in journal.shifted():
            note = f"{path} is shifted: `tidegate mesh status` shows what is in effect"
            Console(stderr=True, highlight=False, soft_wrap=True).print(Text(note, style="yellow"))


def _limits(loaded: Loaded, given: list[str]) -> dict[HostName, dt.timedelta]:
    limits = {}
    for text in given:
        name, _, value = text.partition("=")
        limit = parse_duration(value)
        if limit is None:
            raise EditError(f"--p99 {text!r}: write it like vision=250ms")
        limits[find_host(loaded.objects, name)] = limit
    return limits


def _concerned(view: MeshView, host: HostName | None) -> set[str]:
    """The objects that have to do with a host."""
    names = {
        str(route.service.name)
        for route in view.routes
        if any(each.host == host for _, each, _ in (*route.shares(), *route.mirrors()))
    }
    names |= {
        str(each.name) for each in view.objects.destination_rules.values() if each.host == host
    }
    known = view.hosts.get(host) if host is not None else None
    return names | ({str(known.entry.name)} if known is not None and known.entry else set())
