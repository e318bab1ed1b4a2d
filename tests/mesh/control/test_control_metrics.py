"""The metrics of a new controller, as a real Prometheus reads them."""

import asyncio
import json
import sys

import pytest
from prometheus_server import prometheus


@pytest.fixture
async def metrics_port(tmp_path):
    """Runs a controller without objects; yields the port of its metrics."""
    ports, objects = tmp_path / "ports.json", tmp_path / "objects"
    objects.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tidegate.mesh.control"),
        *("--grpc-port=0", "--metrics-port=0", "--traces-port=0", f"--port-file={ports}"),
        *(f"--objects={objects}", f"--state-file={tmp_path / 'mesh.sqlite'}"),
        *(f"--traces-file={tmp_path / 'traces.sqlite'}", "--drain-hold-s=0"),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            if json.loads(line)["event"] == "loaded":
                break
        else:
            pytest.fail("the controller did not start")
    yield json.loads(ports.read_text())["metrics"]
    process.terminate()
    await process.communicate()


async def test_refusals_and_failures_are_counted_from_zero(metrics_port, tmp_path):
    async with prometheus(tmp_path, {"controller": metrics_port}) as scraper:
        await scraper.until("up == 1")

        async def at_zero(metric, label):
            found = await scraper.query(f"{metric} == 0")
            return {labels[label] for labels, _ in found}

        assert await at_zero("tidegate_traces_spans_refused_total", "reason") == {
            *("bad id", "bad time", "too large", "too many attributes"),
            *("batch too large", "trace full"),
        }
        assert await at_zero("tidegate_mesh_access_log_entries_passed_over_total", "kind") == {
            *("malformed", "intermediate", "tcp", "duplicate"),
        }
        assert await at_zero("tidegate_mesh_transitions_total", "state") == {"done", "rolled back"}
        assert await at_zero("tidegate_xds_refused_streams_total", "reason") == {
            *("silent", "too_many_streams", "refused_request"),
        }
        assert await at_zero("tidegate_xds_nacks_total", "proxy_kind") == {"envoy", "grpc"}
        assert await at_zero("tidegate_mesh_request_records_lost_total", "subscriber")
        assert await at_zero("grpc_server_handled_total", "grpc_service") >= {
            "envoy.service.accesslog.v3.AccessLogService",
            "envoy.service.discovery.v3.AggregatedDiscoveryService",
            "envoy.service.load_stats.v3.LoadReportingService",
            "opentelemetry.proto.collector.trace.v1.TraceService",
            "tidegate.mesh.v1.MeshService",
        }
