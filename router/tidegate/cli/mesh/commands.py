"""``tidegate mesh``: check and explain the mesh's objects, show its status, reset it.

    tidegate mesh lint mesh/istio/base/traffic
    tidegate mesh lint mesh/istio/overlays/dev
    tidegate mesh explain vision
    tidegate mesh explain vision tidegate.vision.v1.VisionService/Classify
    tidegate mesh status
    tidegate mesh reset

Without paths, the objects are those of `tidegate.yaml`, with the endpoints of the servers that run
here.
"""

import datetime as dt
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tidegate.cli.mesh.shift import reset
from tidegate.cli.mesh.status import status
from tidegate.istio import EditError, IstioError, read_files
from tidegate.istio.editing.shifts import find_host
from tidegate.istio.scalars import parse_duration
from tidegate.istio.shapes import HostName
from tidegate.mesh.compiler import unsupported
from tidegate.mesh.control.configuration.journal import Journal
from tidegate.mesh.lint import (
    LocatedFinding,
    SampleRequest,
    Severity,
    check,
    explain,
    explain_request,
    reached,
    read_sources,
)
from tidegate.mesh.lint.view import MeshView, Route
from tidegate.mesh.supervisor.config.servers_file import find_config, load_config
from tidegate.mesh.supervisor.state.directory import StateDirectory

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
        help="99th percentile of a host's response times: HOST=1.5s. May be given again.",
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
    """Find mistakes in Istio and Kubernetes objects, each with what it does and the fix.

    A folder with a kustomization file is rendered by kubectl first. Exits with 1 when a finding is
    an error.
    """
    limits = [_limit(text) for text in p99 or []]
    sources = read_sources(paths or _default_paths(), renders=bool(paths))
    objects = sources.loaded.objects
    hosts = {find_host(objects, name): limit for name, limit in limits} if sources.was_read else {}
    reports, ignored = sources.check(hosts), sources.ignored
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
    target: Annotated[
        str,
        typer.Argument(
            help="A host, a file or folder of objects, or a request: its path or gRPC method.",
            metavar="HOST|FILE|REQUEST",
        ),
    ],
    others: Annotated[
        list[str] | None,
        typer.Argument(
            help="More files and folders, and at most one request, as /pkg.Service/Method or "
            "/v1/models?limit=2. Default for files: those of tidegate.yaml.",
            metavar="[FILE|REQUEST]...",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what happens to requests, route by route, and what is wrong with it.

    With a request: the rule that matches it, its destination, and why earlier rules do not match.
    """
    asked = _Asked.of(target, others or [])
    loaded = read_files(asked.paths or _default_paths(), unsupported)
    host = None if asked.host is None else find_host(loaded.objects, asked.host)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    if not asked.paths:
        _warn_of_shifts()
    view = MeshView(loaded.objects, loaded.ignored)
    if asked.request is None:
        lines = explain(view, host)
        concerned = None if host is None else _concerned(view, host)
        routes = []
    else:
        lines = explain_request(view, asked.request, host)
        routes = reached(view, asked.request, host)
        hosts = {name for route in routes for name in route.hosts}
        concerned = {name for each in hosts for name in _definitions(view, each)}
    for line in lines:
        console.print(Text(line))
    reports = [
        each
        for each in check(loaded)
        if concerned is None
        or each.object in concerned
        or any(_is_about(each, route) for route in routes)
    ]
    if reports:
        console.print()
        _show(reports, [])


@dataclass(frozen=True, slots=True)
class _Asked:
    """The arguments of ``tidegate mesh explain``.

    Attributes:
        host: The host, if one is named.
        paths: The files and folders; empty for those of tidegate.yaml.
        request: The request, if one is named.
    """

    host: str | None
    paths: list[Path]
    request: SampleRequest | None

    @classmethod
    def of(cls, target: str, others: list[str]) -> "_Asked":
        """Sorts the arguments.

        Raises:
            EditError: An argument is none of these, or two are requests.
        """
        host: str | None = None
        paths: list[Path] = []
        requests: list[SampleRequest] = []
        for index, text in enumerate((target, *others)):
            request = None if Path(text).suffix in _SUFFIXES else SampleRequest.of(text)
            if Path(text).exists():
                paths.append(Path(text))
            elif request is not None:
                requests.append(request)
            elif index == 0 and Path(text).suffix not in _SUFFIXES:
                host = text
            else:
                raise EditError(
                    f"there is no file or folder {text}, and a request is written as "
                    "/pkg.Service/Method or /path"
                )
        if len(requests) > 1:
            both = " and ".join(each.path for each in requests)
            raise EditError(f"{both} are two requests: ask for one at a time")
        return cls(host, paths, requests[0] if requests else None)


_SUFFIXES = (".yaml", ".yml", ".json")


def _show(reports: list[LocatedFinding], ignored: list[str]) -> None:
    output = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    colours = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
    for each in reports:
        where = ": ".join(part for part in (each.object, each.path) if part)
        output.print(
            Text.assemble(
                (f"{each.source}:{each.line}: ", "dim"),
                (each.severity.value, colours[each.severity]),
                f" [{each.rule}] {where}\n    {each.traffic}\n    fix: {each.fix}",
            )
        )
    counts = Counter(each.severity for each in reports)
    summary = Console(stderr=True, highlight=False, soft_wrap=True)
    for each_ignored in ignored:
        summary.print(Text(f"not looked at: {each_ignored}", style="dim"))
    notes = f", {counts[Severity.NOTE]} notes" if counts[Severity.NOTE] else ""
    summary.print(f"{counts[Severity.ERROR]} errors, {counts[Severity.WARNING]} warnings{notes}")


def _default_paths() -> list[Path]:
    """The object files of the mesh that ``tidegate up`` runs here.

    Raises:
        IstioError: tidegate.yaml has no mesh.
    """
    mesh = load_config(find_config(None, Path.cwd())).mesh
    if mesh is None:
        raise IstioError("tidegate.yaml has no mesh; name files or folders of Istio objects")
    workloads = StateDirectory().workloads
    return [*mesh.objects, *([workloads] if workloads.is_dir() else [])]


def _warn_of_shifts() -> None:
    """Names the files over which ``tidegate shift`` set other weights; here the files count."""
    state = StateDirectory().mesh_state
    if not state.exists():
        return
    with Journal(state) as journal:
        for path in journal.shifted():
            note = f"{path} is shifted: `tidegate mesh status` shows what is in effect"
            Console(stderr=True, highlight=False, soft_wrap=True).print(Text(note, style="yellow"))


def _limit(text: str) -> tuple[str, dt.timedelta]:
    name, _, value = text.partition("=")
    limit = parse_duration(value)
    if limit is None or not name:
        raise EditError(f"--p99 {text!r}: write it like vision=250ms")
    return name, limit


def _is_about(report: LocatedFinding, route: Route) -> bool:
    """Whether a finding is about a rule, or about its whole VirtualService."""
    if report.object != str(route.virtual_service.name):
        return False
    return not report.path.startswith("spec.http[") or f"{report.path}.".startswith(
        f"{route.path}."
    )


def _concerned(view: MeshView, host: HostName) -> set[str]:
    """The objects that define a host or send requests to it."""
    return _definitions(view, host) | {
        str(route.virtual_service.name) for route in view.routes if host in route.hosts
    }


def _definitions(view: MeshView, host: HostName) -> set[str]:
    """The ServiceEntries and DestinationRules of a host."""
    known = view.hosts.get(host)
    names = {str(each.name) for each in view.rules_of.get(host, ())}
    entries = known.entries if known is not None else ()
    return names | {str(each.name) for each in entries}
