"""Measures the vision server against the bare loop and against its peers, on this machine.

    python benchmarks/vision/run.py            # about twenty minutes
    python benchmarks/vision/run.py --quick    # about five minutes

JPEG bytes go in, the five best classes come out; 32 requests are in flight, then one at a time.
Everyone serves the same model with the same decoding and engine. Contestants take turns, one alive
at a time, for some rounds, and each is compared with the bare loop of its own round, so that a
drift of the machine hits all alike. It prints a table and whether the bounds are met, writes
``bench-results/vision.json`` and a plot beside it, and fails only when a contestant does.

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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import h2load
from contestants import (
    Contestant,
    ContestantError,
    HttpPeer,
    OpenInferencePeer,
    Photo,
    Tidegate,
    peers,
    serving,
)
from processes import ROOT
from results import BARE, QUIET_CORES, Environment, Results, Sample, bounds, plot, table
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = ("fp32", "bf16", "int8")
_BARE = Path(__file__).resolve().parent / "bare.py"
_JPEG_QUALITY = 90
_SWEEP_S = 0.4
_LISTEN_S = 0.5
_BARE_TIMEOUT_S = 300
_OWN_PACKAGES = ("tidegate", "openvino", "simplejpeg", "opencv-python-headless", "grpcio", "uvloop")

_WIDTH = 120

# Wide enough for the table where the output goes to a file.
console = Console(width=None if sys.stdout.isatty() else _WIDTH)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    Attributes:
        models: the model repository.
        photo: what everyone classifies.
        scratch: a folder for logs and bodies of requests.
        in_flight: requests in flight.
        rounds: turns that everyone has at each precision.
        seconds: length of a measurement, under load and one at a time alike.
    """

    models: Path
    photo: Photo
    scratch: Path
    in_flight: int
    rounds: int
    seconds: int


def main() -> int:
    """Measures everyone; returns 1 when a contestant failed, else 0."""
    given = _arguments()
    # Leave in the ordinary way, so that the server of the moment is stopped too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    rivals = peers(str(given.peers_python))
    with tempfile.TemporaryDirectory(prefix="bench-vision-") as folder:
        scratch = Path(folder)
        plan = Plan(
            models=given.models.resolve(),
            photo=_photo(given.photo, scratch),
            scratch=scratch,
            in_flight=32,
            rounds=1 if given.quick else given.rounds,
            seconds=2 if given.quick else given.seconds,
        )
        environment = _environment(plan, given.peers_python, rivals)
        found = measure_all(plan, environment, (Tidegate(sys.executable), *rivals))
    _report(found, given.output)
    return 1 if found.failures else 0


def measure_all(plan: Plan, environment: Environment, who: Sequence[Contestant]) -> Results:
    """Measures every contestant at every precision.

    Args:
        plan: how.
        environment: where.
        who: the servers, in the order of their turns.
    """
    settings: dict[str, str] = {}
    samples: dict[str, dict[str, list[Sample]]] = {}
    failures: list[str] = []
    for precision in PRECISIONS:
        samples[precision] = {name: [] for name in (BARE, *(each.name for each in who))}
        try:
            setting = _best_setting(plan, f"1-{precision}")
            settings[precision] = f"{setting['arrangement']}, batch {setting['batch']}"
            for turn in range(plan.rounds):
                console.print(f"[dim]{precision}, round {turn + 1} of {plan.rounds}[/dim]")
                failures += _round(plan, f"1-{precision}", setting, who, samples[precision])
        except ContestantError as error:
            failures.append(f"{precision}: {error}")
            console.print(f"[red]{escape(failures[-1])}[/red]")
    return Results(environment, settings, samples, failures)


def _round(
    plan: Plan,
    version: str,
    setting: dict[str, Any],
    who: Sequence[Contestant],
    samples: dict[str, list[Sample]],
) -> list[str]:
    """Gives everyone a turn; one that missed a turn has no more. Returns the failures."""
    failures = []
    before = len(samples[BARE])
    samples[BARE].append(_measure_bare(plan, version, setting))
    for each in who:
        if len(samples[each.name]) < before:
            continue
        try:
            sample = _measure(plan, each, version)
        except ContestantError as error:
            failures.append(f"{version}: {error}")
            console.print(f"[red]{escape(failures[-1])}[/red]")
            continue
        samples[each.name].append(sample)
        console.print(
            f"  {each.name}: {sample.images_per_s:.0f} images/s, {sample.p50_ms:.2f} ms alone"
        )
    return failures


def _measure(plan: Plan, contestant: Contestant, version: str) -> Sample:
    """Starts a contestant, loads it, and stops it."""
    other_cores = _busy_cores()
    with serving(contestant, plan.models, version, plan.photo, plan.scratch) as target:
        # In this order: requests that are cut off at the end of the load may still be worked on.
        alone = h2load.measure(target, in_flight=1, seconds=plan.seconds)
        loaded = h2load.measure(target, in_flight=plan.in_flight, seconds=plan.seconds)
    return Sample(
        images_per_s=loaded.requests_per_s,
        loaded_p50_ms=loaded.p50_ms,
        loaded_p99_ms=loaded.p99_ms,
        p50_ms=alone.p50_ms,
        other_cores=other_cores,
    )


def _measure_bare(plan: Plan, version: str, setting: dict[str, Any]) -> Sample:
    other_cores = _busy_cores()
    answer = _bare(
        plan,
        version,
        plan.seconds,
        *("--arrangement", setting["arrangement"], "--batch", str(setting["batch"])),
    )
    rate, p50_ms = answer["images_per_s"], answer["p50_ms"]
    console.print(f"  {BARE}: {rate:.0f} images/s, {p50_ms:.2f} ms alone")
    return Sample(rate, None, None, p50_ms, other_cores)


def _best_setting(plan: Plan, version: str) -> dict[str, Any]:
    """The bare loop's best arrangement and batch."""
    settings: list[dict[str, Any]] = _bare(plan, version, _SWEEP_S, "--sweep")
    return max(settings, key=lambda setting: float(setting["images_per_s"]))


def _bare(plan: Plan, version: str, seconds: float, *options: str) -> Any:
    """Runs the bare loop in a process of its own."""
    command = [sys.executable, str(_BARE), "--models", str(plan.models), "--version", version]
    command += ["--photo", str(plan.photo.path), "--seconds", str(seconds), *options]
    try:
        run = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=_BARE_TIMEOUT_S
        )
    except subprocess.SubprocessError as error:
        raise ContestantError(f"the bare loop failed: {error}") from error
    return json.loads(run.stdout)


def _busy_cores() -> float:
    """Cores that are busy while nothing of ours runs."""

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
        console.print(f"bare loop at {precision}: {setting}")
    for each in bounds(found):
        verdict = "[green]bound met[/green]    " if each.met else "[red]bound not met[/red]"
        console.print(f"{verdict}  {escape(each.says)}")
    environment = found.environment
    console.print(
        f"{environment.cpu}, {environment.cores} cores; {environment.photo}; "
        f"{environment.rounds} rounds of {environment.seconds} s, {environment.in_flight} in flight"
    )
    console.print(", ".join(f"{name} {each}" for name, each in environment.versions.items()))
    others = [s.other_cores for p in found.samples.values() for each in p.values() for s in each]
    if (most := max(others, default=0.0)) > QUIET_CORES:
        console.print(f"[yellow]Something else kept up to {most:.1f} cores busy.[/yellow]")
    found.write(output)
    plot(found, output.with_suffix(".png"))
    console.print(f"Written: {output}, {output.with_suffix('.png')}")


def _environment(
    plan: Plan, peers_python: Path, rivals: Sequence[HttpPeer | OpenInferencePeer]
) -> Environment:
    names = [each.package for each in rivals]
    code = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    answer = subprocess.run(
        [str(peers_python), "-c", code, *names], capture_output=True, text=True, check=True
    )
    own = {name: metadata.version(name) for name in _OWN_PACKAGES}
    versions = own | json.loads(answer.stdout) | {"nghttp2": h2load.version()}
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    return Environment(
        cpu=next(line.split(": ", 1)[1] for line in cpus if line.startswith("model name")),
        cores=len(os.sched_getaffinity(0)),
        photo=f"{plan.photo.path.name}, {len(plan.photo.jpeg)} bytes",
        in_flight=plan.in_flight,
        seconds=plan.seconds,
        rounds=plan.rounds,
        versions=versions,
    )


def _photo(path: Path | None, scratch: Path) -> Photo:
    """The photograph to classify; a cat of scikit-image's, 451 × 300, unless another is given."""
    if path is None:
        from skimage import data

        path = scratch / "chelsea.jpg"
        pixels = data.chelsea()[:, :, ::-1]  # type: ignore[no-untyped-call]
        cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return Photo(path.resolve(), path.read_bytes())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of 2 seconds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--photo", type=Path, help="a JPEG; a photograph of a cat unless given")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument(
        "--peers-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "vision.json")
    given = parser.parse_args()
    if not given.peers_python.exists():
        parser.error(
            f"{given.peers_python} is missing: python -m venv .venv-peers && "
            ".venv-peers/bin/pip install --no-deps -r requirements/peers.txt"
        )
    return given


if __name__ == "__main__":
    sys.exit(main())
