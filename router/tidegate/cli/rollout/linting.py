"""``tidegate rollout lint``: find mistakes in rollout files, without a router."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tidegate.cli.console import JsonOption, errors, print_json, results
from tidegate.cli.rollout.simulating import parse_rate
from tidegate.istio import EditError, read_files
from tidegate.istio.editing.shifts import find_host
from tidegate.mesh.lint.view import MeshView
from tidegate.mesh.supervisor import SupervisorError
from tidegate.mesh.supervisor.config.servers_file import find_config, load_config
from tidegate.rollout.linting import Finding, Severity
from tidegate.rollout.linting import lint as findings_of
from tidegate.rollout.spec.faults import Fault, SpecError
from tidegate.rollout.spec.reading import read_placed, texts_of

__all__ = ["lint", "subsets_of_files"]

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def lint(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files of rollouts, and folders of them. Default: those of tidegate.yaml.",
            show_default=False,
        ),
    ] = None,
    objects: Annotated[
        list[Path] | None,
        typer.Option(
            "--objects",
            help="Files of Istio objects, and folders of them, in which to look hosts and subsets"
            " up. Default: those of tidegate.yaml, if there is one.",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        str,
        typer.Option(
            "--rate",
            help="Requests of each host, 100/s: finds objectives that so little traffic never"
            " decides.",
            show_default=False,
            metavar="N/s",
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Find mistakes in rollout files, each with what follows from it and the fix.

    Exits with 1 when one of them is an error. No router is needed.
    """
    requests_per_s = parse_rate(rate) if rate else None
    mesh = _mesh() if paths is None or objects is None else None
    if paths is None:
        if mesh is None:
            raise typer.BadParameter("there is no tidegate.yaml with a mesh here; name files")
        paths = [each for each in mesh[1] if each.exists()]
    if objects is None and mesh is not None:
        objects = list(mesh[0])
    subsets = subsets_of_files(objects) if objects else None
    texts = texts_of(paths)
    if not texts:
        where = ", ".join(map(str, paths)) or "the folders of tidegate.yaml"
        raise typer.BadParameter(f"{where}: there is no .yaml or .yml file; name files")
    try:
        placed = read_placed(texts)
    except SpecError as error:
        found = [_fault(each) for each in error.faults]
    else:
        found = findings_of(placed, subsets, requests_per_s)
    for each in found:
        if as_json:
            print_json({**asdict(each), "severity": each.severity.value})
        else:
            _show(each)
    count = sum(each.severity is Severity.ERROR for each in found)
    if not as_json:
        errors().print(f"{_count(count, 'error')}, {_count(len(found) - count, 'warning')}")
    if count:
        raise typer.Exit(1)


def subsets_of_files(paths: Sequence[Path]) -> Callable[[str], Sequence[str]]:
    """Returns a function that gives the subsets of a host, as Istio objects have them.

    Args:
        paths: Files of objects, and folders of them.

    Raises:
        IstioObjectErrors: The objects have faults.
    """
    loaded = read_files(paths)
    view = MeshView(loaded.objects, loaded.ignored)

    def subsets(name: str) -> Sequence[str]:
        try:
            host = find_host(loaded.objects, name)
        except EditError as error:
            raise ValueError(str(error)) from error
        return [each.name for rule in view.rules_of.get(host, ()) for each in rule.subsets]

    return subsets


def _mesh() -> tuple[Sequence[Path], Sequence[Path]] | None:
    """The files of objects and of rollouts that `tidegate up` reads here."""
    try:
        mesh = load_config(find_config(None, Path.cwd())).mesh
    except SupervisorError:
        return None
    return None if mesh is None else (mesh.objects, mesh.rollouts)


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _fault(fault: Fault) -> Finding:
    text, _, fix = fault.text.partition("; ")
    place = (fault.source, fault.line, fault.path)
    return Finding(*place, Severity.ERROR, "invalid", text, fix)


def _show(finding: Finding) -> None:
    fix = f"\n    fix: {finding.fix}" if finding.fix else ""
    path = f" {finding.path}" if finding.path else ""
    results().print(
        Text.assemble(
            (f"{finding.source}:{finding.line}: ", "dim"),
            (finding.severity.value, _COLOURS[finding.severity]),
            f" [{finding.rule}]{path}\n    {finding.text}{fix}",
        )
    )
