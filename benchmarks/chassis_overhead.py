"""Measures the overhead of the chassis: an empty unary call on plain grpc.aio and on the chassis.

Each server is a separate process on uvloop. h2load (package nghttp2-client) calls the servers in
turns, so a drift of the machine affects all of them alike. Compare the server's CPU time per call;
the throughput also depends on the load generator.

    python benchmarks/chassis_overhead.py [--calls 20000] [--rounds 5] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import grpc
import psutil
import uvloop
from google.protobuf.empty_pb2 import Empty
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tidegate.chassis import ChassisSettings, Health, run

SERVICE = "tidegate.benchmark.Nothing"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"


@dataclass(frozen=True)
class Variant:
    """A server and the calls made to it.

    Attributes:
        name: The name in the table.
        flags: Flags of the chassis; None for plain grpc.aio.
        headers: Headers of the calls.
    """

    name: str
    flags: tuple[str, ...] | None
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """Medians over the rounds.

    Attributes:
        name: The variant's name.
        calls_per_s: Throughput.
        cpu_us_per_call: CPU time of the server, in microseconds.
    """

    name: str
    calls_per_s: float
    cpu_us_per_call: float


async def do_nothing(request: Empty, context: grpc.aio.ServicerContext) -> Empty:
    """Returns the request."""
    del context
    return request


def register(server: grpc.aio.Server) -> None:
    """Adds the one method."""
    handler = grpc.unary_unary_rpc_method_handler(
        do_nothing, Empty.FromString, Empty.SerializeToString
    )
    generic = grpc.method_handlers_generic_handler(SERVICE, {"Do": handler})
    server.add_generic_rpc_handlers((generic,))


class NothingApplication:
    """The application on the chassis."""

    service_names = (SERVICE,)

    def __init__(self, settings: ChassisSettings) -> None:
        del settings

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the one method."""
        register(server)

    @asynccontextmanager
    async def run(self, health: Health):  # noqa: ANN201
        """Serves at once."""
        health.set_all(True)
        yield


async def serve_plain() -> None:
    """Serves on grpc.aio alone."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"grpc_port": port}), file=sys.stderr, flush=True)
    await server.wait_for_termination()


class SpanSink(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that discards spans."""

    async def Export(self, request, context):  # noqa: ANN001, ANN201, N802
        """Accepts spans."""
        del request, context
        return trace_service_pb2.ExportTraceServiceResponse()


@asynccontextmanager
async def started(variant: Variant):  # noqa: ANN201
    """Runs the server of a variant; yields its process and port."""
    arguments = ("--plain",)
    if variant.flags is not None:
        arguments = ("--chassis", *variant.flags, "--grpc-port=0", "--metrics-port=0")
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments, stderr=subprocess.PIPE
    )
    port = json.loads(await process.stderr.readline())["grpc_port"]
    drained = asyncio.create_task(process.stderr.read())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/{SERVICE}/Do", Empty.SerializeToString, Empty.FromString)
            await call(Empty(), wait_for_ready=True)
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        await process.wait()
        await drained


async def measure(
    process: psutil.Process, port: int, variant: Variant, calls: int, body: Path
) -> tuple[float, float]:
    """Makes calls; returns calls per second and CPU microseconds per call."""
    headers = ("content-type: application/grpc", "te: trailers", *variant.headers)
    before = process.cpu_times()
    load = await asyncio.create_subprocess_exec(
        *("h2load", f"-n{calls}", "-c4", "-m16", "-t1", f"-d{body}"),
        *(argument for header in headers for argument in ("-H", header)),
        f"http://127.0.0.1:{port}/{SERVICE}/Do",
        stdout=subprocess.PIPE,
    )
    output = (await load.communicate())[0].decode()
    after = process.cpu_times()
    if f"{calls} succeeded" not in output:
        raise RuntimeError(f"calls failed:\n{output}")
    spent_s = after.user + after.system - before.user - before.system
    match = re.search(r"([\d.]+) req/s", output)
    return float(match[1]), spent_s / calls * 1e6


async def compare(calls: int, rounds: int) -> list[Result]:
    """Runs all variants in turns."""
    sink = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(SpanSink(), sink)
    collector = f"--otlp-endpoint=http://127.0.0.1:{sink.add_insecure_port('127.0.0.1:0')}"
    await sink.start()
    variants = [
        Variant("plain grpc.aio", None),
        Variant("chassis", ()),
        Variant(
            "chassis, traced, caller did not sample",
            (collector,),
            (f"traceparent: {TRACEPARENT.format(flags='00')}",),
        ),
        Variant(
            "chassis, traced, every call recorded",
            (collector,),
            (f"traceparent: {TRACEPARENT.format(flags='01')}",),
        ),
    ]
    samples: dict[str, list[tuple[float, float]]] = {each.name: [] for each in variants}
    async with AsyncExitStack() as stack:
        body = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "body"
        body.write_bytes(bytes(5))
        servers = [await stack.enter_async_context(started(each)) for each in variants]
        for _ in range(rounds):
            for variant, (process, port) in zip(variants, servers, strict=True):
                sample = await measure(process, port, variant, calls, body)
                samples[variant.name].append(sample)
    await sink.stop(None)
    return [
        Result(name, *(statistics.median(column) for column in zip(*taken, strict=True)))
        for name, taken in samples.items()
    ]


def environment() -> dict[str, str]:
    """Describes the machine and the packages."""
    return {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "uvloop": version("uvloop"),
        "cores": str(os.cpu_count()),
        "machine": platform.machine(),
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--calls", type=int, default=20_000, help="calls in a round (default 20000)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every server (default 5)")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    arguments = parser.parse_args()
    if shutil.which("h2load") is None:
        parser.error("h2load is not installed (Debian: nghttp2-client)")
    results = asyncio.run(compare(arguments.calls, arguments.rounds))
    plain = results[0]
    print(" · ".join(f"{key} {value}" for key, value in environment().items()))
    print(f"{'server':<42}{'calls/s':>10}{'CPU µs/call':>14}{'more µs':>10}{'CPU ratio':>12}")
    for each in results:
        more = each.cpu_us_per_call - plain.cpu_us_per_call
        ratio = each.cpu_us_per_call / plain.cpu_us_per_call
        print(
            f"{each.name:<42}{each.calls_per_s:>10.0f}{each.cpu_us_per_call:>14.1f}"
            f"{more:>10.1f}{ratio:>12.2f}"
        )
    if arguments.json:
        report = {"environment": environment(), "results": [asdict(each) for each in results]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--plain"]:
            uvloop.run(serve_plain())
        case ["--chassis", *flags]:
            sys.exit(run(NothingApplication, ChassisSettings.from_command_line(flags)))
        case _:
            main()
