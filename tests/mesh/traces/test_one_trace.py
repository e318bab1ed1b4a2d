"""One trace from a client through a real Envoy to a real server, in the real trace store."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from google.protobuf import json_format
from otlp_spans import START_NS

from tidegate.cli.traces.span_tree import rows
from tidegate.mesh.envoy.addresses import Address
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.envoy.bootstrap import EnvoySettings
from tidegate.mesh.envoy.bootstrap import bootstrap as envoy_bootstrap
from tidegate.mesh.telemetry import tracing_config
from tidegate.mesh.traces.query import TraceQuery
from tidegate.trace_analysis.spans import read_trace

ROOT = Path(__file__).parents[3]
ECHO = ROOT / "tests/services/chassis/echo_server.py"
MODELS = Path(os.environ.get("TIDEGATE_MODELS", ROOT / "models"))
NETWORK = "efficientnet-lite0"
WAIT_S = 60.0
TYPES = "type.googleapis.com/envoy"
HEALTH_CALL = """
import sys
from tidegate.cli.span_export import exporting
from tidegate.client import Client
with exporting(sys.argv[1]), Client(sys.argv[2]) as client:
    print(client.health())
"""


def cluster(name, address):
    host, port = address.rsplit(":", 1)
    socket_address = {"address": host, "port_value": int(port)}
    endpoint = {"endpoint": {"address": {"socket_address": socket_address}}}
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def bootstrap(server, traces):
    """The bootstrap of an Envoy that routes all calls to one server and exports its spans."""
    manager = {
        "@type": f"{TYPES}.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "ingress",
        "tracing": json_format.MessageToDict(tracing_config(), preserving_proto_field_name=True),
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": ""}, "route": {"cluster": "backend"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "ingress",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    flush = {"tracing.opentelemetry.min_flush_spans": 1}
    return {
        "node": {"id": "test", "cluster": "ingress"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "layered_runtime": {"layers": [{"name": "test", "static_layer": flush}]},
        "static_resources": {
            "listeners": [listener],
            "clusters": [cluster("backend", server), traces],
        },
    }


@pytest.fixture
async def processes():
    """Starts programs, and ends them after the test."""
    started = []

    async def start(*command, **options):
        process = await asyncio.create_subprocess_exec(*command, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.terminate()
    async with asyncio.timeout(WAIT_S):
        for process in started:
            await process.wait()


@pytest.fixture
def envoy(processes, tmp_path):
    """Starts an Envoy in front of a server; returns its port."""

    async def start(server, traces):
        config, admin = tmp_path / "envoy.json", tmp_path / "admin"
        config.write_text(json.dumps(bootstrap(server, traces)))
        with (tmp_path / "envoy.log").open("wb") as log:
            await processes(
                *(find_envoy(), "--config-path", config, "--admin-address-path", admin),
                *("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"),
                stderr=log,
                stdout=log,
            )
        async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as session:
            while True:
                await asyncio.sleep(0.05)
                if not admin.exists() or not admin.read_text():
                    continue
                url = f"http://{admin.read_text()}/listeners?format=json"
                async with session.get(url) as answer:
                    listeners = (await answer.json()).get("listener_statuses")
                if listeners:
                    return listeners[0]["local_address"]["socket_address"]["port_value"]

    return start


async def server_process(processes, traces, folder, *program, service):
    """Starts a chassis server whose spans go to the receiver; returns its address."""
    ports = folder / "ports.json"
    process = await processes(
        *(sys.executable, *program, "--grpc-port=0", "--metrics-port=0", f"--port-file={ports}"),
        *(f"--otlp-endpoint={traces.otlp_url}", f"--service-name={service}"),
        env={**os.environ, "OTEL_BSP_SCHEDULE_DELAY": "100"},
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(WAIT_S):
        while line := await process.stderr.readline():
            if json.loads(line)["event"] == "loaded":
                return f"127.0.0.1:{json.loads(ports.read_text())['grpc']}"
    pytest.fail("the server did not start")


async def whole_trace(traces, count):
    """Waits until the only trace has a number of spans, and reads it as `tidegate trace` does."""
    async with asyncio.timeout(WAIT_S), aiohttp.ClientSession(traces.url) as session:
        while True:
            summaries = await traces.store.summaries(TraceQuery())
            if any(summary.spans >= count for summary in summaries):
                break
            await asyncio.sleep(0.05)
        (summary,) = summaries
        async with session.get(f"/api/traces/{summary.trace_id.hex()}") as answer:
            return read_trace((await answer.json())["data"][0])


def as_tree(trace):
    return [(len(row.last), row.span.service, row.span.operation) for row in rows(trace)]


async def test_call_through_envoy_is_one_trace(collector, processes, envoy, tmp_path):
    traces = await collector(clock_ns=lambda: START_NS)
    server = await server_process(processes, traces, tmp_path, ECHO, service="echo")
    port = await envoy(server, cluster("tidegate-traces", traces.otlp_address))
    command = [sys.executable, "-c", HEALTH_CALL, traces.otlp_url, f"127.0.0.1:{port}"]
    called = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert called.stdout == b"serving\n"
    trace = await whole_trace(traces, 4)
    assert as_tree(trace) == [
        (0, "tidegate-cli", "grpc.health.v1.Health/Check"),
        (1, "ingress", "/grpc.health.v1.Health/Check"),
        (2, "ingress", "router backend egress"),
        (3, "echo", "grpc.health.v1.Health/Check"),
    ]
    assert trace.spans[1].tags["upstream_cluster"] == "backend"
    assert trace.spans[3].tags["rpc.response.status_code"] == "OK"


async def test_without_envoys_spans_the_other_spans_form_the_trace(
    collector, processes, envoy, tmp_path
):
    settings = EnvoySettings(node_id="test", controller=Address("127.0.0.1", 1), traces=None)
    clusters = json_format.MessageToDict(envoy_bootstrap(settings))["staticResources"]["clusters"]
    nowhere = next(each for each in clusters if each["name"] == "tidegate-traces")
    traces = await collector(clock_ns=lambda: START_NS)
    server = await server_process(processes, traces, tmp_path, ECHO, service="echo")
    port = await envoy(server, nowhere)
    command = [sys.executable, "-c", HEALTH_CALL, traces.otlp_url, f"127.0.0.1:{port}"]
    called = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert called.stdout == b"serving\n"
    trace = await whole_trace(traces, 2)
    assert [span.service for span in trace.spans] == ["tidegate-cli", "echo"]


@pytest.mark.e2e
async def test_classify_is_shown_with_every_hop_and_stage(collector, processes, envoy, tmp_path):
    if not (MODELS / NETWORK).is_dir():
        pytest.skip(f"no {NETWORK} in {MODELS}; run `make models`, or set TIDEGATE_MODELS")
    skimage = pytest.importorskip("skimage.data", reason="scikit-image has the photographs")
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the photograph")
    image = tmp_path / "cat.jpg"
    pillow.fromarray(skimage.chelsea()).save(image)
    traces = await collector(clock_ns=lambda: START_NS)
    program = ("-m", "tidegate.serving.vision", f"--model-repository={MODELS}", f"--load={NETWORK}")
    server = await server_process(processes, traces, tmp_path, *program, service="vision")
    port = await envoy(server, cluster("tidegate-traces", traces.otlp_address))

    async def tidegate(*arguments):
        command = [sys.executable, "-c", "from tidegate.cli.main import main; main()", *arguments]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    address = f"127.0.0.1:{port}"
    await tidegate("classify", str(image), "--vision", address, "--trace", traces.otlp_url)
    trace = await whole_trace(traces, 8)
    method = "tidegate.vision.v1.VisionService/Classify"
    assert as_tree(trace) == [
        (0, "tidegate-cli", method),
        (1, "ingress", f"/{method}"),
        (2, "ingress", "router backend egress"),
        (3, "vision", method),
        *((4, "vision", stage) for stage in ("queue", "decode", "batch", "inference")),
    ]
    shown = await tidegate("trace", "show", "last", "--url", traces.url)
    titles = [line[:36].strip(" │├└") for line in shown.splitlines()[4:]]
    assert [title for title in titles if title and "=" not in title] == [
        "tidegate-cli VisionService/Classify",
        "ingress VisionService/Classify",
        "router backend egress",
        "vision VisionService/Classify",
        *("queue", "decode", "batch", "inference"),
    ]
    assert "model=efficientnet-lite0" in shown
