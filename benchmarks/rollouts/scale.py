"""Measures what many rollouts in one router cost: processor, memory, disk, and late evaluations.

    python benchmarks/rollouts/scale.py            # about three minutes
    python benchmarks/rollouts/scale.py --quick    # fewer rollouts, for a few seconds

The real engine, evidence, store and loops run in a process of their own for each number of
rollouts. A mesh in memory takes the splits at once, and a source gives each rollout a window of
synthetic traffic at every evaluation: failures, a latency histogram of 298 buckets, and labels.
Each rollout has its own host, gives the candidate a tenth of 100 requests a second, judges three
objectives, and is evaluated every 5 s. What the benchmark leaves out is the source itself, whose
cost grows with requests and not with rollouts.

The benchmark prints a table and writes ``bench-results/rollouts.json``. It fails if 1,000 rollouts
take a core, take 400 MB, or are evaluated later than one interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import structlog
from rich.console import Console
from rich.table import Table

from tidegate.evidence.buckets import BUCKETS, bucket_of
from tidegate.evidence.window import Counted, TrafficWindow, VersionTraffic
from tidegate.rollout.measures import MeasureKind
from tidegate.rollout.spec.reading import rollout_of_values
from tidegate.rollout.traffic import Applied, HostTraffic, Knowledge, TrafficSplit
from tidegate.router.metrics import LATENESS
from tidegate.router.reconciler import reconciling
from tidegate.router.sqlite_store import SqliteStore
from tidegate.router.surroundings import LoopSettings

sys.path.append(str(Path(__file__).resolve().parents[1]))
from reporting import Bound, cpu_name, print_bounds

if TYPE_CHECKING:
    from tidegate.rollout.spec.model import Rollout
    from tidegate.router.registry import RolloutRecord
    from tidegate.router.sources.source import Epoch, Watched

ROOT: Final = Path(__file__).resolve().parents[2]
INTERVAL_S: Final = 5.0
SIZES: Final = (10, 100, 1000)
QUICK_SIZES: Final = (5, 20)
MAX_CORES: Final = 1.0
MAX_RSS_MB: Final = 400.0

_REQUESTS_PER_S: Final = 100.0
_FAILURES: Final = 0.01
_LABELS: Final = tuple(f"label-{number}" for number in range(20))
_PACKAGES: Final = ("tidegate", "msgspec", "numpy", "pydantic")
_WIDTH: Final = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What some rollouts cost.

    Attributes:
        rollouts: How many.
        seconds: How long they were measured.
        evaluations: Evaluations in that time.
        cores: Processor time, in cores.
        rss_mb: Resident memory at the end.
        idle_rss_mb: Resident memory before the first rollout.
        late_p50_s: Half of the evaluations were at most so late (upper end of a bucket).
        late_p99_s: 99 % of the evaluations were at most so late (upper end of a bucket).
        too_late: Evaluations later than one interval.
        written_mb_per_s: Bytes written to the disk.
    """

    rollouts: int
    seconds: float
    evaluations: int
    cores: float
    rss_mb: float
    idle_rss_mb: float
    late_p50_s: float
    late_p99_s: float
    too_late: int
    written_mb_per_s: float


class MemoryMesh:
    """A TrafficRouter that puts every split in force at once."""

    def __init__(self) -> None:
        self._traffic: dict[str, HostTraffic] = {}

    async def read(self, host: str) -> HostTraffic:
        """Returns the traffic of a host."""
        return self._traffic.get(host) or self._divided(
            host, TrafficSplit(weights={"v1": 100.0}), ""
        )

    def may_have_changed(self) -> bool:
        """Nobody else changes it, and nothing is cached."""
        return True

    async def apply(
        self, host: str, split: TrafficSplit, owner: str, *, urgent: bool = False
    ) -> Applied:
        """Puts a split in force."""
        del urgent
        now_s = time.time()
        self._traffic[host] = self._divided(host, split, owner)
        return Applied(since_s=now_s, requested_s=now_s, known=Knowledge.ACKNOWLEDGED)

    def _divided(self, host: str, split: TrafficSplit, owner: str) -> HostTraffic:
        versions = ("v1", "v2")
        return HostTraffic(host=host, split=split, versions=versions, ready=versions, owner=owner)


class SyntheticSource:
    """A TrafficSource that makes its windows of a few prepared counts, at little cost."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._watched: dict[str, Watched] = {}
        self._epochs: dict[str, Epoch] = {}
        self._taken_s: dict[str, float] = {}
        self._histograms = [self._histogram() for _ in range(50)]

    def check(self, watched: Watched) -> None:
        """Accepts everything."""

    def problem(self, key: str) -> str:
        """Misses nothing."""
        del key
        return ""

    def has_news(self, key: str) -> bool:
        """Has requests at every moment."""
        del key
        return True

    def watch(self, key: str, watched: Watched) -> None:
        """Counts for a rollout."""
        self._watched[key] = watched

    def begin_change(self, key: str, now_s: float) -> None:
        """Ends the epoch."""
        del now_s
        self._epochs.pop(key, None)

    def resume(self, host: str, since_s: float, requests_per_s: float) -> bool:
        """Keeps nothing; see `TrafficSource`."""
        del host, since_s, requests_per_s
        return False

    def begin_epoch(self, key: str, epoch: Epoch) -> None:
        """Begins an epoch."""
        self._epochs[key] = epoch
        self._taken_s[key] = epoch.since_s

    async def take(self, key: str, now_s: float) -> tuple[TrafficWindow, ...]:
        """Returns one window since the last call."""
        epoch = self._epochs.get(key)
        if epoch is None or now_s <= self._taken_s[key]:
            return ()
        start_s, self._taken_s[key] = self._taken_s[key], now_s
        versions = {
            name: self._traffic(key, round(share * (now_s - start_s) * _REQUESTS_PER_S))
            for name, share in epoch.shares.items()
        }
        return (
            TrafficWindow(start_s=start_s, end_s=now_s, shares=epoch.shares, versions=versions),
        )

    def forget(self, key: str) -> None:
        """Counts no longer."""
        self._watched.pop(key, None)

    def _traffic(self, key: str, requests: int) -> VersionTraffic:
        rates, histograms, categories = {}, {}, {}
        for measure in self._watched[key].measures:
            match measure.kind:
                case MeasureKind.RATE:
                    failed = min(requests, round(self._random.gauss(requests * _FAILURES, 0.5)))
                    rates[measure.metric] = Counted(requests, max(0, failed))
                case MeasureKind.HISTOGRAM:
                    histograms[measure.metric] = self._random.choice(self._histograms)
                case _:
                    drawn = self._random.choices(_LABELS, k=requests)
                    categories[measure.metric] = {each: drawn.count(each) for each in set(drawn)}
        return VersionTraffic(
            requests=requests, rates=rates, histograms=histograms, categories=categories
        )

    def _histogram(self) -> tuple[int, ...]:
        counts = [0] * BUCKETS
        for _ in range(50):
            counts[bucket_of(self._random.lognormvariate(-3, 0.5))] += 1
        return tuple(counts)


def rollout_of(number: int) -> Rollout:
    """Returns a rollout that waits for approval, on a host of its own."""
    return rollout_of_values(
        {
            "apiVersion": "tidegate.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": f"r{number}", "namespace": "models"},
            "spec": {
                "host": f"host{number}.models.svc.cluster.local",
                "baseline": "v1",
                "candidate": "v2",
                "strategy": {
                    "canary": {"steps": [{"weight": 10}, {"pause": {"untilApproved": True}}]}
                },
                "objectives": [
                    {"signal": "grpcFailures", "tolerate": "3x"},
                    {"signal": "latency", "quantile": "95%", "tolerate": "2x"},
                    {"signal": "predictionDrift", "tolerate": "30%"},
                ],
            },
        }
    )


async def measure(rollouts: int, seconds: float) -> Measured:
    """Runs rollouts in this process and measures them once all have begun."""
    process = psutil.Process()
    mesh, source = MemoryMesh(), SyntheticSource(rollouts)
    settings = LoopSettings(evaluate_interval_s=INTERVAL_S)
    with tempfile.TemporaryDirectory() as folder:
        async with (
            SqliteStore.opened(Path(folder) / "rollouts.sqlite") as store,
            reconciling(lambda _: mesh, lambda _: source, store, settings) as reconciler,
        ):
            idle_rss = process.memory_info().rss
            for number in range(rollouts):
                await reconciler.apply(rollout_of(number))
            with reconciler.registry.watching() as watcher:
                while not all(map(_has_begun, reconciler.registry)):
                    await watcher.take()
            # Each rollout has been evaluated a few times, and its evidence has its full size.
            await asyncio.sleep(2 * INTERVAL_S)
            before, late = _usage(process), _late()
            began_s = time.monotonic()
            await asyncio.sleep(seconds)
            lasted_s = time.monotonic() - began_s
            after, later = _usage(process), _late()
            problems = [each.problem for each in reconciler.registry if each.problem]
            phases = {each.status.phase.value for each in reconciler.registry}
            if problems or phases != {"progressing"}:
                raise SystemExit(f"the rollouts did not go on: {phases} {problems[:3]}")
            counts = {edge: later[edge] - late[edge] for edge in later}
            return Measured(
                rollouts=rollouts,
                seconds=lasted_s,
                evaluations=int(counts[float("inf")]),
                cores=(after[0] - before[0]) / lasted_s,
                rss_mb=process.memory_info().rss / 1e6,
                idle_rss_mb=idle_rss / 1e6,
                late_p50_s=_quantile(counts, 0.5),
                late_p99_s=_quantile(counts, 0.99),
                too_late=int(counts[float("inf")] - counts[INTERVAL_S]),
                written_mb_per_s=(after[1] - before[1]) / lasted_s / 1e6,
            )


def _has_begun(record: RolloutRecord) -> bool:
    return record.status.desired is not None and record.status.is_settled


def _usage(process: psutil.Process) -> tuple[float, int]:
    times = process.cpu_times()
    return times.user + times.system, process.io_counters().write_bytes


def _late() -> dict[float, float]:
    """The router's own histogram: how many evaluations were at most so late."""
    (family,) = LATENESS.collect()
    return {
        float(each.labels["le"]): each.value
        for each in family.samples
        if each.name.endswith("_bucket")
    }


def _quantile(counts: dict[float, float], quantile: float) -> float:
    total = counts[float("inf")]
    return min(edge for edge, count in counts.items() if count >= quantile * total)


def run_apart(rollouts: int, seconds: float) -> Measured:
    """Measures in a process of its own, so that no size inherits the memory of another."""
    ended = subprocess.run(
        [sys.executable, __file__, f"--child={rollouts}", f"--seconds={seconds}"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return Measured(**json.loads(ended.stdout))


def print_table(console: Console, found: list[Measured]) -> None:
    """Prints the sizes side by side."""
    table = Table(title=f"Rollouts in one router, each evaluated every {INTERVAL_S:g} s")
    for title in ("rollouts", "evaluations/s", "cores", "ms each", "memory", "each", "late p50"):
        table.add_column(title, justify="right")
    for title in ("late p99", "too late", "disk"):
        table.add_column(title, justify="right")
    for each in found:
        rate = each.evaluations / each.seconds
        table.add_row(
            f"{each.rollouts:,}",
            f"{rate:.1f}",
            f"{each.cores:.3f}",
            f"{1000 * each.cores / rate:.2f}",
            f"{each.rss_mb:.0f} MB",
            f"{1000 * (each.rss_mb - each.idle_rss_mb) / each.rollouts:.0f} kB",
            f"≤ {1000 * each.late_p50_s:g} ms",
            f"≤ {1000 * each.late_p99_s:g} ms",
            str(each.too_late),
            f"{each.written_mb_per_s:.2f} MB/s",
        )
    console.print(table)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rollouts, for a few seconds")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is measured")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "rollouts.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if arguments.child:
        print(json.dumps(asdict(asyncio.run(measure(arguments.child, arguments.seconds)))))
        return 0
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    sizes = QUICK_SIZES if arguments.quick else SIZES
    seconds = 2 * INTERVAL_S if arguments.quick else arguments.seconds
    versions = {name: metadata.version(name) for name in _PACKAGES}
    console.print(f"{cpu_name()}, {os.cpu_count()} cores; {versions}")
    found = []
    for size in sizes:
        with console.status(f"{size:,} rollouts"):
            found.append(run_apart(size, seconds))
    print_table(console, found)
    most = found[-1]
    bounds = [
        Bound(f"{most.cores:.2f} cores, at most {MAX_CORES:g}", most.cores < MAX_CORES),
        Bound(f"{most.rss_mb:.0f} MB, at most {MAX_RSS_MB:g}", most.rss_mb < MAX_RSS_MB),
        Bound(
            f"{most.too_late} evaluations later than one interval, at most 0", most.too_late == 0
        ),
    ]
    print_bounds(console, bounds)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "versions": versions,
        "measured": [asdict(each) for each in found],
    }
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written: {arguments.output}")
    return int(not all(each.met for each in bounds))


if __name__ == "__main__":
    sys.exit(main())
