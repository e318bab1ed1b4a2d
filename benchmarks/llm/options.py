"""Compares options of the LLM server's engine on a CPU, side by side.

    python benchmarks/llm/options.py                          # some minutes
    python benchmarks/llm/options.py --only bfloat16 float32

Servers with the same model take turns: in bfloat16 with the other defaults, in float32, with norms
as PyTorch's operations instead of kernels, and compiled, which takes a while at the first start.
The benchmark prints each server's tokens a second, the ratio to the first server within a round,
and the time to first token. It also prints the type that ``--dtype=auto`` takes on this machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).resolve().parents[1]))
from results import Turn
from systems import ROOT, running_tidegate_servers
from workloads import Workload

from reporting import cpu_name
from tidegate.serving.llm.engine.launch import compute_dtype
from tidegate.serving.llm.settings import Precision

_BFLOAT16 = ["--dtype", Precision.BFLOAT16.value]
_OPTIONS = {
    "bfloat16": _BFLOAT16,
    "float32": ["--dtype", Precision.FLOAT32.value],
    "no kernels": [*_BFLOAT16, "--no-cpu-kernels"],
    "compiled": [*_BFLOAT16, "--enforce-eager", "false"],
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[1, 8, 32], help="requests in flight"
    )
    parser.add_argument("--only", nargs="+", choices=_OPTIONS, default=list(_OPTIONS))
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "smollm2" / "1")
    given = parser.parse_args()
    console = Console(width=100)
    turns: dict[int, dict[str, list[Turn]]] = {}
    options = {kind: _OPTIONS[kind] for kind in given.only}
    with (
        tempfile.TemporaryDirectory() as name,
        running_tidegate_servers(given.model, Path(name), options) as systems,
    ):
        for each in systems:
            each.measure(Workload("burst", 2, 4, 0, "warm-up"))
        for number in range(given.rounds):
            for streams in given.streams:
                workload = Workload("burst", streams, given.tokens, 0, f"{number}-{streams}")
                for each in systems if number % 2 else reversed(systems):
                    turn = Turn(0, number, each.kind, workload, *each.measure(workload))
                    turns.setdefault(streams, {}).setdefault(each.kind, []).append(turn)
    console.print(_table(turns))
    taken = compute_dtype(Precision.AUTO, given.model)
    console.print(f"{cpu_name()}: --dtype=auto takes {_named(taken)} here")


def _table(turns: dict[int, dict[str, list[Turn]]]) -> Table:
    shown = Table("in flight", "", box=None)
    for column in ("tokens/s", "ratio to the first", "TTFT p50"):
        shown.add_column(column, justify="right")
    for streams, by_kind in turns.items():
        kinds = [kind for kind in _OPTIONS if kind in by_kind]
        base = by_kind[kinds[0]]
        for kind in kinds:
            own = by_kind[kind]
            ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(own, base, strict=True)]
            shown.add_row(
                str(streams),
                kind,
                f"{statistics.median(turn.tokens_per_s for turn in own):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(turn.ttft_p50_ms for turn in own):.0f} ms",
            )
    return shown


def _named(precision: Precision) -> str:
    return "the model's own" if precision is Precision.AUTO else precision.value


if __name__ == "__main__":
    main()
