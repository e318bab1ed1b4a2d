"""What an Envoy says of itself on its admin interface."""

import asyncio
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["Admin", "AdminError", "Host"]

_TIMEOUT_S = 5.0


class AdminError(EnvoyError):
    """The admin interface does not answer, or answers something else."""


@dataclass(frozen=True, slots=True)
class Host:
    """An endpoint as an Envoy has it.

    Attributes:
        address: ``HOST:PORT``.
        healthy: whether it gets new requests, as far as the controller has said.
    """

    address: str
    healthy: bool


class Admin:
    """The admin interface of one Envoy.

    Args:
        address: where it is, ``HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    async def is_live(self) -> bool:
        """Whether Envoy has its first configuration and takes requests.

        Raises:
            AdminError: it does not answer.
        """
        status, _ = await asyncio.to_thread(self._get, "/ready")
        return status == http.client.OK

    async def listeners(self) -> Mapping[str, str]:
        """Where it listens: ``HOST:PORT`` by the name of the listener.

        Raises:
            AdminError: it does not answer.
        """
        found = await self._json("/listeners?format=json")
        return {
            each["name"]: _address(each["local_address"])
            for each in found.get("listener_statuses", ())
        }

    async def hosts(self) -> Mapping[str, frozenset[Host]]:
        """The endpoints that it knows, by the name of the cluster.

        Raises:
            AdminError: it does not answer.
        """
        found = await self._json("/clusters?format=json")
        return {
            cluster["name"]: frozenset(
                Host(_address(host["address"]), _is_healthy(host["health_status"]))
                for host in cluster.get("host_statuses", ())
            )
            for cluster in found.get("cluster_statuses", ())
        }

    async def _json(self, path: str) -> Any:
        status, body = await asyncio.to_thread(self._get, path)
        try:
            return json.loads(body)
        except ValueError as error:
            raise AdminError(f"Envoy at {self.address} answers {path} with {status}") from error

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=_TIMEOUT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"Envoy at {self.address} does not answer {path}: {error}") from error
        finally:
            connection.close()


def _address(message: Mapping[str, Any]) -> str:
    socket = message["socket_address"]
    host = socket["address"]
    return f"[{host}]:{socket['port_value']}" if ":" in host else f"{host}:{socket['port_value']}"


def _is_healthy(status: Mapping[str, Any]) -> bool:
    return status.get("eds_health_status") == "HEALTHY" and not status.get(
        "pending_dynamic_removal", False
    )
