"""The trace components of a controller: the store, the OTLP receiver and the query API."""

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from otlp_spans import START_NS

from tidegate.chassis import running
from tidegate.chassis.settings import ChassisSettings
from tidegate.mesh.traces.intake import TraceLimits
from tidegate.mesh.traces.jaeger_api import jaeger_api
from tidegate.mesh.traces.receiver import SERVICE_NAME, OtlpTraceServicer
from tidegate.mesh.traces.store import TraceStore

NOW_NS = START_NS + 3600 * 10**9


class CollectorApplication:
    """The receiver as a chassis application."""

    service_names = (SERVICE_NAME,)

    def __init__(self, store):
        self._store = store

    def register(self, server):
        OtlpTraceServicer(self._store).register(server)

    @asynccontextmanager
    async def run(self, health):
        async with self._store:
            health.set_all(True)
            yield


@dataclass
class Traces:
    """The addresses of a running collector."""

    store: TraceStore
    otlp_address: str
    url: str
    stub: trace_service_pb2_grpc.TraceServiceStub

    @property
    def otlp_url(self) -> str:
        return f"http://{self.otlp_address}"


@pytest.fixture
async def collector(tmp_path):
    """Starts collectors, and stops each at the end."""
    async with AsyncExitStack() as stack:

        async def start(limits=None, clock_ns=lambda: NOW_NS):
            store = TraceStore(
                tmp_path / "traces.sqlite", limits or TraceLimits(), clock_ns=clock_ns
            )
            settings = ChassisSettings(grpc_port=0, metrics_port=0, drain_hold_s=0.01)
            server = await stack.enter_async_context(running(CollectorApplication(store), settings))
            port = await stack.enter_async_context(jaeger_api(store, port=0, clock_ns=clock_ns))
            address = f"127.0.0.1:{server.grpc_port}"
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stub = trace_service_pb2_grpc.TraceServiceStub(channel)
            return Traces(store, address, f"http://127.0.0.1:{port}", stub)

        yield start
