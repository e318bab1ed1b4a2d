"""``tidegate rollout list``, ``get``, ``watch``, ``history`` and ``explain``."""

import time
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from tidegate.cli.console import JsonOption, errors, exit_on_interrupt, results
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
from tidegate.cli.rollout.explaining import explanation
from tidegate.cli.rollout.following import Follower, print_message, told
from tidegate.cli.rollout.screen import screen
from tidegate.cli.rollout.words import (
    ENDED,
    PHASES,
    VERDICTS,
    age,
    candidates_of,
    clock,
    moment,
    seconds_of,
    weights_text,
)
from tidegate.rollout.messages import rollout_of
from tidegate.rollout.spec.reading import dump
from tidegate.rollout.texts import escaped_message
from tidegate.rollout.v1 import rollout_pb2

__all__ = ["explain", "get", "history", "list_rollouts", "watch"]

# After a superseded rollout, the one that replaces it begins.
_FINAL: Final = ENDED - {rollout_pb2.PHASE_SUPERSEDED}


def list_rollouts(
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """List the rollouts."""
    home = Home(address, context, kubeconfig)
    with rollout_service(home) as service:
        response = service.List(rollout_pb2.ListRequest(namespace=namespace))
    if as_json:
        for each in response.rollouts:
            print_message(each)
    shown = escaped_message(response)
    for problem in shown.file_problems:
        # Faults begin with the file and their line.
        is_named = problem.message.startswith(f"{problem.file}:")
        words = problem.message if is_named else f"{problem.file}: {problem.message}"
        errors().print(Text(words, style="yellow"))
    if as_json:
        return
    found = shown.rollouts
    if not found:
        results().print(Text(_none(namespace, home)))
        return
    namespaces = len({each.metadata.namespace for each in found}) > 1
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ("NAME", "HOST", "PHASE", "STEP", "WEIGHTS", "VERDICT", "AGE")
    for title in (*(("NAMESPACE",) if namespaces else ()), *titles):
        table.add_column(title)
    now_s = time.time()
    for each in found:
        table.add_row(*((each.metadata.namespace,) if namespaces else ()), *_row(each, now_s))
    results().print(table)


def get(
    name: NameArgument,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print the rollout as a file of it would be.")
    ] = False,
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Show one rollout: traffic, objectives with their evidence, harm, time, last events."""
    namespace, name = find_target(name, namespace)
    with rollout_service(Home(address, context, kubeconfig)) as service:
        found = service.Get(rollout_pb2.GetRequest(namespace=namespace, name=name)).rollout
    if as_json:
        print_message(found)
    elif as_yaml:
        results().print(Text(dump(rollout_of(found)).rstrip()))
    else:
        results().print(screen(found, time.time()))


def watch(
    name: Annotated[
        str,
        typer.Argument(
            help="The rollout: NAME, or NAMESPACE/NAME. All of them by default.",
            metavar="[ROLLOUT]",
            show_default=False,
        ),
    ] = "",
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Watch a rollout live, until it has ended; without a terminal, one line for each event.

    Without a name, watch all of them until Ctrl-C, from their present state on.
    """
    ended: rollout_pb2.Rollout | None = None
    if name:
        namespace, name = find_target(name, namespace)
    with (
        exit_on_interrupt("the router goes on"),
        rollout_service(Home(address, context, kubeconfig)) as service,
        Follower(results(), as_json=as_json, named=not name, live=bool(name)) as follower,
    ):
        for message in service.Watch(rollout_pb2.WatchRequest(namespace=namespace, name=name)):
            follower.show(message)
            if name and not message.removed and message.rollout.status.phase in _FINAL:
                ended = message.rollout
            if name and (message.removed or ended is not None):
                break
    if ended is not None and not as_json:
        errors().print(told(ended))


def history(
    name: NameArgument,
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Show what happened to a rollout, and why."""
    namespace, name = find_target(name, namespace)
    with rollout_service(Home(address, context, kubeconfig)) as service:
        request = rollout_pb2.GetHistoryRequest(namespace=namespace, name=name)
        events = escaped_message(service.GetHistory(request)).events
    if as_json:
        for each in events:
            print_message(each)
        return
    console = results()
    if not console.is_terminal:
        # A table would fill every line up to the longest one.
        for each in events:
            line = f"{each.number:>3}  {moment(each.time)}  {each.kind:<13}  {each.message}"
            console.print(Text(line))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("#", "TIME", "EVENT", "WHAT AND WHY"):
        table.add_column(title, overflow="fold", justify="right" if title == "#" else "left")
    for each in events:
        table.add_row(str(each.number), clock(each.time), each.kind, Text(each.message))
    console.print(table)


def explain(
    name: NameArgument,
    namespace: NamespaceOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    context: ContextOption = "",
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Say what a rollout waits for now and why, and what would have to happen."""
    namespace, name = find_target(name, namespace)
    home = Home(address, context, kubeconfig)
    with rollout_service(home) as service:
        found = service.Get(rollout_pb2.GetRequest(namespace=namespace, name=name)).rollout
    lines = explanation(escaped_message(found), time.time(), cluster=home.options)
    if as_json:
        phase = rollout_pb2.Phase.Name(found.status.phase)
        print_message(found.metadata, phase=phase, reason=found.status.reason, lines=lines)
        return
    console = results()
    for line in lines:
        console.print(Text(line))


def _none(namespace: str, home: Home) -> str:
    if not home.is_cluster:
        return "there is no rollout; create one with `tidegate rollout apply -f FILE`"
    where = f"the namespace {namespace}" if namespace else "the namespace of the context"
    return (
        f"there is no rollout in {where}; name another one with --namespace, or create a rollout"
        f" with `tidegate rollout apply -f FILE {home.options}`"
    )


def _row(rollout: rollout_pb2.Rollout, now_s: float) -> list[Text | str]:
    status = rollout.status
    words, style = PHASES[status.phase]
    split = status.observed if status.HasField("observed") else status.desired
    candidates = candidates_of(rollout.spec)
    shown = {name: split.weights.get(name, 0.0) for name in candidates}
    # Of a rollout that has ended, the traffic is not its own any more.
    is_told = bool(split.weights) and status.phase not in ENDED
    since = status.ended_at if status.HasField("ended_at") else status.started_at
    has_begun = status.HasField("started_at") or status.HasField("ended_at")
    return [
        Text(rollout.metadata.name, style="bold"),
        rollout.spec.host,
        Text(words, style=style),
        f"{status.stage}/{status.stages}" if status.stage else "–",
        weights_text(shown, candidates) if is_told else "–",
        _verdict(status),
        age(now_s - seconds_of(since)) if has_begun else "–",
    ]


def _verdict(status: rollout_pb2.RolloutStatus) -> Text:
    """The worst verdict of the objectives, and how many are met."""
    verdicts = [each.verdict for found in status.assessments for each in found.objectives]
    if not verdicts:
        return Text("–")
    met = verdicts.count(rollout_pb2.VERDICT_MET)
    for each in (rollout_pb2.VERDICT_MISSED, rollout_pb2.VERDICT_NO_DATA, rollout_pb2.VERDICT_OPEN):
        if each in verdicts:
            words, style = VERDICTS[each]
            return Text(f"{words} ({met}/{len(verdicts)} met)", style=style)
    return Text("met", style="green")
