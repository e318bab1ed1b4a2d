"""Probes: where a process listens, and whether it is ready.

A process writes its addresses to a file once it listens. A probe reads that file and then asks the
process again and again: gRPC health, an HTTP path, or Envoy's admin interface.
"""

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tidegate.client import AsyncClient, ClientOptions, HealthStatus, Retry, TidegateRpcError
from tidegate.mesh.envoy import Admin, AdminError
from tidegate.mesh.supervisor.config.server_kinds import HttpReadiness, Port, ServerKind

__all__ = [
    "EnvoyProbe",
    "GrpcProbe",
    "HttpProbe",
    "ListenAddresses",
    "Probe",
    "ProbeResult",
    "probe_of",
]

# The probe asks often until the process is ready, and seldom after that.
_UNREADY_INTERVAL_S, _READY_INTERVAL_S = 0.25, 2.0
_TIMEOUT_S = 5.0
# The probe asks again by itself.
_CLIENT_OPTIONS = ClientOptions(timeout_s=_TIMEOUT_S, retry=Retry(attempts=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddresses:
    """Where a process listens; every address is ``HOST:PORT``.

    Attributes:
        grpc: The gRPC address.
        http: The HTTP address.
        metrics: The address of its metrics over HTTP.
        listeners: The addresses of an Envoy's listeners, by port.
    """

    grpc: str | None = None
    http: str | None = None
    metrics: str | None = None
    listeners: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe.

    Attributes:
        addresses: Where the process listens.
        ready: Whether it is ready for requests.
    """

    addresses: ListenAddresses
    ready: bool


class Probe(Protocol):
    """A way to find out whether a process is ready."""

    def results(self) -> AsyncGenerator[ProbeResult, None]:
        """Probes without end: every 0.25 s until the process is ready, then every 2 s."""
        ...


def probe_of(kind: ServerKind, port_file: Path, host: str) -> Probe:
    """Makes the probe of a kind of server.

    Args:
        kind: The kind.
        port_file: The file to which the server writes its ports.
        host: The host at which the supervisor reaches the server.
    """
    match kind.probe:
        case HttpReadiness(path):
            return HttpProbe(port_file, host, path, kind.ports)
        case _:
            return GrpcProbe(port_file, host, kind.ports)


class GrpcProbe:
    """Asks a server for its gRPC health.

    Args:
        port_file: The file to which the server writes its ports.
        host: The host at which the supervisor reaches the server.
        ports: The ports in that file.
    """

    def __init__(
        self, port_file: Path, host: str, ports: Sequence[Port] = (Port.GRPC, Port.METRICS)
    ) -> None:
        self._port_file = port_file
        self._host = host
        self._ports = ports

    async def results(self) -> AsyncGenerator[ProbeResult, None]:
        """Waits for the ports, then asks for the health without end."""
        addresses = await _addresses(self._port_file, self._host, self._ports)
        yield ProbeResult(addresses, ready=False)
        assert addresses.grpc is not None  # noqa: S101 - its kind has the port
        async with AsyncClient(addresses.grpc, _CLIENT_OPTIONS) as client:
            while True:
                try:
                    ready = await client.health() is HealthStatus.SERVING
                except TidegateRpcError:
                    ready = False
                yield ProbeResult(addresses, ready)
                await asyncio.sleep(_READY_INTERVAL_S if ready else _UNREADY_INTERVAL_S)


class HttpProbe:
    """Gets a path of a server over HTTP; as in Kubernetes, 200 to 399 means ready.

    Args:
        port_file: The file to which the server writes its ports.
        host: The host at which the supervisor reaches the server.
        path: The path to get.
        ports: The ports in that file.
    """

    def __init__(self, port_file: Path, host: str, path: str, ports: Sequence[Port]) -> None:
        self._port_file = port_file
        self._host = host
        self._path = path
        self._ports = ports

    async def results(self) -> AsyncGenerator[ProbeResult, None]:
        """Waits for the ports, then gets the path without end."""
        addresses = await _addresses(self._port_file, self._host, self._ports)
        yield ProbeResult(addresses, ready=False)
        assert addresses.http is not None  # noqa: S101 - its kind has the port
        while True:
            ready = await _answers(addresses.http, self._path)
            yield ProbeResult(addresses, ready)
            await asyncio.sleep(_READY_INTERVAL_S if ready else _UNREADY_INTERVAL_S)


class EnvoyProbe:
    """Asks an Envoy whether it has its configuration and listens.

    Args:
        admin_file: The file to which Envoy writes the address of its admin interface.
    """

    def __init__(self, admin_file: Path) -> None:
        self._admin_file = admin_file

    async def results(self) -> AsyncGenerator[ProbeResult, None]:
        """Waits for the admin address, then asks for the listeners without end."""
        while not (address := _text(self._admin_file)):  # noqa: ASYNC110  # a file has no event
            await asyncio.sleep(_UNREADY_INTERVAL_S)
        admin = Admin(address)
        while True:
            try:
                live, listeners = await admin.is_live(), await admin.listeners()
            except AdminError:
                live, listeners = False, {}
            by_port = {int(each.rpartition(":")[2]): each for each in listeners.values()}
            ready = live and bool(by_port)
            yield ProbeResult(ListenAddresses(metrics=address, listeners=by_port), ready)
            await asyncio.sleep(_READY_INTERVAL_S if ready else _UNREADY_INTERVAL_S)


async def _addresses(port_file: Path, host: str, ports: Sequence[Port]) -> ListenAddresses:
    """Waits until a server has written its ports."""
    while (found := _read_ports(port_file, ports)) is None:  # noqa: ASYNC110  # a file has no event
        await asyncio.sleep(_UNREADY_INTERVAL_S)
    addresses = {port: f"{host}:{number}" for port, number in found.items()}
    return ListenAddresses(
        grpc=addresses.get(Port.GRPC),
        http=addresses.get(Port.HTTP),
        metrics=addresses.get(Port.METRICS),
    )


def _read_ports(port_file: Path, ports: Sequence[Port]) -> dict[Port, int] | None:
    try:
        written = json.loads(port_file.read_text(encoding="utf-8"))
        return {port: int(written[port]) for port in ports}
    except (OSError, ValueError, KeyError, TypeError):
        # The file is not there yet, or not complete.
        return None


async def _answers(address: str, path: str) -> bool:
    """Whether GET of a path has a status from 200 to 399, and in time."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_S)
    try:
        # The timeout of the connection holds for each read, not for the whole answer.
        async with asyncio.timeout(_TIMEOUT_S):
            return await asyncio.to_thread(_get, connection, path)
    except TimeoutError:
        return False
    finally:
        # Ends the thread if it still reads.
        if (sock := connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _get(connection: http.client.HTTPConnection, path: str) -> bool:
    try:
        connection.request("GET", path)
        return http.client.OK <= connection.getresponse().status < http.client.BAD_REQUEST
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
