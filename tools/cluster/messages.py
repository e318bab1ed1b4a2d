"""What a test cluster's process and the process that started it say to each other, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import msgspec

from cluster.settings import ClusterSettings, Programs

__all__ = ["Command", "Launch", "Reply", "Started"]


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster's process gets from the process that starts it.

    Attributes:
        folder: The folder for logs, keys and data.
        host_network: A descriptor of the network namespace of the process that starts the cluster.
        token: The administrator's token, also for commands to the cluster's process.
        path: The `PATH` of the Pods' processes.
        programs: The programs that it runs.
        settings: The settings of the cluster.
        mesh_config: Istio's mesh configuration.
    """

    folder: Path
    host_network: int
    token: str
    path: str
    programs: Programs
    settings: ClusterSettings
    mesh_config: dict[str, Any]

    def encoded(self) -> bytes:
        """One line of JSON."""
        return msgspec.json.encode(self, enc_hook=str) + b"\n"

    @classmethod
    def decoded(cls, line: bytes) -> Self:
        """Reads the line again.

        Raises:
            msgspec.DecodeError: It is not such a line.
        """
        return msgspec.json.decode(line, type=cls, dec_hook=lambda kind, value: kind(value))


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """What the process says once the cluster is ready.

    Attributes:
        control: The loopback port for commands.
        addresses: The forwarded addresses of the control plane, by the names of `PORTS`.
        error: Why it could not start; empty if it could.
    """

    control: int = 0
    addresses: dict[str, str] = msgspec.field(default_factory=dict)
    error: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One command: a method of `ClusterProcess` whose name starts with `do_`, and its arguments."""

    token: str
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a command: a value, or the words of an error."""

    value: Any = None
    error: str = ""
