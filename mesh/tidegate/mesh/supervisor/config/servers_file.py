"""The file that lists the servers to run: ``tidegate.yaml``.

    servers:
      vision:
        kind: vision
        grpc_port: 8500
        metrics_port: 9500
        settings: {model_repository: models}

`settings` become flags of the server (``stream_window: 8`` is ``--stream-window=8``), and the
server checks them. This module checks everything else, and each error says where it is, what is
wrong, and how to fix it. With a section ``mesh`` (see `mesh_section`), servers that have ``labels``
stand behind an Envoy.
"""

import difflib
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from tidegate.mesh.supervisor.config.mesh_section import (
    ControllerConfig,
    EnvoyConfig,
    MeshConfig,
    RouterConfig,
    StrictModel,
)
from tidegate.mesh.supervisor.config.server_kinds import Port, ServerKind, find_kind
from tidegate.mesh.supervisor.errors import ConfigError
from tidegate.mesh.supervisor.process.state_machine import RestartPolicy

__all__ = [
    "CONTROLLER_NAME",
    "DEFAULT_FILE",
    "ENVOY_NAME",
    "ROUTER_NAME",
    "ServerConfig",
    "ServersFile",
    "find_config",
    "flag",
    "load_config",
]

DEFAULT_FILE = "tidegate.yaml"

CONTROLLER_NAME, ENVOY_NAME, ROUTER_NAME = "controller", "envoy", "router"

_MESH_NAMES = frozenset({CONTROLLER_NAME, ENVOY_NAME, ROUTER_NAME})
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PortNumber = Annotated[int, Field(ge=0, le=65535)]
# Kubernetes's syntax for labels, without the optional domain before the key.
_LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$")]
_LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?$")]


class ServerConfig(StrictModel):
    """One server.

    Attributes:
        kind: A registered kind (see `server_kinds`); ``program`` is one of your own servers.
        command: The program and its first arguments, for a kind that has no command of its own.
        grpc_port: The port for gRPC; 0 takes a free one.
        http_port: The port for HTTP; 0 takes a free one.
        metrics_port: The HTTP port for metrics; 0 takes a free one.
        labels: The server's labels in the mesh, such as its app and version. A server without
            labels is not in the mesh. ``None`` means the labels of the kind.
        settings: Flags of the server by name.
        env: Environment variables, added to the supervisor's own.
        startup_timeout_s: Seconds from start to ready.
        drain_deadline_s: Seconds from SIGTERM to SIGKILL.
        initial_backoff_s: Seconds before the first restart; each further wait is twice as long.
        max_backoff_s: Longest wait before a restart, in seconds.
        stable_after_s: Seconds of serving after which the backoff starts over.
        crash_limit: Crashes within the window after which the supervisor gives the server up.
        crash_window_s: The window, in seconds.
    """

    kind: Annotated[ServerKind, PlainValidator(find_kind)]
    command: tuple[str, ...] = ()
    grpc_port: _PortNumber = 0
    http_port: _PortNumber = 0
    metrics_port: _PortNumber = 0
    labels: Mapping[_LabelKey, _LabelValue] | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)
    env: Mapping[str, str] = Field(default_factory=dict)
    startup_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    drain_deadline_s: Annotated[float, Field(ge=0, le=86_400)] = 35.0
    initial_backoff_s: Annotated[float, Field(gt=0, le=3_600)] = 1.0
    max_backoff_s: Annotated[float, Field(gt=0, le=3_600)] = 30.0
    stable_after_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    crash_limit: Annotated[int, Field(ge=1, le=1_000)] = 5
    crash_window_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0

    @field_validator("settings")
    @classmethod
    def _supervisor_sets_its_own_flags(
        cls, settings: Mapping[str, Any], info: ValidationInfo
    ) -> Mapping[str, Any]:
        kind = info.data.get("kind")
        own = {"port_file", *(port.setting for port in (kind.ports if kind else ()))}
        for name in settings:
            if name.replace("-", "_") in own:
                raise ValueError(f"'{name}' is set by the supervisor; write it beside 'settings'")
        return settings

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "ServerConfig":
        kind = self.kind
        if kind.command is None and not self.command:
            raise ValueError(f"kind '{kind.name}' needs 'command', for example [python, server.py]")
        if kind.command is not None and self.command:
            raise ValueError(f"kind '{kind.name}' has its own command; remove 'command'")
        for port in Port:
            if self.port(port) and port not in kind.ports:
                known = ", ".join(f"'{each.setting}'" for each in kind.ports)
                raise ValueError(f"kind '{kind.name}' has no '{port.setting}'; it has {known}")
        return self

    @property
    def mesh_labels(self) -> Mapping[str, str]:
        """The labels in the mesh; empty if the server is not in it."""
        return self.kind.labels if self.labels is None else self.labels

    def port(self, port: Port) -> int:
        """The number that the file gives a port; 0 for a free one."""
        return int(getattr(self, port.setting))

    def arguments(self, port_file: Path) -> list[str]:
        """Builds the command line.

        Args:
            port_file: The file to which the server writes its ports.
        """
        command = self.command if self.kind.command is None else self.kind.command
        flags = {
            **{port.setting: self.port(port) for port in self.kind.ports},
            "port_file": str(port_file),
            **self.settings,
        }
        return [*command, *(flag(name, value) for name, value in flags.items())]

    def policy(self) -> RestartPolicy:
        """The timeouts and limits of the state machine."""
        return RestartPolicy(
            startup_timeout_s=self.startup_timeout_s,
            drain_deadline_s=self.drain_deadline_s,
            initial_backoff_s=self.initial_backoff_s,
            max_backoff_s=self.max_backoff_s,
            stable_after_s=self.stable_after_s,
            crash_limit=self.crash_limit,
            crash_window_s=self.crash_window_s,
        )

    @property
    def host(self) -> str:
        """The address that the server listens on, by its own setting."""
        return str(self.settings.get("host", "127.0.0.1"))

    @property
    def client_host(self) -> str:
        """The address at which this host reaches the server."""
        # A server that listens on every address is reached on the loopback address.
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104


class ServersFile(StrictModel):
    """The whole file.

    Attributes:
        servers: The servers by name.
        mesh: The Envoy in front of them and its controller; ``None`` without a mesh.
    """

    servers: Annotated[dict[str, ServerConfig], Field(min_length=1)]
    mesh: MeshConfig | None = None

    @field_validator("servers")
    @classmethod
    def _names_are_valid(cls, servers: dict[str, ServerConfig]) -> dict[str, ServerConfig]:
        for name in servers:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"'{name}' cannot be a name; use 1-32 lower-case letters, digits and '-'"
                )
        return servers

    @model_validator(mode="after")
    def _parts_fit(self) -> "ServersFile":
        taken: dict[int, str] = {}
        for place, _, port in self.ports():
            if port and taken.setdefault(port, place) != place:
                raise ValueError(f"{taken[port]} and {place} are both {port}; change one")
        for name, server in self.servers.items():
            if self.mesh is None and server.labels:
                raise ValueError(f"servers.{name}.labels mean nothing without 'mesh'; add 'mesh'")
            if self.mesh is not None:
                self._check_behind_mesh(name, server)
        return self

    @staticmethod
    def _check_behind_mesh(name: str, server: ServerConfig) -> None:
        if name in _MESH_NAMES:
            raise ValueError(f"servers.{name}: the mesh has a process of that name; rename it")
        if server.mesh_labels and any(server.port(port) for port in Port):
            ports = " and ".join(f"'{port.setting}'" for port in server.kind.ports)
            labels = "'labels'" if server.labels else f"the labels of kind '{server.kind.name}'"
            raise ValueError(
                f"servers.{name}: with {labels} the server stands behind the mesh, where a second "
                f"process takes over in a restart: remove {ports}, each process takes free ones"
            )

    def ports(self) -> Iterator[tuple[str, str, int]]:
        """Lists the ports of the file: the place in the file, the host, and the port or 0."""
        for name, server in self.servers.items():
            for port in server.kind.ports:
                yield f"servers.{name}.{port.setting}", server.host, server.port(port)
        if self.mesh is not None:
            for place, number in self.mesh.ports():
                yield place, "127.0.0.1", number


class _StrictLoader(yaml.SafeLoader):
    """Rejects a key that is written twice: YAML forbids it, and PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' is written twice; remove one",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def find_config(file: Path | None, directory: Path) -> Path:
    """Finds the file to use: the given one, the folder's ``tidegate.yaml``, or the packaged one."""
    if file is not None:
        return file
    own = directory / DEFAULT_FILE
    if own.exists():
        return own
    return Path(str(importlib.resources.files("tidegate.mesh.supervisor.config") / "default.yaml"))


def load_config(path: Path) -> ServersFile:
    """Reads and checks a file.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or has a wrong value.
    """
    try:
        data = yaml.load(path.read_bytes(), Loader=_StrictLoader)  # noqa: S506  # it is a SafeLoader
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}; check the path") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(path, f"{place}{error.problem or 'is not YAML'}") from error
    except yaml.YAMLError as error:
        raise ConfigError(path, f"is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(path, "must be a mapping with the key 'servers'; see the example")
    try:
        return ServersFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(path, *(_problem(detail) for detail in error.errors())) from error


def _problem(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            names = list(_model_at(detail["loc"]).model_fields)
            key = str(detail["loc"][-1])
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(names)}"
            return f"{place}: unknown key; {hint}"
        case "missing":
            return f"{place}: is missing; add it"
        case _:
            shown = detail["input"]
            got = f" (got {shown!r})" if isinstance(shown, str | int | float | bool) else ""
            where = f"{place}: " if place else ""
            return f"{where}{detail['msg'].removeprefix('Value error, ')}{got}"


def _model_at(place: tuple[int | str, ...]) -> type[StrictModel]:
    """The model that defines the keys at a place of the file."""
    match place:
        case ("servers", _, _, *_):
            return ServerConfig
        case ("mesh", "controller", _):
            return ControllerConfig
        case ("mesh", "envoy", _):
            return EnvoyConfig
        case ("mesh", "router", _):
            return RouterConfig
        case ("mesh", _):
            return MeshConfig
        case _:
            return ServersFile


def flag(name: str, value: object) -> str:
    """Writes a setting as a flag of the chassis: switches by name, lists with commas."""
    flag = name.replace("_", "-")
    match value:
        case True:
            return f"--{flag}"
        case False:
            return f"--no-{flag}"
        case list() | tuple():
            return f"--{flag}={','.join(map(str, value))}"
        case _:
            return f"--{flag}={value}"
