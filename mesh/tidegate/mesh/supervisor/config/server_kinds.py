"""The registry of server kinds: what ``kind`` in ``tidegate.yaml`` may be.

To add a kind, add a value to `KINDS`. The supervisor starts servers as programs and imports none of
their code, so a value names a command line, the ports, and the readiness probe:

    ServerKind(
        name="web",
        command=(sys.executable, "-m", "web_server"),
        ports=(Port.HTTP, Port.METRICS),
        probe=HttpReadiness("/ready"),
    )

The program takes a flag for each port (``--http-port``, where 0 means a free one) and
``--port-file``. Once it listens, it writes ``{"http": 8000, "metrics": 9000}`` to that file.

The controller and Envoy are no kinds: nobody lists them under ``servers``, and their flags come
from the ``mesh`` section (see `programs`). They share everything behind the command line.
"""

import difflib
import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["KINDS", "GrpcHealth", "HttpReadiness", "Port", "ServerKind", "find_kind"]


class Port(enum.StrEnum):
    """A port of a server, by its name in the port file."""

    GRPC = "grpc"
    HTTP = "http"
    METRICS = "metrics"

    @property
    def setting(self) -> str:
        """The port's key in ``tidegate.yaml``, which is also the server's flag."""
        return f"{self}_port"


@dataclass(frozen=True, slots=True)
class GrpcHealth:
    """A readiness probe by ``grpc.health.v1`` on the gRPC port."""


@dataclass(frozen=True, slots=True)
class HttpReadiness:
    """A readiness probe by GET on the HTTP port; as in Kubernetes, 200 to 399 means ready.

    Attributes:
        path: The path to get.
    """

    path: str = "/readyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """One kind of server.

    Attributes:
        name: The value of ``kind`` in ``tidegate.yaml``.
        command: The program and its first arguments; ``None`` if the file gives them as `command`.
        ports: The ports of the server. The mesh sends requests to the first.
        probe: How to ask the server whether it is ready.
        labels: The labels that a server has in the mesh unless the file gives it others.

    Raises:
        ValueError: The probe needs a port that the kind does not have.
    """

    name: str
    command: tuple[str, ...] | None
    ports: tuple[Port, ...] = (Port.GRPC, Port.METRICS)
    probe: GrpcHealth | HttpReadiness = GrpcHealth()
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = Port.HTTP if isinstance(self.probe, HttpReadiness) else Port.GRPC
        if needed not in self.ports:
            raise ValueError(
                f"kind '{self.name}' has no port '{needed}', which its probe"
                f" {type(self.probe).__name__} needs; add it to ports"
            )


KINDS: Final[dict[str, ServerKind]] = {
    kind.name: kind
    for kind in (
        ServerKind(name="vision", command=(sys.executable, "-m", "tidegate.serving.vision")),
        ServerKind(name="llm", command=(sys.executable, "-m", "tidegate.serving.llm")),
        ServerKind(
            name="gateway",
            command=(sys.executable, "-m", "tidegate.gateway"),
            ports=(Port.HTTP, Port.METRICS),
            probe=HttpReadiness(),
        ),
        ServerKind(name="program", command=None),
    )
}
"""The registered kinds by name."""


def find_kind(name: object) -> ServerKind:
    """Finds a registered kind.

    Args:
        name: The value of ``kind`` in the file.

    Raises:
        ValueError: No kind has this name.
    """
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    close = difflib.get_close_matches(str(name), KINDS, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ValueError(f"unknown kind; {hint}registered kinds: {', '.join(KINDS)}")
