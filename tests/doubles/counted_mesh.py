"""Istio's metrics of some versions, scraped by a real Prometheus."""

import dataclasses
import time
from contextlib import asynccontextmanager

import grpc
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_server import prometheus
from request_records import RECORD

from tidegate.mesh.telemetry import IstioMetrics, IstioWorkload


class CountedMesh:
    """Istio's metrics of two versions, scraped by a real Prometheus."""

    def __init__(self, server, url):
        self.prometheus = server
        self.url = url
        self.registry = CollectorRegistry()
        self.metrics = IstioMetrics(self._workload, lambda _: IstioWorkload(), self.registry)

    def _workload(self, address, at_s):
        return IstioWorkload(name=address, version=address)

    def serve(self, version, count=1, code=grpc.StatusCode.OK, duration_s=0.02):
        record = dataclasses.replace(
            RECORD, upstream_address=version, grpc_status=code, duration_s=duration_s
        )
        for _ in range(count):
            self.metrics.observe(record)

    async def scraped(self):
        """Waits for a scrape that begins from now on, and for one more."""
        now_s = time.time()
        await self.prometheus.until(f"min(timestamp(up)) > {now_s + 0.6}")
        return time.time()


@asynccontextmanager
async def counted_mesh(folder):
    registry = CollectorRegistry()
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        async with prometheus(folder, {"mesh": server.server_port}) as client:
            mesh = CountedMesh(client, client.url)
            registry.register(mesh.registry)
            yield mesh
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
