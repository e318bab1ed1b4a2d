"""Echo servers on the chassis, in this process and in child processes, and a client of them."""

import asyncio
import importlib.util
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from tidegate.chassis import running
from tidegate.chassis.settings import ChassisSettings

_ECHO = Path(__file__).with_name("echo_server.py")


@pytest.fixture(scope="session")
def echo():
    """The module of the echo server."""
    spec = importlib.util.spec_from_file_location("chassis_echo_server", _ECHO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class EchoClient:
    """Calls the echo server."""

    def __init__(self, channel, service):
        self.channel = channel
        self._service = service

    def _method(self, kind, name):
        return getattr(self.channel, kind)(
            f"/{self._service}/{name}", StringValue.SerializeToString, StringValue.FromString
        )

    def echo(self, text, **options):
        return self._method("unary_unary", "Echo")(StringValue(value=text), **options)

    def repeat(self, text, **options):
        return self._method("unary_stream", "Repeat")(StringValue(value=text), **options)

    def collect(self, *texts, **options):
        requests = [StringValue(value=text) for text in texts]
        return self._method("stream_unary", "Collect")(iter(requests), **options)

    def chat(self, *texts, **options):
        requests = [StringValue(value=text) for text in texts]
        return self._method("stream_stream", "Chat")(iter(requests), **options)

    async def call(self, kind, text, **options):
        """Makes a call of any kind and reads its response to the end."""
        call = getattr(self, kind)(text, **options)
        if kind in {"echo", "collect"}:
            return [(await call).value]
        return [message.value async for message in call]

    async def failure(self, kind, text, **options):
        """Makes a call that fails and returns its error."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(kind, text, **options)
        return caught.value


@pytest.fixture
def make_settings(monkeypatch):
    """Makes settings with free ports."""

    def make(model=ChassisSettings, **values):
        free = {"grpc_port": 0, "metrics_port": 0, "drain_hold_s": 0.01}
        return model(**(free | values))

    return make


@pytest.fixture
def serving(echo, make_settings):
    """Serves the echo application in this process; gives it, its server and a client."""

    @asynccontextmanager
    async def serve(application=None, **settings):
        application = application or echo.EchoApplication()
        async with (
            running(application, make_settings(**settings)) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
        ):
            yield application, server, EchoClient(channel, echo.SERVICE)

    return serve


@pytest.fixture
async def start_process(tmp_path):
    """Starts the echo server as a process and gives it with its ports; kills it at the end."""
    processes = []

    async def start(*flags, env=None):
        ports = tmp_path / f"ports-{len(processes)}.json"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(_ECHO),
            *("--grpc-port=0", "--metrics-port=0", f"--port-file={ports}", *flags),
            env=env,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        async with asyncio.timeout(30):
            lines = []
            while line := await process.stderr.readline():
                lines.append(json.loads(line))
                if lines[-1]["event"] == "listening":
                    break
            else:
                pytest.fail(f"the server did not start: {lines}")
        return process, json.loads(ports.read_text())

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def echo_client(echo):
    """Makes a client of a channel."""
    return lambda channel: EchoClient(channel, echo.SERVICE)


@pytest.fixture
def run_to_end():
    """Runs the echo server as a process until it ends; gives its exit code and log lines."""

    async def run(*flags):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(_ECHO), *flags, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(30):
            _, stderr = await process.communicate()
        return process.returncode, [json.loads(line) for line in stderr.splitlines()]

    return run
