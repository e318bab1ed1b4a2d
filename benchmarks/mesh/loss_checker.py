"""What Envoy says of the requests, beside what their clients saw.

Three accounts: the records that Envoy's access log brings to the controller, watched as they come;
the controller's metric ``istio_requests_total``, which it makes of the same log and which a killed
controller takes with it, so that it is read before each kill; and Envoy's own statistics. No
controller is told of a request that ended while none was there; its client and Envoy were.
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
"""No cluster, no healthy endpoint, no route: what a change in the wrong order brings."""

_NO_FLAG: Final = "-"
_AGAIN_S: Final = 0.1
_TIMEOUT_S: Final = 10.0
# The end of the name of a statistic of Envoy, and what it counts.
_STATISTICS: Final = {
    "no_route": "requests without a route (NR)",
    "no_cluster": "requests to a cluster that is not there (NC)",
    "upstream_cx_none_healthy": "requests without a healthy endpoint (UH)",
    "upstream_rq_retry": "requests that it sent a second time",
    "logs_written": "requests that it wrote to its access log",
}
_BAD_STATISTICS: Final = frozenset({"no_route", "no_cluster", "upstream_cx_none_healthy"})


class LossChecker:
    """Listens to the controller and asks Envoy.

    Args:
        local_mesh: the mesh.

    Attributes:
        records: failed requests as the access log has them, in words.
        memory_mib: resident memory of each controller, whenever it was looked at.
    """

    def __init__(self, local_mesh: LocalMesh) -> None:
        self.records: list[str] = []
        self.memory_mib: list[float] = []
        self._local_mesh = local_mesh
        self._flags: dict[int, Counter[str]] = {}
        self._statistics: dict[str, int] = {}

    @asynccontextmanager
    async def watching_records(self, controller: grpc.aio.Channel) -> AsyncIterator[None]:
        """Takes records while the context is open, of one controller after the other."""
        task = asyncio.create_task(self._watch(mesh_pb2_grpc.MeshServiceStub(controller)))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def collect(self) -> None:
        """Reads the metrics of the controller that runs now, and Envoy's statistics."""
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
        """Requests that controllers counted, by their response flags; ``-`` is none."""
        return sum(self._flags.values(), Counter())

    def statistics(self) -> dict[str, int]:
        """Envoy's own counts, by what they count, over all clusters that it has had."""
        found: Counter[str] = Counter()
        for name, value in self._statistics.items():
            found[_STATISTICS[name.rpartition(".")[2]]] += value
        return {words: found[words] for words in _STATISTICS.values()}

    def lost_requests(self) -> list[str]:
        """Every account of a request that was sent nowhere."""
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
                # A cluster that comes back counts from zero.
                before = self._statistics.get(each["name"], 0)
                self._statistics[each["name"]] = max(before, each["value"])

    async def _watch(self, mesh: mesh_pb2_grpc.MeshServiceAsyncStub) -> None:
        request = mesh_pb2.WatchRequestsRequest(failures_only=True)
        while True:
            try:
                async for message in mesh.WatchRequests(request):
                    self.records.append(_in_words(message.record))
            except grpc.aio.AioRpcError:
                # The controller is being killed; the next one is there soon.
                await asyncio.sleep(_AGAIN_S)


def _in_words(record: mesh_pb2.RequestRecord) -> str:
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
