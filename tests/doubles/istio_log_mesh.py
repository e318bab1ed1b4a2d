"""A gateway that a real istiod programs, whose access log goes to the router's receiver.

    async with IstioLogMesh.running(folder) as mesh:
        await mesh.apply(*mesh.vision({"v1": 90, "v2": 10}, revision="r1"))
        await mesh.call("Unary")

The provider and the Telemetry object are those that the project ships.
"""

import asyncio
import contextlib
from pathlib import Path

import grpc
import yaml
from built_servers import built
from echo_server import SERVICE, Echo
from envoy_harness import WAIT_S, free_port
from istiod import istio_envoy, running_istiod
from kubernetes_api import kubernetes_api
from mesh_objects import entry, gateway, rule, text, to, virtual

from tidegate.router.istio_log.istio_log import IstioLog

COMPONENTS = Path(__file__).resolve().parents[2] / "mesh/istio/components"
RECEIVER = "tidegate-access-log.tidegate-system.svc.cluster.local"
AUTHORITY = "vision.example.com"


def shipped(path):
    """The objects of a file that the project ships."""
    return list(yaml.safe_load_all((COMPONENTS / path).read_text()))


class IstioLogMesh:
    """A gateway, two versions behind it, and the router's receiver of its access log.

    Attributes:
        log: The receiver.
        address: The receiver's address.
        versions: The servers by version.
    """

    def __init__(self, folder):
        self.log = IstioLog()
        self.address = ""
        self.versions = {}
        self._folder = folder
        self._port = free_port()
        self._applied = 0
        self._extra = []
        self._channels = []

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder, *, filters=()):
        """Runs everything; `filters` are shipped files instead of provider and Telemetry."""
        istiod_program = built("pilot-discovery")
        (folder / "objects").mkdir()
        mesh = cls(folder)
        async with contextlib.AsyncExitStack() as stack:
            server = grpc.aio.server()
            mesh.log.register(server)
            receiver_port = server.add_insecure_port("127.0.0.1:0")
            mesh.address = f"127.0.0.1:{receiver_port}"
            await server.start()
            stack.push_async_callback(server.stop, 1)
            stack.callback(mesh.log.shut_down)
            for version in ("v1", "v2"):
                echo = mesh.versions[version] = Echo(version)
                await echo.server.start()
                stack.push_async_callback(echo.server.stop, 0)
            mesh._extra = [
                entry({"all": receiver_port}, RECEIVER, 9001),
                *(
                    each
                    for path in filters or ("access-log/telemetry.yaml",)
                    for each in shipped(path)
                ),
            ]
            api = await stack.enter_async_context(kubernetes_api(folder))
            config = (COMPONENTS / "access-log/mesh-config.yaml").read_text()
            istiod = running_istiod(istiod_program, folder, api.kubeconfig, config)
            ads_port = await stack.enter_async_context(istiod)
            await stack.enter_async_context(istio_envoy(folder, ads_port))
            stack.push_async_callback(mesh._close)
            yield mesh

    async def _close(self):
        for channel in self._channels:
            await channel.close()

    def vision(self, weights, *, revision="r1", subsets=("v1", "v2"), **route):
        """The objects of a host with these weights, whose routes carry a revision."""
        ports = {version: echo.port for version, echo in self.versions.items()}
        return (
            entry(ports),
            rule(subsets=subsets),
            gateway(self._port),
            virtual(
                {
                    "name": f"vision@{revision}",
                    "route": [to(subset, weight) for subset, weight in weights.items()],
                    "retries": {"attempts": 0},
                    "headers": {"response": {"set": {"x-revision": revision}}},
                    **route,
                },
                hosts=(AUTHORITY,),
            ),
        )

    def write(self, *objects):
        """Gives istiod objects, and does not wait."""
        made = self._folder / "objects.new"
        made.write_text(text(*objects, *self._extra))
        # In one step: istiod would take half a file for the whole.
        made.rename(self._folder / "objects/all.yaml")

    async def apply(self, *objects, revision="r1"):
        """Gives istiod objects, and waits until the gateway answers by them."""
        self.write(*objects)
        async with asyncio.timeout(WAIT_S):
            while True:
                call = self.start("Unary", timeout=1)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    metadata = dict(await call.initial_metadata())
                    if metadata.get("x-revision") == revision:
                        return
                await asyncio.sleep(0.02)

    def start(self, method, *metadata, timeout=None, channel=0):
        """Starts a call through the gateway."""
        while len(self._channels) <= channel:
            options = [
                *(("grpc.default_authority", AUTHORITY), ("grpc.enable_retries", 0)),
                *(("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1)),
            ]
            address = f"127.0.0.1:{self._port}"
            self._channels.append(grpc.aio.insecure_channel(address, options=options))
        opened = self._channels[channel]
        kind = opened.unary_stream if method == "Stream" else opened.unary_unary
        return kind(f"/{SERVICE}/{method}")(b"x", metadata=metadata, timeout=timeout)
