"""The commands to a rollout: pause, resume, promote, abort, retry, undo, delete."""

from typing import Annotated, Any

import typer
from rich.text import Text

from tidegate.cli.console import JsonOption, results
from tidegate.cli.rollout.client import (
    AddressOption,
    ContextOption,
    Home,
    KubeconfigOption,
    NameArgument,
    NamespaceOption,
    find_target,
    rollout_service,
)
from tidegate.cli.rollout.following import print_message, told
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["abort", "delete", "pause", "promote", "resume", "retry", "undo"]

ReasonOption = Annotated[
    str, typer.Option("--reason", help="Why, for the history.", show_default=False)
]


def pause(
    name: NameArgument,
    reason: ReasonOption = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Hold the split as it is; evidence of harm still aborts the rollout."""
    _command("Pause", name, namespace, Home(address, context, kubeconfig), as_json, reason=reason)


def resume(
    name: NameArgument,
    reason: ReasonOption = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Go on after a pause, whatever the cause was."""
    _command("Resume", name, namespace, Home(address, context, kubeconfig), as_json, reason=reason)


def promote(
    name: NameArgument,
    full: Annotated[
        bool,
        typer.Option("--full", help="Give the candidate all traffic, whatever the evidence says."),
    ] = False,
    reason: ReasonOption = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Approve the current step; with --full, give the candidate all traffic at once.

    If the rollout enters another step meanwhile, the router refuses the command.
    """
    namespace, name = find_target(name, namespace)
    request = rollout_pb2.PromoteRequest(namespace=namespace, name=name, reason=reason, full=full)
    with rollout_service(Home(address, context, kubeconfig)) as service:
        if not full:
            seen = service.Get(rollout_pb2.GetRequest(namespace=namespace, name=name)).rollout
            request.stage = seen.status.stage
        _show(service.Promote(request), as_json=as_json)


def abort(
    name: NameArgument,
    reason: ReasonOption = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Give the baseline all traffic, and end the rollout."""
    _command("Abort", name, namespace, Home(address, context, kubeconfig), as_json, reason=reason)


def retry(
    name: NameArgument,
    reason: ReasonOption = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Begin an ended rollout again; what it saw before does not count."""
    _command("Retry", name, namespace, Home(address, context, kubeconfig), as_json, reason=reason)


def undo(
    name: NameArgument,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also if somebody has changed the traffic since it ended."),
    ] = False,
    reason: ReasonOption = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Put the traffic back to what it was before the rollout, and end it.

    A rollout that has ended is undone only while the traffic is still as the rollout left it; else
    versions that came later would lose their users. --force does it all the same.
    """
    _command(
        "Undo",
        name,
        namespace,
        Home(address, context, kubeconfig),
        as_json,
        reason=reason,
        force=force,
    )


def delete(
    name: NameArgument,
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Remove a rollout that has ended, with its history."""
    namespace, name = find_target(name, namespace)
    with rollout_service(Home(address, context, kubeconfig)) as service:
        service.Delete(rollout_pb2.DeleteRequest(namespace=namespace, name=name))
    if as_json:
        print_message(rollout_pb2.DeleteResponse(), removed=True)
    else:
        results().print(Text(f"{name} is removed"))


def _command(
    method: str, name: str, namespace: str, home: Home, as_json: bool, **fields: object
) -> None:
    """Calls a method of RolloutService, whose request has the method's name, as all have."""
    namespace, name = find_target(name, namespace)
    request = getattr(rollout_pb2, f"{method}Request")(namespace=namespace, name=name, **fields)
    with rollout_service(home) as service:
        _show(getattr(service, method)(request), as_json=as_json)


def _show(response: Any, *, as_json: bool) -> None:
    if as_json:
        print_message(response)
    else:
        results().print(told(response.rollout))
