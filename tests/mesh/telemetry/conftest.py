"""A real Envoy between real gRPC backends and the controller's own telemetry services.

Each test module has one Envoy. It routes by the header ``x-to``, and reads its clusters from files,
so that tests can remove endpoints and clusters.
"""

import asyncio
import contextlib
import json
import os
import socket
import sysconfig
from pathlib import Path

import aiohttp
import grpc
import pytest
import pytest_asyncio
from echo_server import SERVICE, Echo
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tidegate.mesh.resources import ROUTE_BY_HEADERS, ROUTE_METADATA, ROUTE_TIMEOUT_MS
from tidegate.mesh.telemetry import (
    ACCESS_LOG_CLUSTER,
    TRACES_CLUSTER,
    AccessLogServicer,
    LoadReportingServicer,
    LoadReports,
    RequestLog,
    access_log_config,
    tracing_config,
)

HOST = "echo.models.svc.cluster.local"
WAIT_S = 20.0
_TYPES = "type.googleapis.com/envoy"


class Spans:
    """Stores the spans that Envoy exports."""

    def __init__(self):
        self.kept = []
        self.more = asyncio.Condition()

    async def Export(self, request, context):  # noqa: N802
        async with self.more:
            for resource in request.resource_spans:
                self.kept += [span for scope in resource.scope_spans for span in scope.spans]
            self.more.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def of_trace(self, trace_id, count):
        def found():
            return [span for span in self.kept if span.trace_id.hex() == trace_id]

        async with asyncio.timeout(WAIT_S), self.more:
            await self.more.wait_for(lambda: len(found()) >= count)
            return found()


class Mesh:
    """Everything that a test talks to."""

    def __init__(self, folder):
        self.folder = folder
        self.log = RequestLog()
        self.loads = LoadReports()
        self.spans = Spans()
        self.v1, self.v2, self.v3 = Echo("1-fp32"), Echo("2-int8"), Echo("3-bf16")
        self.channel = None
        self.port = 0
        self.admin = ""

    def call(self, method, to, *metadata, kind="unary_unary", request=b"hello", timeout=WAIT_S):
        call = getattr(self.channel, kind)(f"/{SERVICE}/{method}")
        return call(request, metadata=(("x-to", to), *metadata), timeout=timeout)

    async def admin_text(self, path):
        async with aiohttp.ClientSession() as session, session.get(self.admin + path) as answer:
            return await answer.text()

    async def stat(self, name):
        stats = json.loads(await self.admin_text(f"/stats?format=json&filter=^{name}$"))
        return next(each["value"] for each in stats["stats"] if each.get("name") == name)

    def write_clusters(self, *clusters):
        kind = f"{_TYPES}.config.cluster.v3.Cluster"
        _write(self.folder / "cds.json", [{"@type": kind, **each} for each in clusters])

    def write_endpoints(self, statuses):
        """Writes the endpoints of subset v2 with their health."""
        assignment = load_assignment(cluster_name("v2"), *statuses)
        for entry, status in zip(
            assignment["endpoints"][0]["lb_endpoints"], statuses.values(), strict=True
        ):
            entry["health_status"] = status
        kind = f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment"
        _write(self.folder / "eds.json", [{"@type": kind, **assignment}])


def _write(path, resources):
    written = path.with_suffix(".new")
    written.write_text(json.dumps({"resources": resources}))
    # Envoy notices only files that are moved to this name.
    written.replace(path)


def cluster_name(subset, host=HOST):
    return f"outbound|50051|{subset}|{host}"


def load_assignment(name, *ports):
    endpoints = [{"endpoint": {"address": _socket(port)}} for port in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}] if ports else []}


def cluster(name, *ports):
    options = f"{_TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STATIC",
        "typed_extension_protocol_options": {
            options.partition("/")[2]: {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": load_assignment(name, *ports),
    }


def endpoint_cluster(folder, name):
    """A cluster whose endpoints come from a file."""
    described = cluster(name) | {"type": "EDS"}
    del described["load_assignment"]
    return described | {"eds_cluster_config": {"eds_config": _from_file(folder / "eds.json")}}


def _from_file(path):
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _socket(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _route(to, name, **action):
    headers = [{"name": "x-to", "string_match": {"exact": to}}]
    return {
        "name": f"to-{to}",
        "match": {"prefix": "/", "headers": headers},
        "route": {"cluster": name, "timeout": "0s", **action},
    }


def _filter(name, kind, **config):
    kind = f"{_TYPES}.extensions.filters.http.{kind}"
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": kind, **config}}


def _dict(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def bootstrap(folder, control_port):
    rewrite = {"pattern": {"regex": ".*"}, "substitution": f"/{SERVICE}/Unary"}
    routes = [
        *(_route(to, cluster_name(to)) for to in ("v1", "v2", "empty", "refused", "missing")),
        _route("impatient", cluster_name("v1"), timeout="0.05s"),
        # As the compiler writes a timeout, and conditions on headers.
        _route(
            "bounded",
            cluster_name("v1"),
            timeout="0.05s",
            max_stream_duration={"max_stream_duration": "0.05s"},
        )
        | {
            "metadata": {
                "filter_metadata": {ROUTE_METADATA: {ROUTE_TIMEOUT_MS: "50", ROUTE_BY_HEADERS: "1"}}
            }
        },
        _route("limited", cluster_name("v1"), max_stream_duration={"max_stream_duration": "0.05s"}),
        _route("rewritten", cluster_name("v1"), regex_rewrite=rewrite),
    ]
    manager = {
        "@type": f"{_TYPES}.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "ingress",
        "access_log": [_dict(access_log_config())],
        "tracing": _dict(tracing_config()),
        "route_config": {
            "validate_clusters": False,
            "virtual_hosts": [{"name": "echo", "domains": ["*"], "routes": routes}],
        },
        "http_filters": [
            _filter("grpc_stats", "grpc_stats.v3.FilterConfig", emit_filter_state=True),
            _filter("router", "router.v3.Router"),
        ],
    }
    listener = {
        "name": "ingress",
        "address": _socket(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    controllers = ("tidegate-ads", ACCESS_LOG_CLUSTER, TRACES_CLUSTER)
    return {
        "node": {
            "id": "ingress-1",
            "cluster": "tidegate",
            "metadata": {"TIDEGATE_PROXY": "ingress"},
        },
        "admin": {"address": _socket(0)},
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "tidegate-ads"}}],
            }
        },
        # Send spans at once instead of every five seconds.
        "layered_runtime": {
            "layers": [
                {
                    "name": "static",
                    "static_layer": {"tracing.opentelemetry.flush_interval_ms": 100},
                }
            ]
        },
        "dynamic_resources": {"cds_config": _from_file(folder / "cds.json")},
        "static_resources": {
            "listeners": [listener],
            "clusters": [cluster(name, control_port) for name in controllers],
        },
    }


@contextlib.contextmanager
def closed_port():
    """A port that refuses connections: bound, so that it stays free, but not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.asynccontextmanager
async def running_envoy(folder, config):
    """Runs an Envoy; yields the URL of its admin port once it is ready."""
    (folder / "envoy.json").write_text(json.dumps(config))
    address = folder / "admin-address"
    binary = Path(sysconfig.get_path("scripts")) / "envoy"
    arguments = ("-c", "envoy.json", "--use-dynamic-base-id", "--concurrency", "2")
    files = ("--admin-address-path", str(address), "--log-path", "envoy.log")
    process = await asyncio.create_subprocess_exec(
        binary, *arguments, *files, "-l", "warning", cwd=folder, env=os.environ
    )
    try:
        async with asyncio.timeout(WAIT_S):
            yield await _ready(process, address, folder / "envoy.log")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _ready(process, address, log):
    async with aiohttp.ClientSession() as session:
        while True:
            if process.returncode is not None:
                pytest.fail(f"envoy ended: {log.read_text()[-2000:]}")
            if address.exists() and address.read_text():
                url = f"http://{address.read_text()}"
                async with session.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        return url
            await asyncio.sleep(0.02)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("envoy")
    mesh = Mesh(folder)
    control = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    AccessLogServicer(mesh.log).register(control)
    LoadReportingServicer(mesh.loads).register(control)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(mesh.spans, control)
    control_port = control.add_insecure_port("127.0.0.1:0")
    servers = (control, mesh.v1.server, mesh.v2.server, mesh.v3.server)
    for server in servers:
        await server.start()
    with closed_port() as refusing:
        mesh.write_endpoints({mesh.v2.port: "HEALTHY", mesh.v3.port: "HEALTHY"})
        mesh.first_clusters = (
            cluster(cluster_name("v1"), mesh.v1.port),
            endpoint_cluster(folder, cluster_name("v2")),
            cluster(cluster_name("empty")),
            cluster(cluster_name("refused"), refusing),
        )
        mesh.write_clusters(*mesh.first_clusters)
        mesh.refusing = f"127.0.0.1:{refusing}"
        async with running_envoy(folder, bootstrap(folder, control_port)) as mesh.admin:
            listeners = json.loads(await mesh.admin_text("/listeners?format=json"))
            address = listeners["listener_statuses"][0]["local_address"]["socket_address"]
            mesh.port = address["port_value"]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.port}") as mesh.channel:
                yield mesh
    for server in servers:
        await server.stop(None)


@pytest_asyncio.fixture(loop_scope="module")
async def record_of(mesh):
    """Waits for the record of the request with this value of ``x-user-id``."""
    with mesh.log.subscribe("test") as records:

        async def find(user):
            async with asyncio.timeout(WAIT_S):
                while (record := await anext(records)).headers.get("x-user-id") != user:
                    pass
                return record

        yield find
