"""A mesh as on a laptop: the controller's process, a real Envoy, and servers."""

import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
from collections import Counter
from datetime import timedelta

import grpc
import pytest
import pytest_asyncio
from ads_double import ROUTE, VIRTUAL_HOST, Proxy
from grpc_health.v1 import health_pb2_grpc
from mesh_objects import DOMAIN, entry, gateway, istio, rule, text, to, virtual

from tidegate.chassis.health import Health, HealthServicer
from tidegate.mesh.envoy import Admin, HostStatus
from tidegate.mesh.v1 import mesh_pb2, mesh_pb2_grpc

WAIT_S = 30.0
SERVICE = "tidegate.test.v1.Echo"


def free_port():
    """A port that stays free: outside of the range of ephemeral ports."""
    while True:
        port = random.randint(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def until(condition):
    """Waits until a condition holds; returns what the condition returned."""
    async with asyncio.timeout(WAIT_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


class Backend:
    """A gRPC server that returns its name, once (Say) or on a stream that stays open (Flow)."""

    def __init__(self, name):
        self.name = name
        self.health = Health([SERVICE])
        self.health.set_all(True)
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "Say": grpc.unary_unary_rpc_method_handler(self._say),
            "Flow": grpc.unary_stream_rpc_method_handler(self._flow),
        }
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, handlers)]
        )
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self.health), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.go_on = asyncio.Event()
        self.flows = 0

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    async def _say(self, request, context):
        return self.name.encode()

    async def _flow(self, request, context):
        """Sends its name at once, and once more when the stream may end."""
        self.flows += 1
        try:
            yield self.name.encode()
            await self.go_on.wait()
            yield self.name.encode()
        finally:
            self.flows -= 1


class Controller:
    """The controller, in a process of its own."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.port = free_port()
        self.settings = settings
        self.process = None
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}",
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self.stub = mesh_pb2_grpc.MeshServiceStub(self.channel)

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def spawn(self):
        flags = {
            "grpc_port": self.port,
            "metrics_port": 0,
            "traces_port": 0,
            "objects": f"{self.folder / 'objects'},{self.folder / 'workloads'}",
            "state_file": self.folder / "state" / "mesh.sqlite",
            "traces_file": self.folder / "traces.sqlite",
            "file_interval_s": 0.05,
            "settle_s": 1,
            "drain_hold_s": 0,
            "envoy_admin_files": self.folder / "ingress.admin",
            **self.settings,
        }
        with (self.folder / "controller.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tidegate.mesh.control"),
                    *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items()),
                ],
                stdout=log,
                stderr=log,
            )

    async def start(self):
        self.spawn()
        await until(self._serves)

    async def _serves(self):
        assert self.process.poll() is None, self.log
        try:
            await self.stub.GetStatus(mesh_pb2.GetStatusRequest())
        except grpc.aio.AioRpcError:
            return False
        return True

    @property
    def log(self):
        return (self.folder / "controller.log").read_text()

    def events(self):
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    async def kill(self):
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    async def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    async def status(self, *, count=False):
        return await self.stub.GetStatus(mesh_pb2.GetStatusRequest(count_requests=count))

    def shifting(self, weights=None, *, host="vision", deadline_s=None, **fields):
        """Begins a shift; returns its stream."""
        request = mesh_pb2.ShiftRequest(
            host=host,
            weights=[
                mesh_pb2.SubsetWeight(subset=name, weight=weight)
                for name, weight in (weights or {}).items()
            ],
            **fields,
        )
        if deadline_s is not None:
            request.deadline.FromTimedelta(timedelta(seconds=deadline_s))
        return self.stub.Shift(request)

    async def shift(self, weights=None, **fields):
        """Shifts, and returns the messages; raises the error if it fails."""
        return [each async for each in self.shifting(weights, **fields)]

    async def reset(self, **fields):
        """Undoes every shift, and returns the messages."""
        return [each async for each in self.stub.Reset(mesh_pb2.ResetRequest(**fields))]

    async def refused(self, weights=None, **fields):
        """Makes a shift that fails; returns the error and the messages before it."""
        told = []
        try:
            async for each in self.shifting(weights, **fields):
                told.append(each)
        except grpc.aio.AioRpcError as error:
            return error, told
        pytest.fail(f"the shift was made: {told}")


class Mesh:
    """Everything that a test uses."""

    def __init__(self, folder):
        self.folder = folder
        self.objects = folder / "objects"
        self.workloads = folder / "workloads"
        self.objects.mkdir()
        self.workloads.mkdir()
        self.port = free_port()
        self.backends = {}
        self.controller = None
        self.admin = None
        self.envoy_pid = None
        self._envoys = contextlib.AsyncExitStack()
        self._channels = {}

    async def add_backend(self, name):
        backend = self.backends[name] = Backend(name)
        await backend.server.start()
        return backend

    def write(self, *objects, name="mesh.yaml"):
        path = self.objects / name
        draft = path.with_name(".draft")
        draft.write_text(text(*objects))
        draft.replace(path)

    def workload(self, backend, version):
        """Registers a server as the supervisor does."""
        entry = istio(
            "WorkloadEntry",
            f"w-{backend.name}",
            {
                "address": "127.0.0.1",
                "ports": {"main": backend.port},
                "labels": {"app": "vision", "version": version},
            },
        )
        draft = self.workloads / ".draft"
        draft.write_text(text(entry))
        draft.replace(self.workloads / f"{backend.name}.yaml")

    def vision(
        self, *http, subsets=("v1", "v2"), backends=("v1", "v2"), annotations=None, hosts=("*",)
    ):
        """Objects of a host with subsets and one route, through the ingress."""
        ports = {name: self.backends[name].port for name in backends}
        return (
            gateway(self.port, hosts),
            entry(ports),
            rule(subsets=subsets),
            virtual(*http, annotations=annotations),
        )

    @contextlib.asynccontextmanager
    async def envoy(self, node_id="ingress"):
        admin_file = self.folder / f"{node_id}.admin"
        with (self.folder / f"{node_id}.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tidegate.mesh.envoy", "--concurrency=1"),
                    *(f"--controller={self.controller.address}", f"--node-id={node_id}"),
                    *(f"--admin-file={admin_file}",),
                    f"--bootstrap-file={self.folder / f'{node_id}.json'}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            await until(lambda: admin_file.exists() and admin_file.read_text())
            admin = Admin(admin_file.read_text())
            self.envoy_pid = process.pid
            await until(admin.is_live)
            yield admin
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, WAIT_S)

    async def status_is(self, condition):
        """Waits until a condition holds for the status; returns the status."""

        async def look():
            status = await self.controller.status()
            return condition(status) and status

        return await until(look)

    async def stage_is(self, stage):
        await self.status_is(lambda status: status.transition.stage == stage)

    async def endpoint_is(self, backend, state):
        await self.status_is(
            lambda status: any(
                (each.address, each.state) == (backend.address, state) for each in status.endpoints
            )
        )

    async def clusters(self, subset):
        """The endpoints that Envoy has of a subset."""
        found = await self.admin.hosts()
        return {
            host.address
            for name, hosts in found.items()
            if name.split("|")[2:3] == [subset]
            for host in hosts
        }

    async def envoy_has(self, backend, *, healthy):
        """Waits until Envoy has an endpoint and considers it healthy, or not."""
        host = HostStatus(backend.address, healthy)
        await until(lambda: self._in_envoy(lambda hosts: host in hosts))

    async def envoy_lost(self, backend):
        """Waits until Envoy has forgotten an endpoint."""

        def gone(hosts):
            return backend.address not in {host.address for host in hosts}

        await until(lambda: self._in_envoy(gone))

    async def _in_envoy(self, condition):
        found = await self.admin.hosts()
        return condition(
            {host for name, hosts in found.items() if name.startswith("out") for host in hosts}
        )

    async def attach(self, node, *, answers=True):
        """A proxy that acknowledges its first virtual hosts; the test answers for later ones."""
        proxy = Proxy(self.controller.channel, delta=True, node=node)
        await proxy.send(ROUTE, f"http.{self.port}")
        await proxy.take()
        await proxy.send(VIRTUAL_HOST)
        first = await proxy.read()
        if answers:
            await proxy.ack(first)
        return proxy

    def channel(self):
        options = [("grpc.default_authority", DOMAIN), ("grpc.enable_retries", 0)]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=options)

    async def say(self, channel, *metadata):
        call = channel.unary_unary(f"/{SERVICE}/Say")
        return (await call(b"", metadata=metadata, timeout=WAIT_S)).decode()

    def flow(self, channel, *metadata):
        return channel.unary_stream(f"/{SERVICE}/Flow")(b"", metadata=metadata)

    @contextlib.asynccontextmanager
    async def load(self, callers=4):
        """Calls all the time; yields the counts of answers and failures."""
        taken = Load()
        async with self.channel() as channel:
            stop = asyncio.Event()

            async def call_on():
                while not stop.is_set():
                    try:
                        taken.answers[await self.say(channel)] += 1
                    except grpc.aio.AioRpcError as error:
                        taken.failures[f"{error.code().name}: {error.details()}"] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(callers):
                    group.create_task(call_on())
                try:
                    yield taken
                finally:
                    stop.set()


class Load:
    def __init__(self):
        self.answers = Counter()
        self.failures = Counter()

    async def only(self, *names):
        """Checks that only these servers answer calls that begin from now on."""
        self.answers.clear()
        await self.some(20)
        self.answers.clear()
        await self.some(100)
        assert set(self.answers) == set(names)

    async def comes_to(self, *names):
        """Waits until only these servers answer."""

        async def are_alone():
            self.answers.clear()
            await self.some(100)
            return set(self.answers) == set(names)

        await until(are_alone)

    async def some(self, count=50):
        """Waits until that many more calls have been answered."""
        wanted = self.answers.total() + count
        await until(lambda: self.failures or self.answers.total() >= wanted)


@contextlib.asynccontextmanager
async def made(folder):
    """Servers v1 and v2, and a controller that does not run yet."""
    mesh = Mesh(folder)
    mesh.controller = Controller(folder)
    for name in ("v1", "v2"):
        await mesh.add_backend(name)
    try:
        yield mesh
    finally:
        await mesh.controller.channel.close()
        if mesh.controller.process is not None and mesh.controller.process.poll() is None:
            await mesh.controller.kill()
        for backend in mesh.backends.values():
            await backend.server.stop(None)


@contextlib.asynccontextmanager
async def started(mesh):
    """The mesh with everything on v1, controller and Envoy running."""
    mesh.write(*mesh.vision({"route": [to("v1", 100)]}))
    await mesh.controller.start()
    async with mesh.envoy() as admin:
        mesh.admin = admin
        yield mesh


@pytest_asyncio.fixture
async def mesh(tmp_path):
    """A mesh of which only the servers run."""
    async with made(tmp_path) as mesh:
        yield mesh


@pytest_asyncio.fixture
async def serving(mesh):
    """A mesh that runs."""
    async with started(mesh):
        yield mesh


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory):
    """A mesh that runs for all tests of a module."""
    async with made(tmp_path_factory.mktemp("mesh")) as mesh, started(mesh):
        yield mesh


@pytest_asyncio.fixture(loop_scope="module")
async def shared(running):
    """The mesh of the module with everything on v1 again."""
    for backend in running.backends.values():
        backend.health.set_all(True)
    running.write(*running.vision({"route": [to("v1", 100)]}))
    await running.status_is(lambda status: not status.problems and not status.transition.id)
    await running.controller.reset(force=True)
    await running.status_is(_is_at_first)
    return running


def _is_at_first(status):
    return (
        len(status.routes) == 1
        and [(each.subset, each.share) for each in status.routes[0].destinations] == [("v1", 1.0)]
        and not status.transition.id
        and not status.problems
        and not status.shifted_files
        and [each.node_id for each in status.proxies] == ["ingress"]
        and all(each.state == mesh_pb2.ENDPOINT_STATE_HEALTHY for each in status.endpoints)
    )
