"""A real istiod with an Envoy as its gateway, beside a mesh that Tidegate programs.

    async with TwinMesh.running(folder) as twin:
        await twin.apply(*objects)
        assert await twin.call("vision.example.com")

Both Envoys are the same program with the same servers behind them. Only one of them can listen on a
port, so istiod's gateways get other ports. istiod needs an API server to start. It reads objects
from a folder, all at once, and takes an object's age from its own metadata.
"""

import asyncio
import contextlib
import json
import os

import aiohttp
from built_servers import built, running
from envoy_harness import METHOD, WAIT_S, EnvoyHarness, free_port
from kubernetes_api import kubernetes_api
from mesh_objects import istio, text
from yarl import URL

from tidegate.mesh.envoy import Admin
from tidegate.mesh.envoy.binary import find_envoy

MARKER = "marker.test"
START_S = 60.0

# Without a certificate authority, webhooks, and the filters of Istio's own build of Envoy.
_SETTINGS = {
    "ENABLE_CA_SERVER": "false",
    "ENABLE_LEADER_ELECTION": "false",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "PILOT_CERT_PROVIDER": "none",
    "PILOT_DEBOUNCE_AFTER": "5ms",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "PILOT_ENABLE_GATEWAY_API": "false",
    "PILOT_ENABLE_IP_AUTOALLOCATE": "false",
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "POD_NAMESPACE": "istio-system",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
}
_MESH = "enableAutoMtls: false\nrootNamespace: istio-system\n"


class TwinMesh:
    """The same servers behind two Envoys: Tidegate programs one, and istiod the other.

    Attributes:
        ours: The mesh of Tidegate.
        istio_ports: The port on which istiod's Envoy listens, for each port of `ours`.
    """

    def __init__(self, folder, ours):
        self.ours = ours
        self.istio_ports = {port: free_port() for port in ours.ports}
        self._folder = folder
        self._applied = 0
        self.session = None

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder):
        istiod_program = built("pilot-discovery")
        objects = folder / "objects"
        objects.mkdir()
        (folder / "ours").mkdir()
        async with contextlib.AsyncExitStack() as stack:
            ours = await stack.enter_async_context(EnvoyHarness.running(folder / "ours"))
            twin = cls(folder, ours)
            api = await stack.enter_async_context(kubernetes_api(folder))
            istiod = running_istiod(istiod_program, folder, api.kubeconfig)
            ads_port = await stack.enter_async_context(istiod)
            twin._admin = await stack.enter_async_context(istio_envoy(folder, ads_port))
            # An open connection would stay with the listener of earlier objects.
            connector = aiohttp.TCPConnector(force_close=True)
            session = aiohttp.ClientSession(connector=connector)
            twin.session = await stack.enter_async_context(session)
            yield twin

    async def apply(self, *objects):
        """Gives both meshes the same objects, and waits until both Envoys apply them."""
        self._applied += 1
        marker = self._marker(str(self._applied))
        await self.ours.apply(text(*objects))
        moved = [self._for_istio(each) for each in (*objects, *marker)]
        made = self._folder / "objects.new"
        made.write_text(text(*moved))
        with (self._folder / "istiod.log").open() as log:
            log.seek(0, os.SEEK_END)
            # In one step: istiod would take half a file for the whole.
            made.rename(self._folder / "objects/all.yaml")
            await self._taken(log)

    async def _taken(self, log):
        async with asyncio.timeout(WAIT_S):
            while await self._marked() != str(self._applied):
                output = log.read()
                assert "configuration is invalid" not in output, output
                await asyncio.sleep(0.02)

    async def call(self, authority, *metadata, method=METHOD):
        """The answers to a gRPC call from our Envoy and from istiod's."""
        port = self.ours.port
        return [
            await self.ours.call(authority, *metadata, method=method, port=each)
            for each in (port, self.istio_ports[port])
        ]

    async def get(self, host, path="/", headers=None, *, port=None, **request):
        """The answers to an HTTP request, as status, headers and text: our Envoy's and istiod's."""
        port = port or self.ours.port
        return [
            await self._get(host, path, headers or {}, each, **request)
            for each in (port, self.istio_ports[port])
        ]

    async def _get(self, host, path, headers, port, *, method="GET", data=None):
        url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
        headers = {"Host": host, **headers}
        async with self.session.request(
            method, url, headers=headers, data=data, allow_redirects=False
        ) as answer:
            return (
                answer.status,
                dict(answer.headers),
                (await answer.read()).decode(errors="replace"),
            )

    def _for_istio(self, item):
        if item["kind"] != "Gateway":
            return item
        servers = []
        for server in item["spec"]["servers"]:
            number = server["port"]["number"]
            port = server["port"] | {"number": self.istio_ports.get(number, number)}
            servers.append(server | {"port": port, "bind": "127.0.0.1"})
        return item | {"spec": item["spec"] | {"servers": servers}}

    def _marker(self, count):
        """A Gateway and a VirtualService whose answer tells which objects are in effect."""
        port = self.ours.ports[-1]
        server = {
            "port": {"number": port, "name": "marker", "protocol": "HTTP"},
            "hosts": [MARKER],
        }
        answer = {"status": 200, "body": {"string": count}}
        return (
            istio("Gateway", "marker", {"selector": {"istio": "ingress"}, "servers": [server]}),
            istio(
                "VirtualService",
                "marker",
                {"hosts": [MARKER], "gateways": ["marker"], "http": [{"directResponse": answer}]},
            ),
        )

    async def _marked(self):
        url = f"http://127.0.0.1:{self.istio_ports[self.ours.ports[-1]]}/"
        try:
            async with self.session.get(url, headers={"Host": MARKER}) as answer:
                return await answer.text()
        except aiohttp.ClientError:
            return None


@contextlib.asynccontextmanager
async def running_istiod(program, folder, kubeconfig, mesh=""):
    """An istiod that reads objects from a folder; gives the port of its discovery service.

    `mesh` is added to its mesh configuration.
    """
    ads_port, http_port = free_port(), free_port()
    command, settings = istiod_command(program, folder, kubeconfig, ads_port, http_port, mesh)
    command = (*command, f"--configDir={folder / 'objects'}")
    with running(
        command, folder / "istiod.log", env={**os.environ, **settings}, cwd=folder
    ) as process:
        async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
            while not await istiod_is_ready(session, http_port):
                assert process.poll() is None, (folder / "istiod.log").read_text()[-3000:]
                await asyncio.sleep(0.05)
        yield ads_port


def istiod_command(program, folder, kubeconfig, ads_port, http_port, mesh=""):
    """The command and the environment of an istiod; writes its mesh configuration."""
    (folder / "mesh.yaml").write_text(_MESH + mesh)
    (folder / "networks.yaml").write_text("networks: {}\n")
    command = (
        *(program, "discovery", f"--kubeconfig={kubeconfig}", "--registries=Kubernetes"),
        *(f"--meshConfig={folder / 'mesh.yaml'}", f"--networksConfig={folder / 'networks.yaml'}"),
        *(f"--grpcAddr=127.0.0.1:{ads_port}", f"--httpAddr=127.0.0.1:{http_port}"),
        *(f"--monitoringAddr=127.0.0.1:{free_port()}", f"--ctrlz_port={free_port()}"),
        *("--httpsAddr=", "--secureGRPCAddr=", "--log_output_level=default:warn"),
    )
    # By default Go would use all cores while it starts.
    return command, {**_SETTINGS, "GOMAXPROCS": "1"}


async def istiod_is_ready(session, http_port):
    """Whether an istiod serves proxies."""
    return await _is_ready(session, f"http://127.0.0.1:{http_port}/ready")


async def _is_ready(session, url):
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


@contextlib.asynccontextmanager
async def istio_envoy(folder, ads_port):
    """An Envoy as Istio's agent would start it as a gateway."""
    admin_file = folder / "admin"
    bootstrap = folder / "bootstrap.json"
    bootstrap.write_text(json.dumps(_bootstrap(ads_port)))
    command = (
        *(find_envoy(), "--config-path", bootstrap, "--admin-address-path", admin_file),
        *("--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"),
    )
    with running(command, folder / "istio-envoy.log") as process:
        async with asyncio.timeout(WAIT_S):
            while not (admin_file.exists() and admin_file.read_text()):
                assert process.poll() is None, (folder / "istio-envoy.log").read_text()
                await asyncio.sleep(0.02)
        yield Admin(admin_file.read_text())


def _bootstrap(ads_port):
    loopback = {"socket_address": {"address": "127.0.0.1", "port_value": ads_port}}
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    ads = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
    return {
        "node": {
            "id": "router~10.0.0.1~gateway.istio-ingress~istio-ingress.svc.cluster.local",
            "cluster": "gateway.istio-ingress",
            "metadata": {
                "NAMESPACE": "istio-ingress",
                "CLUSTER_ID": "Kubernetes",
                "NAME": "gateway",
                "INSTANCE_IPS": "10.0.0.1",
                "LABELS": {"istio": "ingress"},
            },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "istiod"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "istiod",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": "istiod",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": loopback}}]}],
                    },
                }
            ]
        },
        "admin": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        },
    }
