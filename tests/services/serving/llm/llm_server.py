"""Runs the LLM server as a process, and reads its state from outside."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc

SERVICE = "tidegate.llm.v1.LlmService"
CONTEXT_TOKENS = 1024
MAX_RUNNING = 8
MAX_WAITING = 8


@dataclass
class LlmServer:
    """A server process."""

    process: psutil.Popen
    port: int
    metrics_port: int
    log: Path

    @classmethod
    def start(cls, folder, *arguments):
        """Starts a server and returns while it loads; see `wait_until_loaded`."""
        port_file = folder / "ports.json"
        log = folder / "log"
        command = [
            *(sys.executable, "-m", "tidegate.serving.llm"),
            *("--grpc-port", "0", "--metrics-port", "0", "--port-file", str(port_file)),
            *("--max-context-tokens", str(CONTEXT_TOKENS), *arguments),
        ]
        with log.open("wb") as stderr:
            process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        until = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.05)
        ports = json.loads(port_file.read_text())
        return cls(process, ports["grpc"], ports["metrics"], log)

    def wait_until_loaded(self):
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=240
            )
            try:
                states = [next(watch).status]
                if states[-1] != health_pb2.HealthCheckResponse.SERVING:
                    states.append(next(watch).status)
            except grpc.RpcError as error:
                raise AssertionError(f"{error}\n{self.log.read_text()[-4000:]}") from error
            watch.cancel()
        assert states[-1] == health_pb2.HealthCheckResponse.SERVING, self.log.read_text()[-4000:]

    def stop(self):
        """Ends the process and its child processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = self.process.children(recursive=True)
            self.process.terminate()
            _, alive = psutil.wait_procs([self.process, *children], timeout=30)
            for each in alive:
                each.kill()

    def client(self, **options):
        return LlmClient(self, options)

    def engine_process(self):
        children = self.process.children(recursive=True)
        return next(each for each in children if "EngineCore" in each.name())

    async def is_ready(self):
        """Returns the answer of the readiness probe."""

        def probe():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/readyz"):
                    return True
            except urllib.error.HTTPError:
                return False

        return await asyncio.to_thread(probe)

    async def metric(self, name, **labels):
        """Returns the sum of a metric's samples that have these labels."""

        def scrape():
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
                return page.read().decode()

        page = await asyncio.to_thread(scrape)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in page.splitlines()
            if line.startswith((f"{name} ", f"{name}{{")) and all(each in line for each in wanted)
        )

    async def until_metric(self, name, wanted, **labels):
        """Waits until a metric has a value; the test's timeout ends the wait."""
        while await self.metric(name, **labels) != wanted:
            await asyncio.sleep(0.02)

    async def until_idle(self):
        """Waits until vLLM's own metrics show no running and no waiting request."""
        await self.until_metric("vllm:num_requests_running", 0)
        await self.until_metric("vllm:num_requests_waiting", 0)


class LlmClient:
    """A client with short forms of requests."""

    def __init__(self, server, options):
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}",
            options=[("grpc.use_local_subchannel_pool", 1), *options.items()],
        )
        self.stub = llm_pb2_grpc.LlmServiceStub(self.channel)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        await self.channel.close()

    async def answer(self, text, **sampling):
        """Asks a question; returns the answer in one message."""
        request = llm_pb2.CompleteRequest(chat=chat(text, **sampling))
        return await self.stub.Complete(request)

    async def stream(self, text, **sampling):
        """Asks a question; returns the messages of the stream."""
        return [piece async for piece in self.stub.Chat(chat(text, **sampling))]


def chat(text, *, adapter="", **sampling):
    sampling.setdefault("max_tokens", 24)
    return llm_pb2.ChatRequest(
        messages=[llm_pb2.Message(role=llm_pb2.ROLE_USER, content=text)],
        options=llm_pb2.GenerationOptions(
            sampling=llm_pb2.SamplingParameters(**sampling), lora_adapter=adapter
        ),
    )


async def refusal(call):
    """Runs a call that must fail; returns its status code and its error details by type."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), details_of(error)
    raise AssertionError("the call did not fail")


def details_of(error):
    details = {}
    status = rpc_status.from_call(error)
    for each in status.details if status else ():
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
        ):
            if each.Is(kind.DESCRIPTOR):
                details[kind.DESCRIPTOR.name] = kind.FromString(each.value)
    return details


def fields(details):
    return [each.field for each in details["BadRequest"].field_violations]
