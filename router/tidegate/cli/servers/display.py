"""The display of the servers: a table of their states, and the reason of each failure."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.state.snapshot import ServerSnapshot, Snapshot, last_log_message

__all__ = ["ROUTED_S", "duration_text", "mesh_lines", "server_line", "server_table"]

_STYLES = {
    Phase.STOPPED: "dim",
    Phase.STARTING: "yellow",
    Phase.SERVING: "green",
    Phase.UNHEALTHY: "red",
    Phase.BACKING_OFF: "yellow",
    Phase.STOPPING: "yellow",
    Phase.FAILED: "bold red",
}
_MOVING = frozenset({Phase.STARTING, Phase.BACKING_OFF, Phase.STOPPING})
_MAX_LINE = 160
# A server that serves gets requests from Envoy within a second, unless its labels fit no service.
ROUTED_S = 10.0


def server_table(snapshot: Snapshot, now: float, *, live: bool = False) -> RenderableType:
    """Builds the table of the servers, with their failures below it.

    Args:
        snapshot: The servers.
        now: The time in seconds since 1970.
        live: Whether the table is redrawn all the time, so that spinners turn.
    """
    restarted = any(server.restarts for server in snapshot.servers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["SERVER", "STATE", "FOR", *(["RESTARTS"] if restarted else []), "PID"]
    with_http = any(server.http_address for server in snapshot.servers)
    for title in (*titles, "GRPC", *(["HTTP"] if with_http else []), "METRICS"):
        table.add_column(title, no_wrap=True, min_width=len(title))
    for server in snapshot.servers:
        table.add_row(
            server.name,
            _state(server, live=live),
            duration_text(now - server.since),
            *([str(server.restarts)] if restarted else []),
            str(server.pid or "-"),
            server.grpc_address or "-",
            *([server.http_address or "-"] if with_http else []),
            server.metrics_address or "-",
        )
    logs = ", ".join(_shortened(server.log) for server in snapshot.servers)
    failures = (_failure(server) for server in snapshot.servers if _has_failed(server))
    hint = "; Ctrl-C stops all" if live else ""
    return Group(
        table,
        *(Text(line) for line in mesh_lines(snapshot, now)),
        Text(f"logs: {logs}{hint}", style="dim"),
        *failures,
    )


def mesh_lines(snapshot: Snapshot, now: float) -> tuple[str, ...]:
    """Lists where to call the servers behind Envoy, those without requests, and what is off."""
    if not snapshot.ingress:
        return ()
    places = (
        f"{ingress.name} {ingress.address}{'' if ingress.listening else ' (not listening yet)'}"
        for ingress in snapshot.ingress
    )
    lines = [f"call {', '.join(places)}", _traces(snapshot)]
    lines += [
        f"{server.name} serves but Envoy sends it nothing: see `tidegate mesh status` for the "
        "configuration in force; do its labels fit a ServiceEntry's workloadSelector?"
        for server in snapshot.unrouted
        if now - server.since > ROUTED_S
    ]
    lines += snapshot.warnings
    return tuple(lines)


def _traces(snapshot: Snapshot) -> str:
    if snapshot.collector == "none":
        return "no traces: OpenTelemetry's variables turn them off"
    if snapshot.collector:
        return f"spans go to {snapshot.collector}"
    return f"traces http://{snapshot.traces_address}"


def server_line(server: ServerSnapshot) -> str:
    """Formats the state of a server as a line, for logs and pipes."""
    text = f"{server.name}: {server.phase}"
    if server.phase is Phase.SERVING:
        address = server.address or server.metrics_address
        return f"{text} on {address} (pid {server.pid})"
    if server.phase in (Phase.BACKING_OFF, Phase.FAILED):
        message = last_log_message(server)
        tail = f": {message}" if message else ""
        return f"{text}; it {server.reason}{tail} (log: {_shortened(server.log)})"
    return text


def duration_text(seconds: float) -> str:
    """Formats a duration in its two largest units."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def _state(server: ServerSnapshot, *, live: bool) -> RenderableType:
    text = Text(server.phase, style=_STYLES[server.phase])
    if live and server.phase in _MOVING:
        return Spinner("dots", text=text, style=_STYLES[server.phase])
    return text


def _has_failed(server: ServerSnapshot) -> bool:
    return bool(server.reason) and server.phase is not Phase.SERVING


def _failure(server: ServerSnapshot) -> Text:
    lines = "\n".join(f"  {line[:_MAX_LINE]}" for line in server.last_lines)
    return Text.assemble(
        ("\n", ""),
        (f"{server.name} {server.reason}", "red"),
        f"; the end of {_shortened(server.log)}:\n",
        (lines or "  (it is empty)", "dim"),
    )


def _shortened(path: str) -> str:
    """The path relative to the current folder, if it lies in there."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
