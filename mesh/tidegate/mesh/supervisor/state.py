"""The folder ``.tidegate``: who supervises here, what runs, and where it listens.

One supervisor at a time holds the lock (``flock``, which the kernel lets go with the process, so
that a dead supervisor never blocks the next). It writes ``state.json`` whole or not at all. Who
reads it believes it only while the lock is held: otherwise a supervisor that was killed left it.
"""

import contextlib
import enum
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tidegate.mesh.supervisor.errors import AlreadyRunningError, SupervisorError
from tidegate.mesh.supervisor.machine import Phase

__all__ = [
    "DIRECTORY",
    "IngressSnapshot",
    "RestartSnapshot",
    "RestartStage",
    "ServerSnapshot",
    "Snapshot",
    "StateDirectory",
    "last_words",
]

DIRECTORY = Path(".tidegate")
_FORMAT = 2
# Longest text that `last_words` gives, in characters.
_MAX_WORDS = 160
# Who only asks whether the lock is held has it for a moment; who takes it waits that out.
_LOCK_TRIES, _LOCK_WAIT_S = 10, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """One server, as the state file has it; times are seconds since 1970.

    Attributes:
        name: its name.
        kind: what it is.
        phase: where its process is in its life.
        since: when the phase began.
        serving_since: when its process began to serve; ``None`` unless it has.
        restarts: how often it was started again.
        reason: why it last ended unasked; empty unless it has.
        pid: its process; ``None`` when it has none.
        grpc_address: where it answers gRPC; ``None`` until it has said so.
        metrics_address: where it has its metrics; ``None`` until it has said so.
        log: its log file.
        routed: whether Envoy sends it requests; ``None`` when it is not in the mesh.
        last_lines: the end of its log.
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
    routed: bool | None = None
    last_lines: tuple[str, ...] = ()


def last_words(server: ServerSnapshot) -> str:
    """The last line of a server's log; of a JSON line, its event and its error."""
    if not server.last_lines:
        return ""
    line = server.last_lines[-1]
    try:
        event = json.loads(line)
    except ValueError:
        return line[:_MAX_WORDS]
    if not isinstance(event, dict):
        return line[:_MAX_WORDS]
    parts = [str(event[key]) for key in ("event", "error", "exception") if event.get(key)]
    return ": ".join(parts)[:_MAX_WORDS] or line[:_MAX_WORDS]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSnapshot:
    """A port at which clients find a kind of server behind Envoy.

    Attributes:
        name: the kind, or what else the file calls it.
        address: ``HOST:PORT``.
        listening: whether Envoy listens there.
    """

    name: str
    address: str
    listening: bool


class RestartStage(enum.StrEnum):
    """How far a restart is."""

    STARTING = "starting a new process"
    JOINING = "waiting until Envoy sends it requests"
    DRAINING = "waiting until the old process has finished"
    DONE = "done"
    FAILED = "failed"

    @property
    def over(self) -> bool:
        """Whether it is over, well or badly."""
        return self in (RestartStage.DONE, RestartStage.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSnapshot:
    """The last restart of a server that somebody asked for.

    Attributes:
        order: which order it follows.
        name: the server.
        stage: how far it is.
        reason: why it failed; empty unless it has.
    """

    order: str
    name: str
    stage: RestartStage
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a supervisor runs.

    Attributes:
        pid: the supervisor's process.
        started_at: when it started, in seconds since 1970.
        config: the file that it was started with.
        drain_deadline_s: the longest that any of its servers may take to stop.
        servers: its servers, and what the mesh has of its own; of a server that is being restarted,
            both processes.
        ingress: where clients find what stands behind Envoy.
        traces_address: where traces are asked for over HTTP; ``None`` without a mesh.
        restarts: the last restart of each server that was asked for.
    """

    pid: int
    started_at: float
    config: str
    drain_deadline_s: float
    servers: tuple[ServerSnapshot, ...]
    ingress: tuple[IngressSnapshot, ...] = ()
    traces_address: str | None = None
    restarts: tuple[RestartSnapshot, ...] = ()

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

    def restart(self, order: str) -> RestartSnapshot | None:
        """How far the restart of an order is, once it was taken up."""
        return next((each for each in self.restarts if each.order == order), None)

    def address_of(self, kind: str) -> str | None:
        """Where clients find a kind of server: Envoy's port for it, or the first that runs."""
        for ingress in self.ingress:
            if ingress.name == kind:
                return ingress.address
        for server in self.servers:
            if server.kind == kind and server.grpc_address and server.phase.has_process:
                return server.grpc_address
        return None

    def to_json(self) -> str:
        """The content of the state file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)

    @staticmethod
    def from_json(text: str) -> "Snapshot":
        """Reads the content of a state file.

        Raises:
            ValueError: it is not one, or one of another version.
        """
        try:
            data = json.loads(text)
            if data.pop("format") != _FORMAT:
                raise ValueError("it is of another version of tidegate")
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
            return Snapshot(servers=servers, ingress=ingress, restarts=restarts, **data)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"it lacks or adds something: {error}") from error


class StateDirectory:
    """The folder of one supervisor.

    Args:
        root: the folder; it is made when something is written.
    """

    def __init__(self, root: Path = DIRECTORY) -> None:
        self.root = root
        self.state_file = root / "state.json"
        self.mesh_state = root / "mesh.sqlite"
        self.traces = root / "traces.sqlite"
        self.lock_file = root / "lock"
        self.logs = root / "logs"
        self.run = root / "run"
        self.workloads = root / "workloads"
        self.orders = root / "orders"

    def log_file(self, name: str) -> Path:
        """The log of a server."""
        return self.logs / f"{name}.log"

    def port_file(self, name: str) -> Path:
        """Where a server writes its ports."""
        return self.run / f"{name}.json"

    def workload_file(self, name: str) -> Path:
        """Where the mesh is told of a server."""
        return self.workloads / f"{name}.yaml"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder; what a dead supervisor left of its state goes.

        Raises:
            AlreadyRunningError: another supervisor has it.
            SupervisorError: the folder cannot be written.
        """
        try:
            for folder in (self.root, self.logs, self.run, self.workloads, self.orders):
                folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SupervisorError(f"cannot write to {self.root}: {error.strerror}") from error
        try:
            if not self._take(descriptor):
                raise AlreadyRunningError(
                    f"tidegate is up already here ({self.root.resolve()}); "
                    "see `tidegate status`, or stop it with `tidegate down`"
                )
            self.state_file.unlink(missing_ok=True)
            for left in (*self.workloads.iterdir(), *self.orders.iterdir()):
                left.unlink()
            yield
            self.state_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def write(self, snapshot: Snapshot) -> None:
        """Replaces the state, whole or not at all."""
        draft = self.state_file.with_suffix(".json.new")
        draft.write_text(snapshot.to_json(), encoding="utf-8")
        draft.replace(self.state_file)

    def read(self) -> Snapshot | None:
        """The state as it was last written, by a supervisor that may be gone.

        Raises:
            SupervisorError: the file is not one of this version.
        """
        try:
            return Snapshot.from_json(self.state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SupervisorError(
                f"{self.state_file} cannot be used: {error}; stop what runs and delete it"
            ) from error

    def held(self) -> bool:
        """Whether a supervisor runs here."""
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def running(self) -> Snapshot | None:
        """The state, if the supervisor that wrote it still runs.

        Raises:
            SupervisorError: the state file is not one of this version.
        """
        return self.read() if self.held() else None

    @staticmethod
    def _take(descriptor: int) -> bool:
        for attempt in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if attempt + 1 < _LOCK_TRIES:
                    time.sleep(_LOCK_WAIT_S)
            else:
                return True
        return False
