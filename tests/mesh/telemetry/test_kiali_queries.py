"""Kiali's queries for its graph, sent to a real Prometheus with our metrics.

They are the queries with which Kiali 1.73 draws the graph and the health of a namespace (its
packages graph/telemetry/istio and prometheus).
"""

import asyncio
import dataclasses

import grpc
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_server import prometheus
from request_records import GATEWAY, HOST, RECORD, at

from tidegate.mesh.telemetry.istio_metrics import IstioMetrics, IstioWorkload

NAMESPACE = "models"
GROUPED = (
    "source_cluster,source_workload_namespace,source_workload,source_canonical_service,"
    "source_canonical_revision,destination_cluster,destination_service_namespace,"
    "destination_service,destination_service_name,destination_workload_namespace,"
    "destination_workload,destination_canonical_service,destination_canonical_revision,"
    "request_protocol,response_code,grpc_response_status,response_flags"
)
OUTGOING = (
    f'sum(rate(istio_requests_total{{reporter="source",source_workload_namespace="{NAMESPACE}"}}'
    f" [60s])) by ({GROUPED}) > 0"
)
RESPONSE_TIMES = (
    "histogram_quantile(0.95, sum(rate(istio_request_duration_milliseconds_bucket"
    f'{{reporter="source",source_workload_namespace="{NAMESPACE}"}}[60s]))'
    " by (le,source_workload,destination_service_name,destination_canonical_revision))"
)
INBOUND_HEALTH = (
    f'rate(istio_requests_total{{reporter="source",destination_service_namespace="{NAMESPACE}"}}'
    "[60s]) > 0"
)
MESSAGES = (
    'sum(rate(istio_response_messages_total{reporter="source",'
    f'source_workload_namespace="{NAMESPACE}"}}[60s])) by (destination_canonical_revision) > 0'
)


def at_version(version):
    labels = {"app": "vision", "version": version}
    return IstioWorkload.from_labels(f"vision-{version}", NAMESPACE, labels)


@pytest.fixture
async def scraped(tmp_path):
    """A Prometheus and the metrics that it scrapes."""
    registry = CollectorRegistry()
    workloads = {f"127.0.0.1:850{each}": at_version(f"v{each}") for each in (1, 2)}
    metrics = IstioMetrics(at(workloads), lambda _: GATEWAY, registry)

    async def answer(request):
        return web.Response(body=generate_latest(registry))

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        async with prometheus(tmp_path, {"mesh": port}) as scraper:
            yield metrics, scraper
    finally:
        await runner.cleanup()


async def test_kiali_finds_edges_from_the_gateway_to_both_versions(scraped):
    metrics, scraper = scraped
    failed = {"grpc_status": grpc.StatusCode.UNAVAILABLE, "upstream_address": "127.0.0.1:8502"}

    async def load():
        while True:
            for version, port in (("v1", 8501), ("v2", 8502)):
                address = f"127.0.0.1:{port}"
                metrics.observe(
                    dataclasses.replace(RECORD, subset=version, upstream_address=address)
                )
            metrics.observe(dataclasses.replace(RECORD, **failed))
            await asyncio.sleep(0.05)

    loading = asyncio.create_task(load())
    try:
        await scraper.until(f"count({OUTGOING}) == 3")
        edges = {
            (
                *(edge["source_workload"], edge["source_workload_namespace"]),
                *(edge["source_canonical_service"], edge["destination_service"]),
                *(edge["destination_workload"], edge["destination_canonical_revision"]),
                edge["grpc_response_status"],
            )
            for edge, _ in await scraper.query(OUTGOING)
        }
        source = ("gateway", NAMESPACE, "gateway", HOST)
        assert edges == {
            (*source, "vision-v1", "v1", "0"),
            (*source, "vision-v2", "v2", "0"),
            (*source, "vision-v2", "v2", "14"),
        }
        times = await scraper.until(RESPONSE_TIMES)
        assert {each["destination_canonical_revision"] for each, _ in times} == {"v1", "v2"}
        assert all(25 < float(value) <= 50 for _, value in times)
        assert await scraper.until(INBOUND_HEALTH)
        assert len(await scraper.until(MESSAGES)) == 2
    finally:
        loading.cancel()
