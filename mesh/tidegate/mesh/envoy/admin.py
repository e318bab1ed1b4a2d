"""A client of Envoy's admin interface: readiness, listeners, hosts, and the workers' progress."""

import asyncio
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.mesh.envoy.errors import EnvoyError

__all__ = ["Admin", "AdminError", "HostStatus"]

_TIMEOUT_S = 5.0
_DROPPED_FLUSHES = "server.dropped_stat_flushes"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.05


class AdminError(EnvoyError):
    """The admin interface does not answer, or its answer cannot be read."""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """An endpoint in an Envoy.

    Attributes:
        address: ``HOST:PORT``.
        healthy: Whether it gets new requests, by the health that the controller has sent.
    """

    address: str
    healthy: bool


class Admin:
    """The admin interface of one Envoy.

    Args:
        address: ``HOST:PORT``.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    async def is_live(self) -> bool:
        """Whether Envoy has its first configuration and takes requests.

        Raises:
            AdminError: Envoy does not answer.
        """
        status, _ = await asyncio.to_thread(self._get, "/ready")
        return status == http.client.OK

    async def listeners(self) -> Mapping[str, str]:
        """Reads the addresses of the listeners: ``HOST:PORT`` by name.

        Raises:
            AdminError: Envoy does not answer.
        """
        found = await self._json("/listeners?format=json")
        return {
            each["name"]: _address(each["local_address"])
            for each in found.get("listener_statuses", ())
        }

    async def hosts(self) -> Mapping[str, frozenset[HostStatus]]:
        """Reads the endpoints of each cluster, by the name of the cluster.

        Raises:
            AdminError: Envoy does not answer.
        """
        found = await self._json("/clusters?format=json")
        return {
            cluster["name"]: frozenset(
                HostStatus(_address(host["address"]), _is_healthy(host["health_status"]))
                for host in cluster.get("host_statuses", ())
            )
            for cluster in found.get("cluster_statuses", ())
        }

    async def node_id(self) -> str:
        """Reads the node id that Envoy sends to its controller.

        Raises:
            AdminError: Envoy does not answer.
        """
        found = await self._json("/server_info")
        return str(found.get("node", {}).get("id", ""))

    async def workers_caught_up(self) -> None:
        """Waits until every worker has applied all configuration that Envoy had before the call.

        Envoy's main thread posts configuration to its workers, sends the ACK, and goes on; a worker
        that waits for a core still routes by its old configuration. Each worker handles its posts
        in order, and a flush of statistics ends only when every worker has taken part in it
        (``ThreadLocalStoreImpl::mergeHistograms``). With ``stats_flush_on_admin``, a read of the
        statistics starts a flush, or counts itself in ``server.dropped_stat_flushes`` while another
        flush runs. So the first read that is not counted starts a flush, and the next read that is
        not counted shows that this flush has ended.

        The wait proves nothing about an Envoy whose bootstrap lacks ``stats_flush_on_admin``: there
        no read is ever counted.

        Raises:
            AdminError: Envoy does not answer, or does not keep that counter.
        """
        flush_started = False
        dropped = await self._dropped_flushes()
        pause_s = _FIRST_PAUSE_S
        while True:
            before, dropped = dropped, await self._dropped_flushes()
            if dropped == before:
                if flush_started:
                    return
                flush_started = True
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _dropped_flushes(self) -> int:
        """Reads the statistics: the number of reads that came during a flush."""
        found = await self._json(f"/stats?format=json&filter=^{_DROPPED_FLUSHES}$")
        for each in found.get("stats", ()):
            if each.get("name") == _DROPPED_FLUSHES:
                return int(each["value"])
        raise AdminError(f"Envoy at {self.address} does not keep {_DROPPED_FLUSHES}")

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
