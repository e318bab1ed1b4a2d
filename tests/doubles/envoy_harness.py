"""A real Envoy that gets compiled objects, with real servers behind it, all on loopback.

One harness serves a module of tests; each test applies its own objects.

    async with EnvoyHarness.running(folder) as mesh:
        await mesh.apply(yaml)
        answer = await mesh.call("vision.example.com")
        assert answer.backend == "v1"
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from ads_double import xds_bootstrap
from aiohttp import web

from tidegate.istio.objects import IstioObjects
from tidegate.istio.reading.documents import parse
from tidegate.mesh.ads import AdsServicer, Distribution
from tidegate.mesh.compiler import Compiler, EndpointState, MeshSettings
from tidegate.mesh.envoy import Admin
from tidegate.mesh.resources import ProxyKind

WAIT_S = 20.0
METHOD = "/tidegate.test.v1.Echo/Say"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Answer:
    """The result of a call.

    Attributes:
        code: The gRPC status.
        backend: The name of the backend that answered, if one did.
        headers: The headers that the backend got.
        metadata: The metadata before the response.
        details: The text of the status.
        remaining_s: The time that the backend had left.
    """

    code: grpc.StatusCode
    backend: str = ""
    path: str = ""
    headers: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)
    details: str = ""
    remaining_s: float | None = None


class Backend(grpc.GenericRpcHandler):
    """A gRPC server that answers with its name and what it got.

    The header ``x-do`` controls it: ``fail NAME`` ends the call with this status, and ``hang``
    never answers.
    """

    def __init__(self, name, credentials=None):
        self.name = name
        self.calls = []
        self.server = grpc.aio.server(handlers=[self], options=[("grpc.so_reuseport", 0)])
        self.port = (
            self.server.add_secure_port("127.0.0.1:0", credentials)
            if credentials
            else self.server.add_insecure_port("127.0.0.1:0")
        )
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.more_calls = asyncio.Condition()

    def service(self, details):
        async def say(request, context):
            metadata = dict(context.invocation_metadata())
            self.calls.append((details.method, metadata))
            async with self.more_calls:
                self.more_calls.notify_all()
            what, _, status = metadata.get("x-do", "").partition(" ")
            if what == "fail":
                await context.abort(grpc.StatusCode[status], f"{self.name} was told to")
            if what == "hang":
                self.hanging.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            await context.send_initial_metadata((("x-backend", self.name), ("x-from", "backend")))
            told = {key: value for key, value in metadata.items() if isinstance(value, str)}
            remaining = context.time_remaining()
            return json.dumps([self.name, details.method, told, remaining]).encode()

        return grpc.unary_unary_rpc_method_handler(say)

    async def got(self, count):
        """Waits until it got this many calls."""
        async with asyncio.timeout(WAIT_S), self.more_calls:
            await self.more_calls.wait_for(lambda: len(self.calls) >= count)


class XdsClient:
    """A process with a gRPC client that knows only the address of the controller."""

    def __init__(self, process):
        self.process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, ads_port, bootstrap=None):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, Path(__file__).with_name("xds_client.py")),
            bootstrap or json.dumps(xds_bootstrap(ads_port, "client")),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            yield cls(process)
        finally:
            process.stdin.close()
            await process.wait()

    async def calls(self, target, count, *metadata, within_s=WAIT_S):
        """The number of calls by backend, or by status where they failed."""
        return await self._ask(target=target, count=count, metadata=metadata, within_s=within_s)

    async def ends(self, target, count, *, stream, within_s):
        """The number of calls by final status, of a server that never ends a call."""
        return await self._ask(target=target, count=count, stream=stream, within_s=within_s)

    async def _ask(self, **request):
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        await self.process.stdin.drain()
        async with asyncio.timeout(3 * WAIT_S):
            return json.loads(await self.process.stdout.readline())


class HttpBackend:
    """An HTTP/1.1 server that answers with what it got."""

    def __init__(self):
        self.runner = None
        self.port = 0

    async def start(self):
        async def say(request):
            return web.json_response(
                {"host": request.host, "path": request.path_qs, "headers": dict(request.headers)}
            )

        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", say)
        self.runner = web.AppRunner(app, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def stop(self):
        await self.runner.cleanup()


class EnvoyHarness:
    """An Envoy with its ADS server and backends.

    Attributes:
        port: The first of `ports`, which tests use as their gateway's port.
        backends: The gRPC servers by name.
        http: The HTTP/1.1 server.
    """

    def __init__(self, folder):
        self.folder = folder
        self.compiler = Compiler(MeshSettings())
        self.distribution = Distribution()
        self.compiled = None
        self.states = {}
        self.backends = {}
        self.http = HttpBackend()
        self.ports = [free_port() for _ in range(7)]
        self.admin = None
        self._channels = {}
        self._versions = {}

    @property
    def port(self):
        return self.ports[0]

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder, backends=("v1", "v2", "v3")):
        mesh = cls(folder)
        ads_port = free_port()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        AdsServicer(mesh.distribution).register(server)
        server.add_insecure_port(f"127.0.0.1:{ads_port}")
        await server.start()
        mesh.ads_port = ads_port
        for name in backends:
            await mesh.add_backend(name)
        await mesh.http.start()
        try:
            async with mesh._envoy(ads_port) as admin:
                mesh.admin = admin
                yield mesh
        finally:
            for channel in mesh._channels.values():
                await channel.close()
            await server.stop(None)
            for backend in mesh.backends.values():
                await backend.server.stop(None)
            await mesh.http.stop()

    async def add_backend(self, name):
        backend = self.backends[name] = Backend(name)
        await backend.server.start()
        self.states = {**self.states, f"127.0.0.1:{backend.port}": EndpointState.HEALTHY}
        return backend

    async def apply(self, text, states=None):
        """Compiles objects, and waits until Envoy has them and is live."""
        for backend in self.backends.values():
            backend.calls.clear()
        states = {**self.states, **(states or {})}
        compiled = self.compiler.compile(parse(text, "test"), states)
        if self.compiled is None:
            self.compiled = Compiler(MeshSettings()).compile(IstioObjects(), {})
        changes = compiled.changed_from(self.compiled)
        for proxy_kind, change in changes.items():
            self.distribution.apply(proxy_kind, change)
        self.compiled = compiled
        change = changes[ProxyKind.ENVOY]
        keys = [*(each.key for each in change.put), *change.delete]
        report = await self.distribution.acknowledged({ProxyKind.ENVOY: keys}, WAIT_S)
        assert report.done, report
        async with asyncio.timeout(WAIT_S):
            while not await self.admin.is_live():
                await asyncio.sleep(0.02)
        return change

    def compile(self, text):
        """Compiles objects for no proxy."""
        return Compiler(MeshSettings()).compile(parse(text, "test"), self.states)

    def channel(self, authority, port=None):
        key = (authority, port or self.port)
        if key not in self._channels:
            options = [("grpc.default_authority", authority), ("grpc.enable_retries", 0)]
            self._channels[key] = grpc.aio.insecure_channel(f"127.0.0.1:{key[1]}", options=options)
        return self._channels[key]

    async def call(self, authority, *metadata, method=METHOD, within_s=WAIT_S, port=None):
        """Makes one call; returns its answer or its error."""
        call = self.channel(authority, port).unary_unary(method)(
            b"", metadata=metadata, timeout=within_s, wait_for_ready=True
        )
        try:
            name, path, headers, remaining_s = json.loads(await call)
        except grpc.aio.AioRpcError as error:
            return Answer(
                error.code(),
                metadata=dict(error.initial_metadata()) | dict(error.trailing_metadata()),
                details=error.details(),
            )
        metadata = dict(await call.initial_metadata())
        return Answer(grpc.StatusCode.OK, name, path, headers, metadata, remaining_s=remaining_s)

    async def share(self, authority, count, *metadata):
        """Makes calls, and counts them by backend; fails if a call fails."""
        taken = {}
        for start in range(0, count, 100):
            wanted = min(100, count - start)
            answers = await asyncio.gather(
                *(self.call(authority, *metadata) for _ in range(wanted))
            )
            for answer in answers:
                assert answer.code is grpc.StatusCode.OK, answer
                taken[answer.backend] = taken.get(answer.backend, 0) + 1
        return taken

    @contextlib.asynccontextmanager
    async def _envoy(self, ads_port):
        admin_file = self.folder / "admin"
        with (self.folder / "envoy.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tidegate.mesh.envoy", "--concurrency=1"),
                    *(f"--controller=127.0.0.1:{ads_port}", f"--admin-file={admin_file}"),
                    f"--bootstrap-file={self.folder / 'bootstrap.json'}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            async with asyncio.timeout(WAIT_S):
                while not (admin_file.exists() and admin_file.read_text()):
                    assert process.poll() is None, (self.folder / "envoy.log").read_text()
                    await asyncio.sleep(0.02)
            yield Admin(admin_file.read_text())
        finally:
            process.terminate()
            process.wait(timeout=WAIT_S)
