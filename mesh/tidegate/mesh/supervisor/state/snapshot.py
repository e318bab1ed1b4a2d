"""The state of everything that a supervisor runs, as values and as JSON.

The supervisor writes it to the state file after every change (see `directory`); the commands
``tidegate status``, ``tidegate restart`` and the clients' address look-up read it.
"""

import enum
import json
from dataclasses import asdict, dataclass

from tidegate.mesh.supervisor.process.state_machine import Phase

__all__ = [
    "IngressSnapshot",
    "RestartSnapshot",
    "RestartStage",
    "ServerSnapshot",
    "Snapshot",
    "last_log_message",
]

_FORMAT = 4
_MAX_MESSAGE_CHARACTERS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """One server process; times are seconds since 1970.

    Attributes:
        name: The server's name.
        kind: Its kind.
        phase: The phase of its process.
        since: When the phase began.
        serving_since: When its process became ready; ``None`` if it has not.
        restarts: How often the supervisor restarted it after a crash.
        reason: Why its process last crashed; empty if it has not.
        pid: Its process id; ``None`` when no process runs.
        grpc_address: Its gRPC address; ``None`` until it has written its ports.
        metrics_address: Its metrics address; ``None`` until it has written its ports.
        log: Its log file.
        http_address: Its HTTP address; ``None`` if it has none, or has not written its ports.
        routed: Whether Envoy sends it requests; ``None`` when it is not in the mesh.
        last_lines: The end of its log.
    """

    name: str
    kind: str
    phase: Phase
    since: float
    serving_since: float | None
    restarts: int
    reason: str
    pid: int | None
    grpc_address: str | None
    metrics_address: str | None
    log: str
    http_address: str | None = None
    routed: bool | None = None
    last_lines: tuple[str, ...] = ()

    @property
    def address(self) -> str | None:
        """The address at which clients call it."""
        return self.grpc_address or self.http_address


def last_log_message(server: ServerSnapshot) -> str:
    """The last line of a server's log; of a JSON line, its event and its error."""
    if not server.last_lines:
        return ""
    line = server.last_lines[-1]
    try:
        event = json.loads(line)
    except ValueError:
        return line[:_MAX_MESSAGE_CHARACTERS]
    if not isinstance(event, dict):
        return line[:_MAX_MESSAGE_CHARACTERS]
    parts = [str(event[key]) for key in ("event", "error", "exception") if event.get(key)]
    return ": ".join(parts)[:_MAX_MESSAGE_CHARACTERS] or line[:_MAX_MESSAGE_CHARACTERS]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSnapshot:
    """A port of Envoy at which clients find a kind of server.

    Attributes:
        name: The kind, or another name that the file gives it.
        address: ``HOST:PORT``.
        listening: Whether Envoy listens there.
    """

    name: str
    address: str
    listening: bool


class RestartStage(enum.StrEnum):
    """The progress of a restart."""

    STARTING = "starting a new process"
    JOINING = "waiting until Envoy sends it requests"
    DRAINING = "waiting until the old process has finished"
    DONE = "done"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether the restart has ended, well or badly."""
        return self in (RestartStage.DONE, RestartStage.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSnapshot:
    """A restart that ``tidegate restart`` asked for.

    Attributes:
        command: The id of the command.
        name: The server.
        stage: The progress.
        reason: Why it failed; empty if it has not.
    """

    command: str
    name: str
    stage: RestartStage
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a supervisor runs.

    Attributes:
        pid: The supervisor's process id.
        started_at: When it started, in seconds since 1970.
        config: The file that it was started with.
        drain_deadline_s: Seconds that it may take at most to stop everything.
        servers: The processes of the servers and of the mesh. A server that restarts has two.
        ingress: The ports at which clients find the servers behind Envoy.
        traces_address: The HTTP address of the trace queries; ``None`` without a mesh.
        collector: Where spans go instead, as the user's variables say: a URL, or ``none``; empty if
            they go to the controller.
        restarts: The last restarts that somebody asked for.
        warnings: What is left out, and how to have it.
    """

    pid: int
    started_at: float
    config: str
    drain_deadline_s: float
    servers: tuple[ServerSnapshot, ...]
    ingress: tuple[IngressSnapshot, ...] = ()
    traces_address: str | None = None
    collector: str = ""
    restarts: tuple[RestartSnapshot, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether each server serves or has failed."""
        return all(server.phase.settled for server in self.servers)

    @property
    def unrouted(self) -> tuple[ServerSnapshot, ...]:
        """The servers that serve behind Envoy and get no requests from it."""
        return tuple(
            server
            for server in self.servers
            if server.phase is Phase.SERVING and server.routed is False
        )

    def restart(self, command: str) -> RestartSnapshot | None:
        """The restart that a command asked for; ``None`` until the supervisor has taken it."""
        return next((each for each in self.restarts if each.command == command), None)

    def address_of(self, kind: str) -> str | None:
        """Where clients find a kind of server: Envoy's port for it, or the first that runs."""
        for ingress in self.ingress:
            if ingress.name == kind:
                return ingress.address
        for server in self.servers:
            if server.kind == kind and server.address and server.phase.has_process:
                return server.address
        return None

    def to_json(self) -> str:
        """Writes the content of the state file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> "Snapshot":
        """Reads the content of a state file.

        Raises:
            ValueError: The text is not a state file, or is one of another version.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != _FORMAT:
                raise ValueError("another version of tidegate wrote it")
            servers = tuple(
                ServerSnapshot(
                    **{
                        **server,
                        "phase": Phase(server["phase"]),
                        "last_lines": tuple(server["last_lines"]),
                    }
                )
                for server in data.pop("servers")
            )
            ingress = tuple(IngressSnapshot(**each) for each in data.pop("ingress"))
            restarts = tuple(
                RestartSnapshot(**{**each, "stage": RestartStage(each["stage"])})
                for each in data.pop("restarts")
            )
            warnings = tuple(data.pop("warnings"))
            return Snapshot(
                servers=servers, ingress=ingress, restarts=restarts, warnings=warnings, **data
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a field is missing or unknown: {error}") from error
