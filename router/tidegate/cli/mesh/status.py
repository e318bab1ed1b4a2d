"""``tidegate mesh status``: proxies, hosts, endpoints, routes, and the current change."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Final

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tidegate.cli.mesh.client import AddressOption, mesh_service
from tidegate.mesh.v1 import mesh_pb2

__all__ = ["status"]

_PROXY_KINDS: Final = {mesh_pb2.PROXY_KIND_ENVOY: "envoy", mesh_pb2.PROXY_KIND_GRPC: "grpc"}
_STATES: Final = {
    mesh_pb2.ENDPOINT_STATE_HEALTHY: ("healthy", "green"),
    mesh_pb2.ENDPOINT_STATE_UNHEALTHY: ("unhealthy", "red"),
    mesh_pb2.ENDPOINT_STATE_DRAINING: ("draining", "yellow"),
}
_TRANSITIONS: Final = {
    mesh_pb2.TRANSITION_STATE_RUNNING: ("running", "yellow"),
    mesh_pb2.TRANSITION_STATE_ROLLING_BACK: ("is being rolled back", "red"),
    mesh_pb2.TRANSITION_STATE_DONE: ("done", "green"),
    mesh_pb2.TRANSITION_STATE_ROLLED_BACK: ("was rolled back", "red"),
}


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    address: AddressOption = None,
) -> None:
    """Show the state of the mesh.

    The exit status is 1 if a proxy rejects a resource or something is not in effect.
    """
    with mesh_service(address) as mesh:
        found = mesh.GetStatus(mesh_pb2.GetStatusRequest(count_requests=True))
    if as_json:
        shown = json_format.MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        sys.stdout.write(json.dumps(shown, ensure_ascii=False) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        for part in (_proxies(found), _hosts(found), _endpoints(found), _routes(found)):
            console.print(part)
            console.print()
        for line in _lines(found):
            console.print(line)
    if found.problems or any(each.HasField("rejection") for each in found.proxies):
        raise typer.Exit(1)


def _proxies(found: mesh_pb2.GetStatusResponse) -> Table:
    table = _table("PROXY", "KIND", "PROTOCOL", "ACKNOWLEDGED", "SOFTWARE")
    for proxy in found.proxies:
        acknowledged = sum(each.acknowledged for each in proxy.resources)
        subscribed = sum(each.subscribed for each in proxy.resources)
        state = f"{acknowledged} of {subscribed}"
        style = "green" if proxy.synchronized else "yellow"
        if proxy.HasField("rejection"):
            names = ", ".join(proxy.rejection.resources)
            state, style = f"{state}; rejects {names}: {proxy.rejection.message}", "red"
        table.add_row(
            *(proxy.node_id, _PROXY_KINDS.get(proxy.proxy_kind, ""), proxy.protocol),
            Text(state, style=style),
            proxy.user_agent,
        )
    return table


def _hosts(found: mesh_pb2.GetStatusResponse) -> Table:
    table = _table("HOST", "SUBSET", "HEALTHY", "REQUESTS NOW")
    for host in found.hosts:
        for subset in host.subsets:
            healthy = f"{subset.healthy_endpoints} of {len(subset.endpoints)}"
            if subset.unchecked_endpoints:
                healthy += f" ({subset.unchecked_endpoints} not checked)"
            style = "green" if subset.healthy_endpoints else "red"
            table.add_row(
                "" if subset.name else f"{host.name}:{', '.join(map(str, host.ports))}",
                subset.name or "(all)",
                Text(healthy, style=style),
                _count(subset),
            )
    return table


def _endpoints(found: mesh_pb2.GetStatusResponse) -> Table:
    table = _table("ENDPOINT", "STATE", "REQUESTS NOW", "")
    for endpoint in found.endpoints:
        words, style = _STATES[endpoint.state]
        table.add_row(endpoint.address, Text(words, style=style), _count(endpoint), endpoint.reason)
    return table


def _routes(found: mesh_pb2.GetStatusResponse) -> Table:
    table = _table("VIRTUAL SERVICE", "REQUESTS", "GO TO", "COPIES TO")
    for route in found.routes:
        table.add_row(
            f"{route.virtual_service} {route.name}".rstrip(),
            route.match or "any",
            _shares(route.destinations),
            _shares(route.mirrors),
        )
    return table


def _lines(found: mesh_pb2.GetStatusResponse) -> Iterable[Text]:
    for name, transition in (
        ("change", found.transition),
        ("last change", found.last_transition),
    ):
        if transition.id:
            words, style = _TRANSITIONS[transition.state]
            reason = f": {transition.reason}" if transition.reason else ""
            yield Text.assemble(
                (f"{name}: ", "dim"), transition.description, ": ", (words + reason, style)
            )
    for service, owner in dict.fromkeys((r.virtual_service, r.owner) for r in found.routes):
        if owner:
            name = owner.rpartition("/")[2]
            yield Text.assemble(
                (f"{service}: ", "dim"),
                f"its traffic belongs to the rollout {owner}; see `tidegate rollout get {name}`",
            )
    for file in found.shifted_files:
        yield Text.assemble(("shifted: ", "dim"), f"{file}; `tidegate mesh reset` returns to it")
    for problem in found.problems:
        yield Text.assemble((f"{problem.source}: ", "bold"), (problem.message, "red"))


def _shares(destinations: Iterable[mesh_pb2.Destination]) -> str:
    return ", ".join(
        f"{each.host.partition('.')[0]}{' ' + each.subset if each.subset else ''}"
        f" {100 * each.share:.4g}%"
        for each in destinations
    )


def _count(counted: mesh_pb2.Subset | mesh_pb2.Endpoint) -> str:
    if not counted.HasField("requests_in_progress"):
        return "-"
    return str(counted.requests_in_progress)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
