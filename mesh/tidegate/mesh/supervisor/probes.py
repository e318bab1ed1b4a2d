"""Asking a process where it listens and whether it serves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tidegate.client import AsyncClient, ClientOptions, HealthStatus, Retry, TidegateRpcError
from tidegate.mesh.envoy import Admin, AdminError

__all__ = ["EnvoyProbe", "GrpcProbe", "Listening", "Probe", "Sighting"]

_SOON_S, _LATER_S, _TIMEOUT_S = 0.25, 2.0, 5.0
# A probe is its own retry.
_CLIENT_OPTIONS = ClientOptions(timeout_s=_TIMEOUT_S, retry=Retry(attempts=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a process listens; every address is ``HOST:PORT``.

    Attributes:
        grpc: where it answers gRPC.
        metrics: where it has its metrics over HTTP.
        listeners: where an Envoy takes requests, by port.
    """

    grpc: str | None = None
    metrics: str | None = None
    listeners: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process as it was found.

    Attributes:
        listening: where it listens.
        serving: whether it serves.
    """

    listening: Listening
    serving: bool


class Probe(Protocol):
    """A way to ask after a process."""

    def sightings(self) -> AsyncGenerator[Sighting, None]:
        """Asks for ever: seldom while all is well, often while it is not."""
        ...


class GrpcProbe:
    """Asks a server for its gRPC health.

    Args:
        port_file: where it writes its ports.
        host: where it is reached.
    """

    def __init__(self, port_file: Path, host: str) -> None:
        self._port_file = port_file
        self._host = host

    async def sightings(self) -> AsyncGenerator[Sighting, None]:
        """Reads the ports once they are written, then asks after the health for ever."""
        while (listening := self._read()) is None or listening.grpc is None:  # noqa: ASYNC110  # files wake nobody
            await asyncio.sleep(_SOON_S)
        yield Sighting(listening, serving=False)
        async with AsyncClient(listening.grpc, _CLIENT_OPTIONS) as client:
            while True:
                try:
                    serving = await client.health() is HealthStatus.SERVING
                except TidegateRpcError:
                    serving = False
                yield Sighting(listening, serving)
                await asyncio.sleep(_LATER_S if serving else _SOON_S)

    def _read(self) -> Listening | None:
        try:
            ports = json.loads(self._port_file.read_text(encoding="utf-8"))
            grpc, metrics = int(ports["grpc"]), int(ports["metrics"])
        except (OSError, ValueError, KeyError, TypeError):
            # Not there yet, or not whole.
            return None
        return Listening(grpc=f"{self._host}:{grpc}", metrics=f"{self._host}:{metrics}")


class EnvoyProbe:
    """Asks an Envoy whether it has its configuration and listens.

    Args:
        admin_file: where it writes the address of its admin interface.
    """

    def __init__(self, admin_file: Path) -> None:
        self._admin_file = admin_file

    async def sightings(self) -> AsyncGenerator[Sighting, None]:
        """Reads the admin address once it is written, then asks after the listeners for ever."""
        while not (address := _text(self._admin_file)):  # noqa: ASYNC110
            await asyncio.sleep(_SOON_S)
        admin = Admin(address)
        while True:
            try:
                live, listeners = await admin.is_live(), await admin.listeners()
            except AdminError:
                live, listeners = False, {}
            by_port = {int(each.rpartition(":")[2]): each for each in listeners.values()}
            serving = live and bool(by_port)
            yield Sighting(Listening(metrics=address, listeners=by_port), serving)
            await asyncio.sleep(_LATER_S if serving else _SOON_S)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
