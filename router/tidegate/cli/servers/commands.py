"""`tidegate up`, `down`, `status` and `restart`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from tidegate.cli.console import exit_on_interrupt
from tidegate.cli.servers.display import ROUTED_S, mesh_lines, server_line, server_table
from tidegate.mesh.supervisor.config.port_check import check_ports
from tidegate.mesh.supervisor.config.servers_file import ServersFile, find_config, load_config
from tidegate.mesh.supervisor.errors import (
    AlreadyRunningError,
    NotRunningError,
    StillRunningError,
    SupervisorError,
)
from tidegate.mesh.supervisor.process.state_machine import Phase
from tidegate.mesh.supervisor.span_export import COLLECTOR_VARIABLE, check_collector
from tidegate.mesh.supervisor.state.command_files import send_restart
from tidegate.mesh.supervisor.state.directory import DIRECTORY, StateDirectory
from tidegate.mesh.supervisor.state.snapshot import RestartSnapshot, RestartStage, Snapshot
from tidegate.mesh.supervisor.supervisor import Supervisor

__all__ = ["down", "restart", "status", "up"]

_POLL_S = 0.1
# A supervisor may take this much longer to stop than its slowest server.
_STOP_MARGIN_S = 10.0

_File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="The servers to run. Default: ./tidegate.yaml, or vision and llm without such a file.",
        show_default=False,
    ),
]
_Directory = Annotated[
    Path, typer.Option("--directory", help="The folder for state and logs.", show_default=True)
]


def up(
    file: _File = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return once the servers serve.")
    ] = False,
    directory: _Directory = DIRECTORY,
    otlp_endpoint: Annotated[
        str,
        typer.Option(
            envvar=COLLECTOR_VARIABLE,
            help="OTLP collector for the spans of all servers and of Envoy, such as"
            " http://127.0.0.1:4317. Default: OpenTelemetry's variables, or the controller.",
            metavar="URL",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Start the servers and keep them running until Ctrl-C.

    With --detach, exits with 1 when a server fails; without --detach, when all servers have failed.
    """
    if otlp_endpoint:
        # Every program that the supervisor starts reads this variable.
        os.environ[COLLECTOR_VARIABLE] = otlp_endpoint
    state = StateDirectory(directory)
    path = find_config(file, Path.cwd())
    config = load_config(path)
    check_collector(os.environ)
    console = Console(stderr=True, highlight=False)
    if detach:
        _detach(state, config, path, console)
        return
    with _Progress(console) as progress:
        gave_up = asyncio.run(Supervisor(config, path, state, progress.show).run())
    console.print("all servers have stopped")
    if len(gave_up) == len(config.servers):
        raise typer.Exit(1)


def down(directory: _Directory = DIRECTORY) -> None:
    """Stop the servers of `tidegate up`, here or in another terminal, and wait until they have."""
    state = StateDirectory(directory)
    snapshot = _running(state)
    console = Console(stderr=True, highlight=False)
    os.kill(snapshot.pid, signal.SIGTERM)
    names = ", ".join(server.name for server in snapshot.servers)
    limit_s = snapshot.drain_deadline_s + _STOP_MARGIN_S
    continues = f"{names} are still stopping; follow them with `tidegate status`"
    with exit_on_interrupt(continues), console.status(f"stopping {names}"):
        if not _wait(lambda: not state.held(), limit_s):
            raise StillRunningError(
                f"the supervisor (pid {snapshot.pid}) still runs after {limit_s:g} s; "
                f"see {state.logs}, or kill it: its servers end with it"
            )
    console.print(f"stopped {names}")


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    directory: _Directory = DIRECTORY,
) -> None:
    """Show the servers that `tidegate up` runs on this machine.

    Exits with 1 when a server does not serve, and when no supervisor runs.
    """
    snapshot = _running(StateDirectory(directory))
    console = Console(highlight=False)
    if as_json:
        console.print_json(json.dumps(asdict(snapshot), default=str))
    else:
        console.print(server_table(snapshot, time.time()), soft_wrap=not console.is_terminal)
    if any(server.phase is not Phase.SERVING for server in snapshot.servers):
        raise typer.Exit(1)


def restart(
    name: Annotated[str, typer.Argument(help="The server.", show_default=False)],
    directory: _Directory = DIRECTORY,
) -> None:
    """Restart one server; behind the mesh, without losing a request.

    Behind the mesh, a new process starts beside the old one and takes over once Envoy sends it
    requests. Anything else is stopped and started. Exits with 1 when the restart fails.
    """
    state = StateDirectory(directory)
    snapshot = _running(state)
    console = Console(stderr=True, highlight=False)
    command = send_restart(state, snapshot.pid, name)
    seen: RestartSnapshot | None = None
    continues = f"the restart of {name} continues; follow it with `tidegate status`"
    with exit_on_interrupt(continues), console.status(f"restarting {name}"):
        while seen is None or not seen.stage.over:
            current = _running(state).restart(command.id)
            if current is not None and current != seen:
                seen = current
                console.print(f"{name}: {f'{seen.stage}: {seen.reason}'.removesuffix(': ')}")
            time.sleep(_POLL_S)
    if seen.stage is RestartStage.FAILED:
        raise typer.Exit(1)


class _Progress:
    """Shows each state: as a live table on a terminal, else as a line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._snapshot: Snapshot | None = None
        self._phases: dict[str, Phase] = {}
        self._lines: tuple[str, ...] = ()
        self._live = (
            Live(console=console, get_renderable=self._table, refresh_per_second=8)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Shows the next state."""
        self._snapshot = snapshot
        if self._live is not None:
            return
        for server in snapshot.servers:
            # During a restart two processes have the server's name; their logs differ.
            if self._phases.get(server.log) is not server.phase:
                self._phases[server.log] = server.phase
                self._console.print(server_line(server), soft_wrap=True)
        serving = any(server.phase is Phase.SERVING for server in snapshot.servers)
        lines = mesh_lines(snapshot, time.time()) if serving and snapshot.settled else ()
        if lines and lines != self._lines:
            self._lines = lines
            self._console.print("\n".join(lines), soft_wrap=True)

    def _table(self) -> RenderableType:
        if self._snapshot is None:
            return ""
        return server_table(self._snapshot, time.time(), live=True)


def _detach(state: StateDirectory, config: ServersFile, path: Path, console: Console) -> None:
    if state.held():
        raise AlreadyRunningError(
            "tidegate is up already here; see `tidegate status`, or stop it with `tidegate down`"
        )
    check_ports(config)
    state.logs.mkdir(parents=True, exist_ok=True)
    log = state.log_file("supervisor")
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603  # our own module
            [
                *(sys.executable, "-m", "tidegate.mesh.supervisor"),
                *(str(path.resolve()), str(state.root)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    settled_at: float | None = None
    continues = (
        "the servers go on starting in the background; follow them with `tidegate status`, stop "
        "them with `tidegate down`"
    )
    with exit_on_interrupt(continues), _Progress(console) as progress:
        while True:
            snapshot = state.running()
            if snapshot is not None and snapshot.pid == child.pid:
                progress.show(snapshot)
                settled_at = (settled_at or time.monotonic()) if snapshot.settled else None
                waited = settled_at is not None and time.monotonic() - settled_at > ROUTED_S
                if snapshot.settled and (waited or not snapshot.unrouted):
                    break
            if child.poll() is not None:
                output_text = log.read_text(errors="replace").strip()
                raise SupervisorError(f"the supervisor ended early:\n{output_text}")
            time.sleep(_POLL_S)
    console.print("running in the background; stop it with `tidegate down`")
    if any(server.phase is Phase.FAILED for server in snapshot.servers):
        raise typer.Exit(1)


def _running(state: StateDirectory) -> Snapshot:
    """Reads the state of the supervisor that runs here.

    Raises:
        NotRunningError: No supervisor runs here.
    """
    if not state.held():
        left = state.read()
        if left is not None:
            raise NotRunningError(
                f"nothing runs here: the supervisor (pid {left.pid}) was killed, and its servers "
                "with it; start again with `tidegate up`"
            )
        raise NotRunningError("nothing runs here; start the servers with `tidegate up`")
    # A supervisor takes the lock a moment before it writes its first state.
    if _wait(lambda: state.read() is not None, 5.0) and (snapshot := state.read()) is not None:
        return snapshot
    raise NotRunningError(f"a supervisor holds {state.lock_file} but has no state; is it stopping?")


def _wait(condition: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
