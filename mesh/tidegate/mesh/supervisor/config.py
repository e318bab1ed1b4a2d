"""The file that says which servers to run: ``tidegate.yaml``.

    servers:
      vision:
        kind: vision
        grpc_port: 8500
        metrics_port: 9500
        settings: {model_repository: models}

``settings`` become flags of the server (``max_batch_size: 8`` is ``--max-batch-size=8``), which
checks them itself; everything else is checked here, and each error says where, what is wrong, and
what would be right. With ``mesh`` (see `mesh_config`), servers that have ``labels`` stand behind an
Envoy.
"""

import difflib
import enum
import importlib.resources
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from tidegate.mesh.supervisor.errors import ConfigError
from tidegate.mesh.supervisor.machine import RestartPolicy
from tidegate.mesh.supervisor.mesh_config import ControllerConfig, EnvoyConfig, MeshConfig

__all__ = [
    "CONTROLLER_NAME",
    "DEFAULT_FILE",
    "ENVOY_NAME",
    "ServerConfig",
    "ServerKind",
    "ServersFile",
    "find_config",
    "flag",
    "load_config",
]

DEFAULT_FILE = "tidegate.yaml"

CONTROLLER_NAME, ENVOY_NAME = "controller", "envoy"

_MESH_NAMES = frozenset({CONTROLLER_NAME, ENVOY_NAME})
_OWN_FLAGS = frozenset({"grpc_port", "metrics_port", "port_file"})
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
# As Kubernetes has them; a prefix of the key that names a domain is left out.
_LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?$")]
_LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?$")]


class ServerKind(enum.StrEnum):
    """What a server is."""

    VISION = "vision"
    LLM = "llm"
    PROGRAM = "program"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(_Model):
    """One server.

    Attributes:
        kind: ``vision``, ``llm``, or ``program`` for one of your own that takes the same flags.
        command: the program and its first arguments; only for a ``program``.
        grpc_port: port for gRPC; 0 takes a free one.
        metrics_port: port for metrics over HTTP; 0 takes a free one.
        labels: what the mesh knows it by, such as its app and version; none: not in the mesh.
        settings: flags of the server by name.
        env: environment variables, added to the supervisor's own.
        startup_timeout_s: from being started to serving, in seconds.
        drain_deadline_s: from being asked to stop to being killed, in seconds.
        initial_backoff_s: wait before the first restart, in seconds; each further is twice as long.
        max_backoff_s: longest wait before a restart, in seconds.
        stable_after_s: a server that served this many seconds starts over with the first wait.
        crash_limit: crashes within the window after which it is given up.
        crash_window_s: the window, in seconds.
    """

    kind: ServerKind
    command: tuple[str, ...] = ()
    grpc_port: Annotated[int, Field(ge=0, le=65535)] = 0
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    labels: Mapping[_LabelKey, _LabelValue] = Field(default_factory=dict)
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
    def _settings_are_not_ours(cls, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in settings:
            if name.replace("-", "_") in _OWN_FLAGS:
                raise ValueError(f"'{name}' is set by the supervisor; write it beside 'settings'")
        return settings

    @model_validator(mode="after")
    def _command_fits_kind(self) -> "ServerConfig":
        if self.kind is ServerKind.PROGRAM and not self.command:
            raise ValueError("kind 'program' needs 'command', for example [python, server.py]")
        if self.kind is not ServerKind.PROGRAM and self.command:
            raise ValueError(f"kind '{self.kind}' has its own command; remove 'command'")
        return self

    @model_validator(mode="after")
    def _mesh_gives_the_ports(self) -> "ServerConfig":
        if self.labels and (self.grpc_port or self.metrics_port):
            raise ValueError(
                "with 'labels' it stands behind the mesh, where a second process takes over in a "
                "restart: remove 'grpc_port' and 'metrics_port', each process takes free ones"
            )
        return self

    def arguments(self, python: str, port_file: Path) -> list[str]:
        """The command line.

        Args:
            python: the interpreter that runs Tidegate's own servers.
            port_file: where the server is to write its ports.
        """
        command = (
            list(self.command)
            if self.kind is ServerKind.PROGRAM
            else [python, "-m", f"tidegate.serving.{self.kind}"]
        )
        flags = {
            "grpc_port": self.grpc_port,
            "metrics_port": self.metrics_port,
            "port_file": str(port_file),
            **self.settings,
        }
        return command + [flag(name, value) for name, value in flags.items()]

    def policy(self) -> RestartPolicy:
        """How patient to be with it."""
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
    def client_host(self) -> str:
        """The host at which it is reached from here."""
        host = str(self.settings.get("host", "127.0.0.1"))
        # A server that listens on every address is called on this host's own.
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104


class ServersFile(_Model):
    """The whole file.

    Attributes:
        servers: the servers by name.
        mesh: what stands before them; ``None`` when they are reached directly.
    """

    servers: Annotated[dict[str, ServerConfig], Field(min_length=1)]
    mesh: MeshConfig | None = None

    @field_validator("servers")
    @classmethod
    def _names_can_be_used(cls, servers: dict[str, ServerConfig]) -> dict[str, ServerConfig]:
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
                raise ValueError(f"servers.{name}.labels mean nothing without 'mesh'; add that")
            if self.mesh is not None and name in _MESH_NAMES:
                raise ValueError(f"servers.{name}: the mesh has a process of that name; rename it")
        return self

    def ports(self) -> Iterator[tuple[str, str, int]]:
        """Every port that is asked for: its place in the file, its host, and the port, or 0."""
        for name, server in self.servers.items():
            host = str(server.settings.get("host", "127.0.0.1"))
            yield f"servers.{name}.grpc_port", host, server.grpc_port
            yield f"servers.{name}.metrics_port", host, server.metrics_port
        if self.mesh is not None:
            for place, port in self.mesh.ports():
                yield place, "127.0.0.1", port


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice, which YAML forbids and PyYAML lets pass."""

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
    """The file to use: the one given, the directory's ``tidegate.yaml``, or the packaged one."""
    if file is not None:
        return file
    own = directory / DEFAULT_FILE
    if own.exists():
        return own
    return Path(str(importlib.resources.files("tidegate.mesh.supervisor") / "default.yaml"))


def load_config(path: Path) -> ServersFile:
    """Reads and checks a file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or says something wrong.
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


def _model_at(place: tuple[int | str, ...]) -> type[BaseModel]:
    """The model whose keys stand at a place."""
    match place:
        case ("servers", _, _, *_):
            return ServerConfig
        case ("mesh", "controller", _):
            return ControllerConfig
        case ("mesh", "envoy", _):
            return EnvoyConfig
        case ("mesh", _):
            return MeshConfig
        case _:
            return ServersFile


def flag(name: str, value: object) -> str:
    """A setting as the chassis reads it: switches by name, lists with commas."""
    flag = name.replace("_", "-")
    match value:
        case True:
            return f"--{flag}"
        case False:
            return f"--no-{flag}"
        case list():
            return f"--{flag}={','.join(map(str, value))}"
        case _:
            return f"--{flag}={value}"
