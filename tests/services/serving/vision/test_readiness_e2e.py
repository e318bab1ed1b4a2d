"""All sources agree on readiness: health service, probes, inference protocol and mesh."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidegate.chassis.server import running
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.inference.v2 import open_inference_pb2_grpc
from tidegate.mesh.control.endpoints.health_checks import CheckKind, HealthCheck
from tidegate.mesh.control.endpoints.health_watch import HealthWatch
from tidegate.serving.vision.__main__ import VisionApplication
from tidegate.serving.vision.settings import VisionSettings

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

NETWORK = "efficientnet-lite0"
FP32, INT8, BROKEN = "1-fp32", "1-int8", "9-broken"
SERVICES = ("", "readiness", "inference.GRPCInferenceService", "tidegate.vision.v1.VisionService")
SERVING = health_pb2.HealthCheckResponse.SERVING


class HeldApplication(VisionApplication):
    """The vision server; the test controls when it loads."""

    def __init__(self, settings):
        super().__init__(settings)
        self.may_load = threading.Event()

    def _load_engine(self, entry):
        assert self.may_load.wait(60)
        return super()._load_engine(entry)


class Asked:
    """A server and every source of its readiness."""

    def __init__(self, channel, address, metrics_port, watches, mesh):
        self.stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._address = address
        self._metrics_port = metrics_port
        self._watches = watches
        self._mesh = mesh
        self._watched = {}

    def _probe(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/readyz") as page:
                return page.status == 200
        except urllib.error.HTTPError:
            return False

    async def is_ready(self):
        """Whether the server is ready; fails unless all sources agree."""
        ready = (await self.stub.ServerReady(oip.ServerReadyRequest())).ready
        assert await asyncio.to_thread(self._probe) == ready
        for service in SERVICES:
            request = health_pb2.HealthCheckRequest(service=service)
            assert ((await self._health.Check(request)).status == SERVING) == ready, service
        # A stream reports each change once, so the last report may be an older one.
        async with asyncio.timeout(20):
            for service, watch in self._watches.items():
                while self._watched.get(service) != ready:
                    self._watched[service] = (await watch.read()).status == SERVING
            while self._mesh.seen[self._address].serving != ready:
                await asyncio.sleep(0.001)
        return ready

    async def ready_models(self):
        found = set()
        for version in (FP32, INT8, BROKEN):
            request = oip.ModelReadyRequest(name=NETWORK, version=version)
            if (await self.stub.ModelReady(request)).ready:
                found.add(version)
        default = await self.stub.ModelReady(oip.ModelReadyRequest(name=NETWORK))
        unnamed = await self.stub.ModelReady(oip.ModelReadyRequest())
        assert default.ready == unnamed.ready == bool(found)
        return found

    async def load(self, version):
        await self.stub.RepositoryModelLoad(
            oip.RepositoryModelLoadRequest(
                model_name=NETWORK, parameters={"version": {"string_param": version}}
            )
        )

    async def unload(self, version):
        await self.stub.RepositoryModelUnload(
            oip.RepositoryModelUnloadRequest(
                model_name=NETWORK, parameters={"version": {"string_param": version}}
            )
        )


@asynccontextmanager
async def asked(port, metrics_port, channel_to):
    address = f"127.0.0.1:{port}"
    async with (
        channel_to(address) as channel,
        HealthWatch(1, lambda _: None) as mesh,
    ):
        mesh.watch({address: HealthCheck(CheckKind.GRPC)})
        watch = health_pb2_grpc.HealthStub(channel).Watch
        watches = {
            service: watch(health_pb2.HealthCheckRequest(service=service)) for service in SERVICES
        }
        yield Asked(channel, address, metrics_port, watches, mesh)
        for each in watches.values():
            each.cancel()


@pytest.fixture
def settings(models_root, tmp_path):
    root = tmp_path / "models"
    (root / NETWORK).mkdir(parents=True)
    for version in (FP32, INT8):
        (root / NETWORK / version).symlink_to(models_root / NETWORK / version)
    return VisionSettings(
        grpc_port=0,
        metrics_port=0,
        drain_delay_s=600.0,
        drain_hold_s=0.0,
        port_file=tmp_path / "ports.json",
        model_repository=root,
        cores=1,
        batch_sizes=[1],
        verify_checksums=False,
    )


def break_a_version(settings):
    """Adds a version without a valid network."""
    whole = settings.model_repository / NETWORK / INT8
    broken = settings.model_repository / NETWORK / BROKEN
    broken.mkdir()
    for path in whole.resolve().iterdir():
        (broken / path.name).write_bytes(
            b"no network" if path.suffix == ".onnx" else path.read_bytes()
        )


async def test_every_source_agrees_in_every_transition(settings, channel_to, eventually):
    application = HeldApplication(settings)

    async def ask_while_it_loads():
        await eventually(settings.port_file.exists)
        ports = json.loads(settings.port_file.read_text())
        async with asked(ports["grpc"], ports["metrics"], channel_to) as server:
            assert not await server.is_ready()
            assert await server.ready_models() == set()
            application.may_load.set()

    loading = asyncio.create_task(ask_while_it_loads())
    async with running(application, settings) as process:
        await loading
        async with asked(process.grpc_port, process.metrics_port, channel_to) as server:
            assert await server.is_ready()
            assert await server.ready_models() == {FP32, INT8}

            await server.unload(FP32)
            assert await server.is_ready()
            assert await server.ready_models() == {INT8}

            break_a_version(settings)
            with pytest.raises(AioRpcError) as failed:
                await server.load(BROKEN)
            assert failed.value.code() is StatusCode.FAILED_PRECONDITION
            assert await server.is_ready()
            assert await server.ready_models() == {INT8}

            await server.unload(INT8)
            assert not await server.is_ready()
            assert await server.ready_models() == set()

            with pytest.raises(AioRpcError):
                await server.load(BROKEN)
            assert not await server.is_ready()

            await server.load(INT8)
            assert await server.is_ready()
            assert await server.ready_models() == {INT8}

            # During the drain delay the server still accepts requests of unaware clients.
            draining = asyncio.create_task(process.drain())
            await eventually(lambda: process.health.is_shut_down)
            assert not await server.is_ready()
            assert await server.ready_models() == set()
            process.request_shutdown()
        await draining
