"""``tidegate rollout apply``: creates or changes rollouts, and waits for their ends."""

import sys
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.text import Text

from tidegate.cli.console import JsonOption, errors, exit_on_interrupt, results
from tidegate.cli.rollout.client import (
    AddressOption,
    ContextOption,
    Home,
    KubeconfigOption,
    RolloutCalls,
    key_of,
    rollout_service,
)
from tidegate.cli.rollout.following import NOT_ENDED, Follower, print_message, told, wait_for_ends
from tidegate.cli.rollout.words import ENDED, PHASES
from tidegate.rollout.linting import Severity, lint
from tidegate.rollout.messages import spec_message
from tidegate.rollout.spec.quantities import duration_seconds
from tidegate.rollout.spec.reading import Placed, read_placed, texts_of
from tidegate.rollout.texts import escaped
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["apply"]


def apply(
    files: Annotated[
        list[str],
        typer.Option(
            "--file",
            "-f",
            help="A file of rollouts, a folder of such files, or - for standard input.",
            metavar="FILE",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the rollouts; change nothing.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every rollout has ended, and show it.")
    ] = False,
    timeout: Annotated[
        str,
        typer.Option(
            "--timeout",
            help="How long --wait waits at most, like 30m. Without it, and without a terminal, the"
            " wait ends when a rollout is paused or waits for approval.",
            show_default=False,
            metavar="TIME",
        ),
    ] = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            "-n",
            help="The namespace of rollouts whose files name none.",
            show_default=False,
        ),
    ] = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Create rollouts, or change those of the same names.

    Exit status: 0 done (with --wait: promoted or completed), 1 refused (or aborted), 4 has not
    ended: it is paused, waits for approval, or --timeout is over; 2 wrong command line, 3 no
    router.
    """
    timeout_s = _timeout(timeout, wait=wait)
    if wait and dry_run:
        raise typer.BadParameter("--wait and --dry-run exclude each other")
    placed = _placed(files)
    _lint(placed)
    applied: list[rollout_pb2.ApplyResponse] = []
    names = ", ".join(each.rollout.metadata.name for each in placed)
    goes_on = f"the router goes on with {names}; watch it with `tidegate rollout watch`"
    home = Home(address, context, kubeconfig)
    with exit_on_interrupt(goes_on), rollout_service(home) as service:
        for each in placed:
            response = service.Apply(
                rollout_pb2.ApplyRequest(rollout=_message(each, namespace), dry_run=dry_run)
            )
            applied.append(response)
            if as_json:
                print_message(response)
            elif dry_run:
                results().print(_would(response, _existing(service, response.rollout)))
            else:
                results().print(_applied(response, home.options))
        if not wait:
            return
        live = len(applied) == 1
        console = results()
        with Follower(console, as_json=as_json, named=not live, live=live) as follower:
            for response in applied:
                follower.skip(response.rollout)
            attended = console.is_terminal or timeout_s is not None
            status = wait_for_ends(service, applied, follower, timeout_s, attended=attended)
        if not as_json:
            _say_ends(service, applied)
        if status == NOT_ENDED and not attended:
            errors().print(
                "a rollout waits for a person; to wait for that here, add --timeout TIME"
            )
    raise typer.Exit(status)


def _message(placed: Placed, namespace: str) -> rollout_pb2.Rollout:
    """Returns a rollout as a message; the namespace is empty if neither file nor user names one."""
    metadata = placed.rollout.metadata
    message = spec_message(placed.rollout)
    if "namespace" not in metadata.model_fields_set:
        message.metadata.namespace = namespace
    elif namespace not in ("", metadata.namespace):
        raise typer.BadParameter(
            f"{placed.source}: {metadata.name} is in the namespace {metadata.namespace}, not"
            f" {namespace}"
        )
    return message


def _placed(files: list[str]) -> tuple[Placed, ...]:
    texts = [("-", sys.stdin.read())] if "-" in files else []
    named = [(text, source) for source, text in texts]
    named += texts_of([Path(each) for each in files if each != "-"])
    if not named:
        raise typer.BadParameter(f"{', '.join(files)}: there is no .yaml or .yml file; name files")
    return read_placed(named)


def _lint(placed: tuple[Placed, ...]) -> None:
    """Shows what is found without a router, and refuses what can never work."""
    found = lint(placed)
    for each in found:
        colour = "red" if each.severity is Severity.ERROR else "yellow"
        errors().print(Text(escaped(str(each)), style=colour))
    if any(each.severity is Severity.ERROR for each in found):
        raise typer.Exit(1)


def _timeout(text: str, *, wait: bool) -> float | None:
    if not text:
        return None
    if not wait:
        raise typer.BadParameter("--timeout needs --wait")
    try:
        return duration_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(f"--timeout: {text} {error}") from error


def _applied(response: rollout_pb2.ApplyResponse, cluster: str) -> Text:
    what, key = "is applied", key_of(response.rollout)
    named = f"{key} {cluster}" if cluster else key
    if not response.changed:
        what = "is as applied before"
        phase = response.rollout.status.phase
        if phase in ENDED:
            what += f", and has ended before: it is {PHASES[phase][0]}."
            what += f" `tidegate rollout retry {named}` begins it again"
    return Text.assemble((key, "bold"), f" {what}")


def _would(response: rollout_pb2.ApplyResponse, existing: rollout_pb2.Rollout | None) -> Text:
    """What applying would do to the rollout of the name."""
    what = "would be applied" if response.changed else "would change nothing"
    if existing is not None and existing.spec != response.rollout.spec:
        if existing.status.phase in ENDED:
            what += "; the one of the name has ended"
        else:
            what += "; the running one goes back to its baseline and starts over"
    return Text.assemble((key_of(response.rollout), "bold"), f" {what}")


def _existing(service: RolloutCalls, rollout: rollout_pb2.Rollout) -> rollout_pb2.Rollout | None:
    named = rollout.metadata
    request = rollout_pb2.GetRequest(namespace=named.namespace, name=named.name)
    try:
        return service.Get(request).rollout
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return None
        raise


def _say_ends(service: RolloutCalls, applied: list[rollout_pb2.ApplyResponse]) -> None:
    for each in applied:
        named = each.rollout.metadata
        found = service.Get(rollout_pb2.GetRequest(namespace=named.namespace, name=named.name))
        errors().print(told(found.rollout))
