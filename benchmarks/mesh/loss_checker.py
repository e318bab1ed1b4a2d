"""Finds lost requests in the records of Envoy and the controller, beside what the clients saw.

There are three sources:

- the controller's request records, which come from Envoy's access log and are watched as they come;
- the controller's metric ``istio_requests_total``, made from the same log. A killed controller
  loses its counts, so they are read before each kill;
- Envoy's own statistics.

The controller misses requests that end while it is down. The clients and Envoy count them.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import grpc
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local_mesh import LocalMesh

__all__ = ["ROUTING_FLAGS", "LossChecker"]

ROUTING_FLAGS: Final = frozenset({"NC", "UH", "NR"})
"""No cluster, no healthy endpoint, no route: the effects of changes in a wrong order."""

_NO_FLAG: Final = "-"
_RETRY_AFTER_S: Final = 0.1
_TIMEOUT_S: Final = 10.0
# The last part of the name of an Envoy statistic, and what it counts.
_STATISTICS: Final = {
    "no_route": "requests without a route (NR)",
    "no_cluster": "requests to a missing cluster (NC)",
    "upstream_cx_none_healthy": "requests without a healthy endpoint (UH)",
    "upstream_rq_retry": "retries",
    "logs_written": "requests in its access log",
}
_BAD_STATISTICS: Final = frozenset({"no_route", "no_cluster", "upstream_cx_none_healthy"})


class LossChecker:
    """Collects what the controller and Envoy know of failed requests.

    Args:
        local_mesh: The mesh.

    Attributes:
        records: Failed requests from the access log, one line of text each.
        memory_mib: Resident memory of the controller at each call of `collect`.
    """

    def __init__(self, local_mesh: LocalMesh) -> None:
        self.records: list[str] = []
        self.memory_mib: list[float] = []
        self._local_mesh = local_mesh
        self._flags: dict[int, Counter[str]] = {}
        self._statistics: dict[str, int] = {}

    @asynccontextmanager
    async def watching_records(self, controller: grpc.aio.Channel) -> AsyncIterator[None]:
        """Watches request records while the context is open; goes on after a controller restart."""
        task = asyncio.create_task(self._watch(mesh_pb2_grpc.MeshServiceStub(controller)))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def collect(self) -> None:
        """Reads the metrics of the running controller, and Envoy's statistics."""
        pid = self._local_mesh.pid("controller")
        text = await _get(f"http://{self._local_mesh.controller_metrics}/metrics")
        flags: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "istio_requests_total":
                    flags[sample.labels["response_flags"]] += int(sample.value)
        self._flags[pid] = flags
        self.memory_mib.append(psutil.Process(pid).memory_info().rss / 2**20)
        await self._ask_envoy()

    def flags(self) -> Counter[str]:
        """Returns the requests that all controllers counted, by response flags; ``-`` is none."""
        return sum(self._flags.values(), Counter())

    def statistics(self) -> dict[str, int]:
        """Returns Envoy's own counts, by what they count, over all clusters that it has had."""
        found: Counter[str] = Counter()
        for name, value in self._statistics.items():
            found[_STATISTICS[name.rpartition(".")[2]]] += value
        return {counted: found[counted] for counted in _STATISTICS.values()}

    def lost_requests(self) -> list[str]:
        """Describes every count of requests that found no route, cluster or healthy endpoint."""
        found = [
            f"istio_requests_total: {count} with the flags {flags}"
            for flags, count in self.flags().items()
            if not ROUTING_FLAGS.isdisjoint(flags.split(","))
        ]
        found += [
            f"Envoy's statistic {name} is {value}"
            for name, value in self._statistics.items()
            if value and name.rpartition(".")[2] in _BAD_STATISTICS
        ]
        return found

    async def _ask_envoy(self) -> None:
        address = self._local_mesh.envoy_admin
        names = "|".join(_STATISTICS)
        text = await _get(f"http://{address}/stats?format=json&filter=.*\\.({names})$")
        for each in json.loads(text)["stats"]:
            if "name" in each:
                # A cluster that is removed and added again counts from zero.
                before = self._statistics.get(each["name"], 0)
                self._statistics[each["name"]] = max(before, each["value"])

    async def _watch(self, mesh: mesh_pb2_grpc.MeshServiceAsyncStub) -> None:
        request = mesh_pb2.WatchRequestsRequest(failures_only=True)
        while True:
            try:
                async for message in mesh.WatchRequests(request):
                    self.records += map(_describe, message.records)
            except grpc.aio.AioRpcError:
                # A scenario has killed the controller; the next one starts soon.
                await asyncio.sleep(_RETRY_AFTER_S)


def _describe(record: mesh_pb2.RequestRecord) -> str:
    flags = ",".join(record.response_flags) or _NO_FLAG
    return (
        f"{record.start.ToJsonString()} {record.method} status {record.grpc_status} flags {flags} "
        f"cluster {record.cluster or _NO_FLAG} endpoint {record.endpoint or _NO_FLAG} "
        f"after {record.duration.ToMilliseconds()} ms"
    )


async def _get(url: str) -> str:
    def read() -> str:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            return str(response.read().decode())

    return await asyncio.to_thread(read)
