"""``tidegate shift`` and ``tidegate mesh reset``: move traffic between versions, and back again.

The controller makes the change. The command requests it, shows each stage as it happens, and
returns when every live proxy has acknowledged the change. With ``--context`` or ``--kubeconfig`` it
changes the objects of a cluster at its API server instead.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final

import typer
from google.protobuf import json_format
from rich.console import Console

from tidegate.cli.console import exit_on_interrupt
from tidegate.cli.groups import MissingExtraError
from tidegate.cli.mesh.client import AddressOption, mesh_service
from tidegate.cli.mesh.shift_view import ShiftView
from tidegate.client import TidegateRpcError
from tidegate.istio import EditError
from tidegate.istio.editing.shares import MAX_DECIMALS, check_shares
from tidegate.istio.editing.shifts import header_condition, sticky_source
from tidegate.istio.scalars import parse_duration
from tidegate.istio.shapes import StringMatchKind, SubsetName
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc

__all__ = ["reset", "shift"]

_PERCENTAGE: Final = re.compile(rf"[0-9]{{1,9}}(\.[0-9]{{1,{MAX_DECIMALS}}})?%?")
_ROLLED_BACK: Final = "TRANSITION_ROLLED_BACK"

_Messages = Iterable[mesh_pb2.ShiftResponse] | Iterable[mesh_pb2.ResetResponse]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
]
_Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Change traffic that a rollout owns, too; the rollout sees a foreign change.",
    ),
]
_Deadline = Annotated[
    str,
    typer.Option(
        "--deadline",
        help="How long each stage may take before the change is rolled back: 500ms, 30s, 2m.",
        show_default="that of the controller, 30s",
    ),
]
_Context = Annotated[
    str,
    typer.Option(
        "--context",
        help="A cluster: this context of the kubeconfig.",
        show_default=False,
        metavar="CONTEXT",
    ),
]
_Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        help="A cluster: this kubeconfig, with its current context or --context.",
        show_default=False,
        metavar="FILE",
    ),
]
_Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        "-n",
        help="The namespace on a cluster. Default: that of the context.",
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON, one event a line.")]


def shift(
    host: Annotated[str, typer.Argument(help="The host: its full name, or the first label of it.")],
    weights: Annotated[
        list[str] | None,
        typer.Argument(
            help="The subset's share, in percent of what the host gets (v2=10, v2=0.5). Subsets"
            " that are not named share what is left to 100.",
            metavar="SUBSET=PERCENT...",
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            "--match",
            help="Shift only requests with this header; may be given several times.",
            metavar="header:NAME=VALUE",
            show_default=False,
        ),
    ] = None,
    sticky: Annotated[
        str,
        typer.Option(
            "--sticky",
            help="Keep requests with the same value of this header or cookie on one version.",
            metavar="header:NAME|cookie:NAME",
            show_default=False,
        ),
    ] = "",
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            "--mirror",
            help="Copy a share of the requests to a subset; 0 removes the mirror.",
            metavar="SUBSET=PERCENT",
            show_default=False,
        ),
    ] = None,
    dry_run: _DryRun = False,
    force: _Force = False,
    deadline: _Deadline = "",
    as_json: _Json = False,
    address: AddressOption = None,
    context: _Context = "",
    kubeconfig: _Kubeconfig = None,
    namespace: _Namespace = "",
) -> None:
    """Move traffic between versions of a host; returns when every proxy has acknowledged it.

    The files of objects stay as they are. The shift is kept apart from them, over restarts too,
    until `tidegate mesh reset` or an edit of the same lines. On a cluster the VirtualServices are
    changed, and the command returns once the API server has the change.

    The exit status is 1 if the shift cannot be made; everything is then as it was before.
    """
    request = _request(host, weights or [], match or [], sticky, mirror or [])
    request.dry_run, request.force = dry_run, force
    if _is_cluster(context, kubeconfig, namespace, address, deadline):
        _cluster_shift().shift_on_cluster(request, kubeconfig, context, namespace, as_json=as_json)
        return
    _set_deadline(request, deadline)
    _follow(lambda mesh: mesh.Shift(request), address, _goes_on("shift", dry_run), as_json=as_json)


def reset(
    dry_run: _DryRun = False,
    force: _Force = False,
    deadline: _Deadline = "",
    as_json: _Json = False,
    address: AddressOption = None,
    context: _Context = "",
    kubeconfig: _Kubeconfig = None,
    namespace: _Namespace = "",
) -> None:
    """Undo every shift: traffic goes again as the files of objects say.

    The exit status is 1 if the reset cannot be made; everything is then as it was before.
    """
    if _is_cluster(context, kubeconfig, namespace, address, deadline):
        _cluster_shift().reset_on_cluster(
            *(kubeconfig, context, namespace), force=force, dry_run=dry_run, as_json=as_json
        )
        return
    request = mesh_pb2.ResetRequest(dry_run=dry_run, force=force)
    _set_deadline(request, deadline)
    goes_on = _goes_on("reset", dry_run)
    count = _follow(lambda mesh: mesh.Reset(request), address, goes_on, as_json=as_json)
    if not count and not as_json:
        sys.stdout.write("nothing is shifted\n")


def _is_cluster(
    context: str, kubeconfig: Path | None, namespace: str, address: str | None, deadline: str
) -> bool:
    """Whether a cluster is meant; its options and those of a laptop exclude each other."""
    if not context and kubeconfig is None:
        if namespace:
            raise typer.BadParameter("--namespace is for a cluster; name one with --context")
        return False
    for name, value in (("--address", address), ("--deadline", deadline)):
        if value:
            raise typer.BadParameter(f"{name} has no meaning on a cluster; leave it out")
    return True


def _cluster_shift() -> ModuleType:
    """Returns the module for clusters, whose packages a laptop does not need."""
    try:
        return importlib.import_module("tidegate.cli.mesh.cluster_shift")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tidegate"):
            raise
        raise MissingExtraError(
            f"--context and --kubeconfig need {error.name!r}, which is not installed: pip install"
            " 'tidegate[cluster]'"
        ) from error


def _goes_on(what: str, dry_run: bool) -> str:
    if dry_run:
        return "nothing was changed"
    back = "; undo it with `tidegate mesh reset`" if what == "shift" else ""
    return (
        f"the {what} goes on, once the controller has it; follow it with `tidegate mesh status`"
        f"{back}"
    )


def _follow(
    call: Callable[[mesh_pb2_grpc.MeshServiceStub], _Messages],
    address: str | None,
    goes_on: str,
    *,
    as_json: bool,
) -> int:
    """Shows the events or the preview of a change; returns how many messages came."""
    count = 0
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    try:
        with exit_on_interrupt(goes_on), mesh_service(address) as mesh, ShiftView(console) as view:
            for message in call(mesh):
                count += 1
                if as_json:
                    found = json_format.MessageToDict(message, preserving_proto_field_name=True)
                    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
                    sys.stdout.flush()
                elif message.HasField("preview"):
                    view.preview(message.preview)
                else:
                    view.show(message.event)
    except TidegateRpcError as error:
        if error.reason != _ROLLED_BACK or as_json:
            raise
        # The view has shown what happened and why.
        raise typer.Exit(1) from error
    return count


def _request(
    host: str, weights: list[str], match: list[str], sticky: str, mirror: list[str]
) -> mesh_pb2.ShiftRequest:
    request = mesh_pb2.ShiftRequest(host=host)
    for text in weights:
        name, share = _share(text, "SUBSET=PERCENT")
        if name in [each.subset for each in request.weights]:
            raise typer.BadParameter(f"{text!r}: {name} is named twice; give it one share")
        request.weights.add(subset=name, weight=share)
    try:
        check_shares({SubsetName(each.subset): each.weight for each in request.weights})
    except EditError as error:
        raise typer.BadParameter(str(error)) from error
    for text in mirror:
        name, share = _share(text, "--mirror")
        if name in [each.subset for each in request.mirrors]:
            raise typer.BadParameter(f"--mirror {text!r}: {name} is named twice; give it one share")
        request.mirrors.add(subset=name, percent=share)
    try:
        for text in match:
            header, condition = header_condition(text)
            added = request.matches.add(name=header)
            if condition.kind is StringMatchKind.EXACT:
                added.value = condition.value
        if sticky:
            source = sticky_source(sticky)
            request.sticky_header, request.sticky_cookie = source.header or "", source.cookie or ""
    except EditError as error:
        raise typer.BadParameter(str(error)) from error
    if not (request.weights or request.mirrors or sticky):
        raise typer.BadParameter("nothing to change: give SUBSET=PERCENT, --mirror or --sticky")
    return request


def _set_deadline(request: mesh_pb2.ShiftRequest | mesh_pb2.ResetRequest, deadline: str) -> None:
    if not deadline:
        return
    length = parse_duration(deadline)
    if length is None:
        raise typer.BadParameter(f"--deadline {deadline!r} is not a duration; write 500ms or 30s")
    request.deadline.FromTimedelta(length)


def _share(text: str, what: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{what}: {text!r} is not like v2=10")
    if not _PERCENTAGE.fullmatch(value) or float(value.removesuffix("%")) > 100:
        raise typer.BadParameter(
            f"{what}: {text!r}: the share is a percentage from 0 to 100 with at most {MAX_DECIMALS}"
            " decimals, as in v2=10 or v2=0.5"
        )
    return name, float(value.removesuffix("%"))
