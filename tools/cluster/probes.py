"""Checks of containers: HTTP, TCP, gRPC, and a command.

A Pod with a sidecar takes connections from outside only as its policy allows, so the stand-in
checks its containers from inside its network namespace, as Istio's agent does for the real kubelet.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from cluster.grpc_health import health_status
from cluster.settings import ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cluster.networks import Network
    from cluster.pod_spec import Probe

__all__ = ["Prober"]


class Prober:
    """Checks the containers of one Pod.

    Args:
        address: The address to call.
        network: The namespace to call from; `None` for the control plane's.
        execute: Runs a command in the Pod; raises ClusterError if it fails.
    """

    def __init__(
        self,
        address: str,
        network: Network | None,
        execute: Callable[[list[str]], Awaitable[str]],
    ) -> None:
        self._address = address
        self._network = network
        self._execute = execute

    async def failure(self, probe: Probe) -> str:
        """Runs one check, and says why it failed; empty if it succeeded."""
        checks = {
            "httpGet": self._http,
            "tcpSocket": self._tcp,
            "grpc": self._grpc,
            "exec": self._command,
        }
        try:
            async with asyncio.timeout(probe.timeout_s):
                return await checks[probe.check](probe)
        except TimeoutError:
            return f"no answer within {probe.timeout_s:g} s"
        except OSError as error:
            return str(error)

    async def _http(self, probe: Probe) -> str:
        reader, writer = await asyncio.open_connection(sock=await self._connected(probe.port))
        path = probe.detail.get("path", "/")
        try:
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {self._address}:{probe.port}\r\n"
                "User-Agent: kube-probe/1.36\r\nConnection: close\r\n\r\n".encode()
            )
            status = (await reader.readline()).split()
        finally:
            writer.close()
        if len(status) > 1 and 200 <= int(status[1]) < 400:
            return ""
        return f"HTTP status {status[1].decode() if len(status) > 1 else 'missing'}"

    async def _tcp(self, probe: Probe) -> str:
        (await self._connected(probe.port)).close()
        return ""

    async def _grpc(self, probe: Probe) -> str:
        reader, writer = await asyncio.open_connection(sock=await self._connected(probe.port))
        authority = f"{self._address}:{probe.port}"
        try:
            status = await health_status(reader, writer, authority, probe.detail.get("service", ""))
        finally:
            writer.close()
        return "" if status == "SERVING" else status

    async def _command(self, probe: Probe) -> str:
        try:
            await self._execute(list(probe.detail["command"]))
        except ClusterError as error:
            return str(error)
        return ""

    async def _connected(self, port: int) -> socket.socket:
        address = self._address
        if self._network is None:
            made = socket.socket()
        else:
            made, address = await self._network.call(socket.socket), "127.0.0.1"
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, (address, port))
        except BaseException:
            made.close()
            raise
        return made
