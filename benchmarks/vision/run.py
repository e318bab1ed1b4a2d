"""Measures the vision server against a baseline loop and against its peers, on this machine.

    python benchmarks/vision/run.py            # about half an hour
    python benchmarks/vision/run.py --quick    # about nine minutes
    python benchmarks/vision/run.py --no-peers --rounds 5

A request carries a JPEG, a response the five best classes. 32 requests are in flight, then one at a
time. All servers serve the same model with the same decoding and the same engine.

Servers run one at a time and take turns, for some rounds. While a server is up, it and the baseline
loop (``baseline.py``) are measured alternately, in short turns. Each measurement of the server is
compared with the mean of the two baseline measurements around it, so that a drift of the machine,
which may exceed the difference of interest, affects both alike. The server is suspended while the
baseline runs, because some servers poll when they are idle.

The program prints a table and whether the bounds are met. It writes ``bench-results/vision.json``
and a plot beside it. It fails only when a server fails.

The minimal gRPC server (``minimal_grpc_server.py``) shows how much of the time of a single request
gRPC itself takes.

It needs ``h2load`` (Debian: nghttp2-client), the models that ``make models`` builds, and the peers
in an environment of their own: ``python -m venv .venv-peers``, then
``.venv-peers/bin/pip install --no-deps -r requirements/peers.txt``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import openvino as ov
from rich.console import Console
from rich.markup import escape

sys.path.append(str(Path(__file__).resolve().parents[1]))
import h2load
from measured_servers import (
    HttpPeer,
    MeasuredServer,
    MeasurementError,
    MinimalGrpcServer,
    OpenInferencePeer,
    Photo,
    Tidegate,
    peers,
    serving,
)
from processes import ROOT, suspended
from results import BASELINE, QUIET_CORES, Environment, Results, Sample, bounds, plot, table

from reporting import cpu_name, print_bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PRECISIONS = ("fp32", "bf16", "int8")
_BASELINE = Path(__file__).resolve().parent / "baseline.py"
_JPEG_QUALITY = 90
_SWEEP_S = 0.4
_LISTEN_S = 0.5
_BASELINE_TIMEOUT_S = 300
_OWN_PACKAGES = ("tidegate", "openvino", "simplejpeg", "opencv-python-headless", "grpcio", "uvloop")

_WIDTH = 120

# Wide enough for the table where the output goes to a file.
console = Console(width=None if sys.stdout.isatty() else _WIDTH)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    Attributes:
        models: The model repository.
        photo: The photograph that all servers classify.
        scratch: A folder for logs and request bodies.
        in_flight: Requests in flight under load.
        rounds: How often each server is started at each precision.
        turns: Measurements of each kind in a round, each between two of the baseline loop.
        seconds: The length of a measurement, under load and of single requests alike.
    """

    models: Path
    photo: Photo
    scratch: Path
    in_flight: int
    rounds: int
    turns: int
    seconds: int


def main() -> int:
    """Measures all servers; returns 1 when one failed, else 0."""
    given = _arguments()
    # Exit normally, so that the server that is up is stopped too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    peer_servers = () if given.no_peers else peers(str(given.peers_python))
    with tempfile.TemporaryDirectory(prefix="bench-vision-") as folder:
        scratch = Path(folder)
        plan = Plan(
            models=given.models.resolve(),
            photo=_photo(given.photo, scratch),
            scratch=scratch,
            in_flight=32,
            rounds=1 if given.quick else given.rounds,
            turns=1 if given.quick else given.turns,
            seconds=given.seconds,
        )
        environment = _environment(plan, given.peers_python, peer_servers)
        own = (Tidegate(sys.executable), MinimalGrpcServer(sys.executable))
        found = measure_all(plan, environment, (*own, *peer_servers))
    _report(found, given.output)
    return 1 if found.failures else 0


def measure_all(plan: Plan, environment: Environment, servers: Sequence[MeasuredServer]) -> Results:
    """Measures every server at every precision.

    Args:
        plan: How to measure.
        environment: The machine.
        servers: The servers, in the order of their turns.
    """
    settings: dict[str, str] = {}
    samples: dict[str, dict[str, list[Sample]]] = {}
    failures: list[str] = []
    for precision in PRECISIONS:
        samples[precision] = {name: [] for name in (BASELINE, *(each.name for each in servers))}
        try:
            setting = _best_setting(plan, f"1-{precision}")
            settings[precision] = f"{setting['arrangement']}, batch {setting['batch']}"
            with _baseline_loop(plan, f"1-{precision}", setting) as baseline:
                for turn in range(plan.rounds):
                    console.print(f"[dim]{precision}, round {turn + 1} of {plan.rounds}[/dim]")
                    failures += _round(
                        plan, f"1-{precision}", baseline, servers, samples[precision]
                    )
        except MeasurementError as error:
            failures.append(f"{precision}: {error}")
            console.print(f"[red]{escape(failures[-1])}[/red]")
    return Results(environment, settings, samples, failures)


def _round(
    plan: Plan,
    version: str,
    baseline: Callable[[str], float],
    servers: Sequence[MeasuredServer],
    samples: dict[str, list[Sample]],
) -> list[str]:
    """Measures each server once, except those that failed before. Returns the failures."""
    failures = []
    rounds_before = max(len(samples[each.name]) for each in servers)
    for each in servers:
        if len(samples[each.name]) < rounds_before:
            continue
        try:
            measured = _measure(plan, each, version, baseline)
        except MeasurementError as error:
            failures.append(f"{version}: {error}")
            console.print(f"[red]{escape(failures[-1])}[/red]")
            continue
        samples[each.name] += measured
        samples[BASELINE] += [each.baseline_sample() for each in measured]
        rates = ", ".join(
            f"{one.images_per_s:.0f}/{one.baseline_images_per_s:.0f}" for one in measured
        )
        times = ", ".join(f"{one.p50_ms:.2f}/{one.baseline_p50_ms:.2f}" for one in measured)
        console.print(f"  {each.name}/{BASELINE}: {rates} images/s; {times} ms alone")
    return failures


def _measure(
    plan: Plan, server: MeasuredServer, version: str, baseline: Callable[[str], float]
) -> list[Sample]:
    """Starts a server, measures it and the baseline loop alternately, and stops it."""
    other_cores = _busy_cores()
    with serving(server, plan.models, version, plan.photo, plan.scratch) as (target, process):

        def undisturbed(kind: str) -> float:
            with suspended(process):
                return baseline(kind)

        # Single requests first: after the load, a server may still work on cut-off requests.
        alone = _turns(plan, target, 1, partial(undisturbed, "alone"))
        loaded = _turns(plan, target, plan.in_flight, partial(undisturbed, "loaded"))
    return [
        Sample(
            images_per_s=under_load.requests_per_s,
            loaded_p50_ms=under_load.p50_ms,
            loaded_p99_ms=under_load.p99_ms,
            p50_ms=one.p50_ms,
            baseline_images_per_s=baseline_images_per_s,
            baseline_p50_ms=baseline_p50_ms,
            other_cores=other_cores,
        )
        for (baseline_p50_ms, one), (baseline_images_per_s, under_load) in zip(
            alone, loaded, strict=True
        )
    ]


def _turns(
    plan: Plan, target: h2load.Target, in_flight: int, baseline: Callable[[], float]
) -> list[tuple[float, h2load.LoadResult]]:
    """Loads a server; pairs each result with the mean of the baseline before and after it."""
    found, before = [], baseline()
    for _ in range(plan.turns):
        load = h2load.measure(target, in_flight=in_flight, seconds=plan.seconds)
        after = baseline()
        found.append(((before + after) / 2, load))
        before = after
    return found


@contextmanager
def _baseline_loop(
    plan: Plan, version: str, setting: dict[str, Any]
) -> Iterator[Callable[[str], float]]:
    """Runs the baseline loop in its own process, idle until a measurement is requested."""
    options = ["--arrangement", setting["arrangement"], "--batch", str(setting["batch"])]
    process = subprocess.Popen(
        [*_baseline_command(plan, version, plan.seconds), *options, "--answer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def measure(kind: str) -> float:
            print(kind, file=asked, flush=True)
            if not (line := answers.readline()):
                raise MeasurementError("the baseline loop ended")
            return float(line)

        if answers.readline().strip() != "ready":
            raise MeasurementError("the baseline loop did not start")
        try:
            yield measure
        finally:
            asked.close()


def _best_setting(plan: Plan, version: str) -> dict[str, Any]:
    """Finds the arrangement and batch size with which the baseline loop is fastest."""
    command = [*_baseline_command(plan, version, _SWEEP_S), "--sweep"]
    try:
        run = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=_BASELINE_TIMEOUT_S
        )
    except subprocess.SubprocessError as error:
        raise MeasurementError(f"the baseline loop failed: {error}") from error
    settings: list[dict[str, Any]] = json.loads(run.stdout)
    return max(settings, key=lambda setting: float(setting["images_per_s"]))


def _baseline_command(plan: Plan, version: str, seconds: float) -> list[str]:
    command = [sys.executable, str(_BASELINE), "--models", str(plan.models), "--version", version]
    return [*command, "--photo", str(plan.photo.path), "--seconds", str(seconds)]


def _busy_cores() -> float:
    """Counts the cores that other programs keep busy."""

    def busy_s() -> float:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        idle, waiting = ticks[3], ticks[4]
        return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")

    before = busy_s()
    time.sleep(_LISTEN_S)
    return (busy_s() - before) / _LISTEN_S


def _report(found: Results, output: Path) -> None:
    console.print(table(found))
    for precision, setting in found.settings.items():
        console.print(f"baseline loop at {precision}: {setting}")
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        console.print("[yellow]This CPU has no bf16: OpenVINO computes in fp32 there.[/yellow]")
    print_bounds(console, bounds(found))
    environment = found.environment
    console.print(
        f"{environment.cpu}, {environment.cores} cores; {environment.photo}; "
        f"{environment.rounds} rounds of {environment.turns} × {environment.seconds} s, "
        f"{environment.in_flight} in flight"
    )
    console.print(", ".join(f"{name} {each}" for name, each in environment.versions.items()))
    others = [s.other_cores for p in found.samples.values() for each in p.values() for s in each]
    if (most := max(others, default=0.0)) > QUIET_CORES:
        console.print(f"[yellow]Other programs kept up to {most:.1f} cores busy.[/yellow]")
    found.write(output)
    plot(found, output.with_suffix(".png"))
    console.print(f"Written: {output}, {output.with_suffix('.png')}")


def _environment(
    plan: Plan, peers_python: Path, peer_servers: Sequence[HttpPeer | OpenInferencePeer]
) -> Environment:
    versions = {name: metadata.version(name) for name in _OWN_PACKAGES}
    if peer_servers:
        names = [each.package for each in peer_servers]
        code = (
            "import importlib.metadata as m, json, sys; "
            "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        )
        answer = subprocess.run(
            [str(peers_python), "-c", code, *names], capture_output=True, text=True, check=True
        )
        versions |= json.loads(answer.stdout)
    versions["nghttp2"] = h2load.version()
    return Environment(
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        photo=f"{plan.photo.path.name}, {len(plan.photo.jpeg)} bytes",
        in_flight=plan.in_flight,
        seconds=plan.seconds,
        rounds=plan.rounds,
        turns=plan.turns,
        versions=versions,
    )


def _photo(path: Path | None, scratch: Path) -> Photo:
    """Reads the photograph to classify; by default scikit-image's cat, 451 × 300."""
    if path is None:
        from skimage import data

        path = scratch / "chelsea.jpg"
        pixels = data.chelsea()[:, :, ::-1]  # type: ignore[no-untyped-call]
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Photo(path.resolve(), path.read_bytes())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of one turn")
    parser.add_argument("--no-peers", action="store_true", help="measure Tidegate alone")
    parser.add_argument("--rounds", type=int, default=2, help="starts of each server")
    parser.add_argument("--turns", type=int, default=3, help="measurements in each round")
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--photo", type=Path, help="a JPEG; a photograph of a cat unless given")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument(
        "--peers-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "vision.json")
    given = parser.parse_args()
    if not given.no_peers and not given.peers_python.exists():
        parser.error(
            f"{given.peers_python} is missing: python -m venv .venv-peers && "
            ".venv-peers/bin/pip install --no-deps -r requirements/peers.txt"
        )
    return given


if __name__ == "__main__":
    sys.exit(main())
