"""Measures what ``tidegate trace analyse`` costs: 100,000 spans are to take less than 10 s.

The bound is on processor time, so that other programs on the machine do not matter.

    make bench-traces                      # under two minutes
    python benchmarks/traces/run.py --quick    # a tenth of the spans

It makes calls of a vision server through Envoy, eight spans each, of two versions, and puts them
into servers that speak Jaeger's API: the store of the mesh's controller, and Jaeger itself if
``make servers`` has built it. Then it runs the command, as a user would, with a comparison and a
flame graph, and measures wall time, processor time and memory of the command. It does the same
without a server, by the functions alone. The benchmark prints a table, writes
``bench-results/traces.json``, and fails if the bound is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from rich.console import Console
from rich.table import Table

sys.path += [
    str(Path(__file__).resolve().parents[2] / each)
    for each in ("benchmarks", "tests/doubles", "tools")
]
from made_traces import many_calls
from otlp_spans import exported
from running_jaeger import jaeger, jaeger_program

from reporting import Bound, cpu_name, print_bounds
from tidegate.mesh.traces.intake import TraceLimits
from tidegate.mesh.traces.jaeger_api import jaeger_api
from tidegate.mesh.traces.store import TraceStore
from tidegate.trace_analysis.analysis import Analysis, Question

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
SPANS_PER_CALL: Final = 8
BOUND_S: Final = 10.0
_BATCH: Final = 500
_ANALYSE: Final = ("trace", "analyse", "--service", "tidegate-vision", "--since", "1d")
_PROGRAM: Final = (sys.executable, "-c", "from tidegate.cli.main import main; main()")


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table.

    Attributes:
        what: Where the spans came from.
        spans: Number of spans.
        wall_s: Wall time, in seconds.
        processor_s: Processor time of the command, in seconds.
        memory_mib: Its largest memory; None where it is not measured.
    """

    what: str
    spans: int
    wall_s: float
    processor_s: float
    memory_mib: float | None = None


def main() -> None:
    """Runs the benchmark.

    Raises:
        SystemExit: The bound is not met.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the spans")
    calls = 100_000 // SPANS_PER_CALL // (10 if parser.parse_args().quick else 1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console(highlight=False)
    console.print(
        f"{calls * SPANS_PER_CALL:,} spans of {calls:,} calls on {cpu_name()}, {os.cpu_count()}"
        f" cores, load {os.getloadavg()[0]:.1f}; Python {sys.version.split()[0]}"
    )
    start_us = int(time.time() * 1e6) - 3600 * 10**6
    with tempfile.TemporaryDirectory() as folder:
        measured = [
            _functions(calls),
            asyncio.run(_with_store(calls, start_us, Path(folder))),
            *_with_jaeger(calls, start_us, Path(folder)),
        ]
    console.print(_table(measured))
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    (results / "traces.json").write_text(
        json.dumps({"cpu": cpu_name(), "measured": [asdict(each) for each in measured]}, indent=2)
    )
    bounds = [
        Bound(
            f"{each.spans:,} spans from {each.what} in {each.processor_s:.1f} s of the processor,"
            f" below {BOUND_S:g} s",
            each.processor_s < BOUND_S,
        )
        for each in measured
    ]
    print_bounds(console, bounds)
    if not all(each.met for each in bounds):
        sys.exit(1)


def _functions(calls: int) -> Measured:
    """Measures the functions alone: spans in, report and flame graph out."""
    traces = list(many_calls(calls))
    began_s, began_processor_s = time.perf_counter(), time.process_time()
    analysis = Analysis(Question(service="tidegate-vision", compare=("v1", "v2")))
    analysis.add_all(traces)
    analysis.report()
    analysis.flame_graph()
    return Measured(
        "the functions alone",
        calls * SPANS_PER_CALL,
        time.perf_counter() - began_s,
        time.process_time() - began_processor_s,
    )


async def _with_store(calls: int, start_us: int, folder: Path) -> Measured:
    """Measures the command with the store of the mesh's controller."""
    limits = TraceLimits(max_traces=2 * calls, max_bytes=2**31)
    async with TraceStore(folder / "traces.sqlite", limits) as store:
        for request in _requests(calls, start_us):
            await store.add(request)
        async with jaeger_api(store, port=0) as port:
            url = f"http://127.0.0.1:{port}"
            return await asyncio.to_thread(_command, "the controller's store", calls, url, folder)


def _with_jaeger(calls: int, start_us: int, folder: Path) -> Iterator[Measured]:
    """Measures the command with Jaeger, if it is built."""
    if not jaeger_program().exists():
        print("no Jaeger; `make servers` builds it", file=sys.stderr)
        return
    with jaeger(folder) as server, grpc.insecure_channel(server.otlp_address) as channel:
        stub = trace_service_pb2_grpc.TraceServiceStub(channel)
        for request in _requests(calls, start_us):
            stub.Export(request)
        yield _command("Jaeger 2", calls, server.url, folder)


def _requests(calls: int, start_us: int) -> Iterator[trace_service_pb2.ExportTraceServiceRequest]:
    """Yields the spans of the calls, some calls in each request."""
    batch = trace_service_pb2.ExportTraceServiceRequest()
    for number, made in enumerate(many_calls(calls, every_us=10_000, begin_us=start_us), start=1):
        for request in exported(made):
            batch.MergeFrom(request)
        if number % _BATCH == 0:
            yield batch
            batch = trace_service_pb2.ExportTraceServiceRequest()
    yield batch


def _command(what: str, calls: int, url: str, folder: Path) -> Measured:
    """Runs the command once."""
    flame = folder / "calls.speedscope.json"
    command = (
        *(*_PROGRAM, *_ANALYSE, "--url", url, "--compare", "v1", "v2"),
        *("--output", "json", "--flame", str(flame)),
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=True)
    wall_s = time.perf_counter() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (report,) = json.loads(done.stdout)["services"]
    assert report["calls"] == calls, f"{report['calls']} of {calls} calls were read"
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(what, report["spans"], wall_s, processor_s, after.ru_maxrss / 1024)


def _table(measured: list[Measured]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("SPANS FROM")
    for title in ("SPANS", "WALL", "PROCESSOR", "SPANS PER SECOND", "MEMORY"):
        table.add_column(title, justify="right")
    for each in measured:
        table.add_row(
            *(each.what, f"{each.spans:,}", f"{each.wall_s:.2f} s", f"{each.processor_s:.2f} s"),
            f"{each.spans / each.wall_s:,.0f}",
            "" if each.memory_mib is None else f"{each.memory_mib:.0f} MiB",
        )
    return table


if __name__ == "__main__":
    main()
