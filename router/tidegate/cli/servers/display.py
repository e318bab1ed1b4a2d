"""What a person sees of the servers: a table of states, and the reason where one failed."""

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
# From serving to being sent requests by Envoy takes a second; longer means that nothing fits.
ROUTED_S = 10.0


def server_table(snapshot: Snapshot, now: float, *, live: bool = False) -> RenderableType:
    """The servers as a table, with what went wrong below it.

    Args:
        snapshot: the servers.
        now: the time in seconds since 1970.
        live: whether it is drawn again and again, so that spinners turn.
    """
    restarted = any(server.restarts for server in snapshot.servers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["SERVER", "STATE", "FOR", *(["RESTARTS"] if restarted else []), "PID"]
    for title in (*titles, "GRPC", "METRICS"):
        table.add_column(title, no_wrap=True, min_width=len(title))
    for server in snapshot.servers:
        table.add_row(
            server.name,
            _state(server, live=live),
            duration_text(now - server.since),
            *([str(server.restarts)] if restarted else []),
            str(server.pid or "-"),
            server.grpc_address or "-",
            server.metrics_address or "-",
        )
    logs = ", ".join(_shortened(server.log) for server in snapshot.servers)
    troubles = (_trouble(server) for server in snapshot.servers if _troubled(server))
    hint = "; Ctrl-C stops all" if live else ""
    return Group(
        table,
        *(Text(line) for line in mesh_lines(snapshot, now)),
        Text(f"logs: {logs}{hint}", style="dim"),
        *troubles,
    )


def mesh_lines(snapshot: Snapshot, now: float) -> tuple[str, ...]:
    """Where to call what stands behind Envoy, and what keeps a call from arriving; or nothing."""
    if not snapshot.ingress:
        return ()
    places = (
        f"{ingress.name} {ingress.address}{'' if ingress.listening else ' (not listening yet)'}"
        for ingress in snapshot.ingress
    )
    lines = [f"call {', '.join(places)}", f"traces http://{snapshot.traces_address}"]
    lines += [
        f"{server.name} serves but Envoy sends it nothing: `tidegate mesh status` says what is in "
        "force; do its labels fit a ServiceEntry's workloadSelector?"
        for server in snapshot.unrouted
        if now - server.since > ROUTED_S
    ]
    return tuple(lines)


def server_line(server: ServerSnapshot) -> str:
    """One server's state as a line, for logs and pipes."""
    text = f"{server.name}: {server.phase}"
    if server.phase is Phase.SERVING:
        place = server.grpc_address or server.metrics_address
        return f"{text} on {place} (pid {server.pid})"
    if server.phase in (Phase.BACKING_OFF, Phase.FAILED):
        words = last_log_message(server)
        tail = f": {words}" if words else ""
        return f"{text}; it {server.reason}{tail} (log: {_shortened(server.log)})"
    return text


def duration_text(seconds: float) -> str:
    """A duration in its two largest units."""
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


def _troubled(server: ServerSnapshot) -> bool:
    return bool(server.reason) and server.phase is not Phase.SERVING


def _trouble(server: ServerSnapshot) -> Text:
    lines = "\n".join(f"  {line[:_MAX_LINE]}" for line in server.last_lines)
    return Text.assemble(
        ("\n", ""),
        (f"{server.name} {server.reason}", "red"),
        f"; the end of {_shortened(server.log)}:\n",
        (lines or "  (it is empty)", "dim"),
    )


def _shortened(path: str) -> str:
    """A path from here, where that is shorter."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
