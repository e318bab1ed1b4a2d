"""Proxies of a control plane: an Envoy, load through it, and a proxyless gRPC client."""

import asyncio
import json
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import proxyless_client
from ads_double import xds_bootstrap

from tidegate.mesh.ads import XdsVariant

TIMEOUT_S = 20
HOST = "vision:80"
_PROXYLESS = Path(proxyless_client.__file__)


def bootstrap(ads_port, variant):
    """The bootstrap of an Envoy that gets all other configuration from a control plane."""
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": ads_port}}
    over_ads = {"ads": {}, "resource_api_version": "V3"}
    backoff = {"base_interval": "0.01s", "max_interval": "0.05s"}
    service = {"envoy_grpc": {"cluster_name": "ads", "retry_policy": {"retry_back_off": backoff}}}
    return {
        "node": {"id": f"envoy-{variant.name.lower()}", "cluster": "ingress"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if variant is XdsVariant.DELTA else "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [service],
            },
            "cds_config": over_ads,
            "lds_config": over_ads,
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "ads",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": "ads",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ]
        },
    }


class Envoy:
    """A running Envoy."""

    def __init__(self, process, admin):
        self.process = process
        self._admin = f"http://{admin}"

    async def admin(self, path):
        async with aiohttp.ClientSession() as session, session.get(self._admin + path) as answer:
            return await answer.text()

    async def until(self, path, condition):
        """Polls the admin interface until a condition holds."""
        async with asyncio.timeout(TIMEOUT_S):
            while not condition(text := await self.admin(path)):
                await asyncio.sleep(0.02)
        return text

    async def listening(self, name="ingress"):
        """Returns the port of a listener, once it is open."""
        path = "/listeners?format=json"
        text = await self.until(path, lambda text: f'"{name}"' in text)
        found = {each["name"]: each for each in json.loads(text)["listener_statuses"]}
        return found[name]["local_address"]["socket_address"]["port_value"]


class Load:
    """Continuous calls through an ingress."""

    def __init__(self, port):
        self._port = port
        self.answers = Counter()
        self._tasks = []

    async def __aenter__(self):
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self._port}",
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
            ],
        )
        async with asyncio.timeout(TIMEOUT_S):
            await self._channel.channel_ready()
        call = self._channel.unary_unary("/test.Echo/Who")

        async def keep_calling():
            while True:
                try:
                    who = (await call(b"", timeout=10, wait_for_ready=False)).decode()
                except grpc.aio.AioRpcError as error:
                    who = f"failed: {error.code().name} {error.details()}"
                self.answers[who] += 1

        self._tasks = [asyncio.create_task(keep_calling()) for _ in range(2)]
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def more(self, count=50):
        """Waits for more calls, and returns which servers answered them."""
        self.answers.clear()
        async with asyncio.timeout(TIMEOUT_S):
            while self.answers.total() < count:
                await asyncio.sleep(0.01)
        return Counter(self.answers)


class Client:
    """A proxyless gRPC client, which gets its configuration from the control plane."""

    def __init__(self, process):
        self._process = process

    async def more(self):
        """Waits for more calls, and returns which servers answered them."""
        await self._report()
        answers = Counter()
        while answers.total() < 50:
            answers += await self._report()
        return answers

    async def _report(self):
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(TIMEOUT_S):
            return Counter(json.loads(await self._process.stdout.readline()))


@asynccontextmanager
async def proxyless(ads_port, node):
    """Runs a proxyless gRPC client of a control plane in its own process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, _PROXYLESS, f"xds:///{HOST}"),
        env={"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(xds_bootstrap(ads_port, node))},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert await process.stdout.readline() == b"ready\n"
        yield Client(process)
    finally:
        process.kill()
        await process.communicate()
