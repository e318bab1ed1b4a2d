"""Soak test: ten minutes of mixed load; is memory flat, and is every status code expected?

It starts the vision and the LLM server and makes the calls of real clients: photographs, float
tensors, streams, damaged files, deadlines that are too short, cancelled and abandoned calls, chats
that are read to the end and chats that are left after a few tokens. It counts the status code of
every call. A status that is not expected of its kind of call fails the run. It samples the resident
memory of each server with its child processes, and fits a line to the samples after the warm-up.

    python benchmarks/soak.py [--minutes 10] [--models models]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import psutil

from tidegate.llm.v1 import llm_pb2, llm_pb2_grpc
from tidegate.vision.v1 import vision_pb2, vision_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

OK, CANCELLED = grpc.StatusCode.OK, grpc.StatusCode.CANCELLED
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
LATE = grpc.StatusCode.DEADLINE_EXCEEDED
LOADED_WITHIN_S = 300.0
SAMPLE_EVERY_S = 2.0
WARM_UP_SHARE = 0.3


@dataclass(frozen=True)
class Server:
    """A running server."""

    name: str
    process: psutil.Process
    channel: grpc.aio.Channel

    def resident_mib(self) -> float:
        """Returns the memory of the server and its children in MiB; shared pages count for each."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_info().rss for each in family) / 2**20


@dataclass
class CallCounts:
    """Counts calls by their kind and status code.

    Attributes:
        outcomes: Calls by kind and status code.
        unexpected: Descriptions of the calls with an unexpected result.
    """

    outcomes: Counter[tuple[str, grpc.StatusCode]] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)

    def count(self, kind: str, code: grpc.StatusCode, expected: set[grpc.StatusCode]) -> None:
        """Counts a call."""
        self.outcomes[kind, code] += 1
        if code not in expected:
            self.unexpected.append(f"{kind}: {code.name}")


@asynccontextmanager
async def served(name: str, *flags: str) -> AsyncIterator[Server]:
    """Runs ``python -m tidegate.serving.<name>`` and waits until it serves."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log = Path(folder) / "ports.json", Path(folder) / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"tidegate.serving.{name}", "--grpc-port=0"),
                *("--metrics-port=0", f"--port-file={port_file}", *flags),
                stderr=output,
                stdout=output,
            )
        try:
            async with asyncio.timeout(LOADED_WITHIN_S):
                while not port_file.exists():
                    if process.returncode is not None:
                        raise SystemExit(f"{name} did not start:\n{log.read_text()}")
                    await asyncio.sleep(0.1)
            port = json.loads(port_file.read_text())["grpc"]
            options = [("grpc.max_receive_message_length", 64 << 20)]
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
                async with asyncio.timeout(LOADED_WITHIN_S):
                    await until_serving(channel, process, log)
                yield Server(name, psutil.Process(process.pid), channel)
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def until_serving(
    channel: grpc.aio.Channel, process: asyncio.subprocess.Process, log: Path
) -> None:
    """Waits until the server's health is SERVING."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(channel)
    while process.returncode is None:
        answer = await stub.Check(health_pb2.HealthCheckRequest())
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return
        await asyncio.sleep(0.2)
    raise SystemExit(f"the server ended while loading:\n{log.read_text()}")


def vision_calls(
    server: Server, photograph: bytes, counts: CallCounts, rng: random.Random
) -> list[Callable[[], Awaitable[None]]]:
    """Returns the kinds of calls to the vision server."""
    stub = vision_pb2_grpc.VisionServiceStub(server.channel)
    versions = ["1-fp32", "1-bf16", "1-int8"]
    tensor = np.zeros((3, 224, 224), dtype="<f4").tobytes()

    def request(*images: vision_pb2.Image) -> vision_pb2.ClassifyRequest:
        return vision_pb2.ClassifyRequest(
            model="efficientnet-lite0", version=rng.choice(versions), images=images
        )

    whole = vision_pb2.Image(encoded=photograph)
    ready = vision_pb2.Image(tensor=vision_pb2.FloatTensor(data=tensor, shape=[3, 224, 224]))

    async def unary(kind: str, images: list[vision_pb2.Image], allowed: set[grpc.StatusCode],
                    timeout_s: float = 20.0) -> None:  # fmt: skip
        call = stub.Classify(request(*images), timeout=timeout_s)
        counts.count(kind, await call.code(), allowed)

    async def cancelled() -> None:
        call = stub.Classify(request(whole, whole, whole), timeout=20)
        await asyncio.sleep(rng.uniform(0, 0.05))
        call.cancel()
        counts.count("classify, cancelled", await call.code(), {OK, CANCELLED})

    async def stream(leave: bool) -> None:
        call = stub.ClassifyStream(timeout=60)
        for number in range(6):
            await call.write(
                vision_pb2.ClassifyStreamRequest(request_id=str(number), request=request(whole))
            )
        if leave:
            await call.read()
            call.cancel()
            counts.count("stream, left", await call.code(), {OK, CANCELLED})
            return
        await call.done_writing()
        ids = [answer.request_id async for answer in call]
        if ids != [str(number) for number in range(6)]:
            counts.unexpected.append(f"stream: answers out of order: {ids}")
        counts.count("stream", await call.code(), {OK})

    def cut() -> vision_pb2.Image:
        return vision_pb2.Image(encoded=photograph[: rng.randrange(1, len(photograph) - 100)])

    return [
        lambda: unary("classify", [whole], {OK}),
        lambda: unary("classify, 4 images", [whole] * 4, {OK}),
        lambda: unary("classify, tensor", [ready], {OK}),
        lambda: unary("classify, cut file", [cut()], {INVALID}),
        lambda: unary("classify, 5 ms", [whole] * 4, {OK, LATE, EXHAUSTED}, 0.005),
        cancelled,
        lambda: stream(leave=False),
        lambda: stream(leave=True),
    ]


def llm_calls(
    server: Server, counts: CallCounts, rng: random.Random
) -> list[Callable[[], Awaitable[None]]]:
    """Returns the kinds of calls to the LLM server."""
    stub = llm_pb2_grpc.LlmServiceStub(server.channel)

    def request(tokens: int, temperature: float = 1.0) -> llm_pb2.ChatRequest:
        sampling = llm_pb2.SamplingParameters(max_tokens=tokens, temperature=temperature)
        number = rng.randrange(10**6)
        message = llm_pb2.Message(role=llm_pb2.ROLE_USER, content=f"Say something about {number}.")
        return llm_pb2.ChatRequest(
            messages=[message], options=llm_pb2.GenerationOptions(sampling=sampling)
        )

    async def read() -> None:
        call = stub.Chat(request(24), timeout=120)
        pieces = [piece async for piece in call]
        if not pieces or not pieces[-1].HasField("finish"):
            counts.unexpected.append("chat: the last message has no finish")
        counts.count("chat", await call.code(), {OK})

    async def left() -> None:
        call = stub.Chat(request(200), timeout=120)
        for _ in range(rng.randrange(1, 6)):
            await call.read()
        call.cancel()
        counts.count("chat, left", await call.code(), {OK, CANCELLED})

    async def late() -> None:
        call = stub.Chat(request(200), timeout=rng.uniform(0.05, 0.5))
        try:
            async for _ in call:
                pass
        except grpc.aio.AioRpcError:
            pass
        counts.count("chat, short deadline", await call.code(), {OK, LATE})

    async def refused() -> None:
        call = stub.Chat(request(10, temperature=9.0), timeout=60)
        with suppress(grpc.aio.AioRpcError):
            await call.read()
        counts.count("chat, bad temperature", await call.code(), {INVALID})

    return [read, left, late, refused]


async def repeat(
    calls: list[Callable[[], Awaitable[None]]], until_s: float, rng: random.Random
) -> None:
    """Runs one client: one call after another, each of a random kind."""
    while time.monotonic() < until_s:
        await rng.choice(calls)()


async def sample(server: Server, until_s: float) -> list[tuple[float, float]]:
    """Samples memory; returns pairs of seconds since the start and MiB."""
    began_s, samples = time.monotonic(), []
    while time.monotonic() < until_s:
        samples.append((time.monotonic() - began_s, server.resident_mib()))
        await asyncio.sleep(SAMPLE_EVERY_S)
    return samples


def report(name: str, samples: list[tuple[float, float]]) -> dict[str, float]:
    """Prints and returns the slope of memory after the warm-up."""
    steady = samples[int(len(samples) * WARM_UP_SHARE) :]
    slope, _ = statistics.linear_regression(*zip(*steady, strict=True))
    first, last = steady[0][1], steady[-1][1]
    print(
        f"{name:8} memory {first:8.1f} MiB after warm-up, {last:8.1f} MiB at the end; "
        f"slope {slope * 60:+.2f} MiB/min over {steady[-1][0] - steady[0][0]:.0f} s"
    )
    return {"first_mib": first, "last_mib": last, "slope_mib_per_minute": slope * 60}


async def soak(minutes: float, models: Path, clients: int) -> int:
    """Runs the soak test; returns the exit status."""
    rng, counts = random.Random(1), CallCounts()
    from tidegate.serving.build.photographs import write_samples

    with tempfile.TemporaryDirectory() as folder:
        write_samples(Path(folder))
        photograph = (Path(folder) / "cat.jpg").read_bytes()
    async with AsyncExitStack() as stack:
        vision, llm = await asyncio.gather(
            stack.enter_async_context(served("vision", f"--model-repository={models}")),
            stack.enter_async_context(served("llm", f"--model-repository={models}")),
        )
        until_s = time.monotonic() + minutes * 60
        async with asyncio.TaskGroup() as group:
            memory = {
                server.name: group.create_task(sample(server, until_s)) for server in (vision, llm)
            }
            for _ in range(clients):
                group.create_task(
                    repeat(vision_calls(vision, photograph, counts, rng), until_s, rng)
                )
                group.create_task(repeat(llm_calls(llm, counts, rng), until_s, rng))
        for (kind, code), count in sorted(counts.outcomes.items(), key=str):
            print(f"{kind:24} {code.name:20} {count:8}")
        slopes = {name: report(name, task.result()) for name, task in memory.items()}
    print(f"unexpected results: {len(counts.unexpected)}")
    for each in counts.unexpected[:20]:
        print(f"  {each}")
    results = Path("bench-results")
    results.mkdir(exist_ok=True)
    outcomes = {f"{kind}: {code.name}": count for (kind, code), count in counts.outcomes.items()}
    (results / "soak.json").write_text(
        json.dumps({"minutes": minutes, "outcomes": outcomes, "memory": slopes}, indent=2) + "\n"
    )
    return 1 if counts.unexpected else 0


def main() -> int:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--clients", type=int, default=4, help="clients of each server")
    given = parser.parse_args()
    return asyncio.run(soak(given.minutes, given.models, given.clients))


if __name__ == "__main__":
    sys.exit(main())
