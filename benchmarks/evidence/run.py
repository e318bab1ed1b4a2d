"""Measures the evidence: how often it is wrong, how fast it is right, and other rules beside it.

    python benchmarks/evidence/run.py            # a few minutes on two cores
    python benchmarks/evidence/run.py --quick    # half a minute, a twentieth of the runs

All traffic is simulated and seeded. The benchmark

- runs healthy rollouts of two hours, each looked at after every window, and counts those that are
  ever aborted or ever promoted (``errors``). Their candidate is exactly at the limit of what is
  tolerated, which is the hardest case for both;
- counts the requests until a bad candidate is aborted, and divides them by the lower bound of any
  test of the same level (``detection``);
- gives the same rollouts of ten minutes to the rules of Argo Rollouts, of Flagger, of an expert and
  of a z-test that is looked at after each window (``rules``);
- replays 200 runs through the engine itself, and measures its cost (``engine``).

It fails unless

- at most 1.2 times the stated 1 % of the healthy rollouts is aborted, and 1.2 times 5 % promoted,
  with 99 % confidence,
- the mean detection takes at most 1.5 times the lower bound (1.9 times for a candidate that is
  found out by two failures),
- Tidegate aborts no more than 1.2 times 1 % of the healthy rollouts beside the other rules,
- the engine's e-values are those of the simulation.

It prints tables and writes ``bench-results/evidence.json`` and ``bench-results/evidence.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from measures import (
    DETECTION,
    HEALTHY,
    SIDE_BY_SIDE,
    Detection,
    ErrorCount,
    Stopped,
    compare_with_engine,
    count_errors,
    detect,
    lower_bound,
    measure_cost_ms,
    stop_by_rules,
    upper_limit,
)
from rich.console import Console
from rich.table import Table
from rules import RULES

sys.path.append(str(Path(__file__).resolve().parents[1]))
from reporting import Bound, cpu_name, print_bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
FALSE_ABORT: Final = 0.01
BAD_PROMOTION: Final = 0.05
_ROOM: Final = 1.2
_CONFIDENCE: Final = 0.99
_RATIOS: Final = (1.5, 1.5, 1.5, 1.5, 1.9)
_CHUNK: Final = 1000
_OURS: Final = "Tidegate"

console = Console(width=None if sys.stdout.isatty() else 132)


@dataclass
class Results:
    """All results of a run.

    Attributes:
        environment: The machine, the versions of packages and the options.
        errors: Wrong decisions by scenario.
        detection: Requests until detection by rates, in the order of `DETECTION`.
        rules: What each rule did, by scenario and rule.
        engine_difference: The largest relative difference between engine and simulation.
        engine_compared: How many e-values were compared.
        cost_ms: What a window with three objectives costs.
        seconds: How long the run took.
    """

    environment: dict[str, str]
    errors: dict[str, ErrorCount] = field(default_factory=dict)
    detection: list[Detection] = field(default_factory=list)
    rules: dict[str, dict[str, Stopped]] = field(default_factory=dict)
    engine_difference: float = 0.0
    engine_compared: int = 0
    cost_ms: float = 0.0
    seconds: float = 0.0


def main() -> int:
    """Runs the benchmark; returns 1 if a bound is not met, else 0."""
    given = _arguments()
    began = time.perf_counter()
    results = Results(_environment(given))
    with ProcessPoolExecutor(given.jobs) as pool:
        _measure(pool, given, results)
    results.cost_ms = measure_cost_ms()
    results.seconds = time.perf_counter() - began
    bounds = list(_bounds(results, quick=given.quick))
    _report(results, bounds)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(_as_json(results), indent=2) + "\n")
    _plot(results, given.output.with_suffix(".png"))
    console.print(f"Written: {given.output} and {given.output.with_suffix('.png')}")
    return 0 if all(each.met for each in bounds) else 1


def _measure(pool: ProcessPoolExecutor, given: argparse.Namespace, results: Results) -> None:
    chunks = max(given.runs // _CHUNK, 1)
    size = min(given.runs, _CHUNK)
    errors = {
        name: [
            pool.submit(count_errors, name, size, _seed(place, chunk), FALSE_ABORT, BAD_PROMOTION)
            for chunk in range(chunks)
        ]
        for place, name in enumerate(HEALTHY)
    }
    small = max(given.runs // 5, 200)
    detected = [
        pool.submit(detect, rates, small, _seed(100 + place, 0), FALSE_ABORT)
        for place, rates in enumerate(DETECTION)
    ]
    rules = {
        name: [
            pool.submit(stop_by_rules, name, min(small, _CHUNK), _seed(200 + place, chunk))
            for chunk in range(max(small // _CHUNK, 1))
        ]
        for place, name in enumerate(SIDE_BY_SIDE)
    }
    engine = pool.submit(compare_with_engine, given.replays, _seed(300, 0))
    results.detection = [each.result() for each in detected]
    results.engine_difference, results.engine_compared = engine.result()
    for name, futures in rules.items():
        results.rules[name] = {rule: Stopped() for rule in RULES}
        for future in futures:
            for rule, stopped in future.result().items():
                results.rules[name][rule].add(stopped)
    for name, parts in errors.items():
        results.errors[name] = ErrorCount()
        for part in parts:
            results.errors[name].add(part.result())
        console.print(f"[dim]{name}: {results.errors[name].runs:,} rollouts[/dim]")


def _seed(part: int, chunk: int) -> int:
    return 1_000_000 + 10_000 * part + chunk


def _bounds(results: Results, *, quick: bool) -> Iterator[Bound]:
    for name, each in results.errors.items():
        for what, count, level in (
            ("aborted", each.aborted, FALSE_ABORT),
            ("promoted", each.promoted, BAD_PROMOTION),
        ):
            # Too few runs cannot bound the rate; then the rate itself is compared.
            rate = count / each.runs if quick else upper_limit(count, each.runs, _CONFIDENCE)
            yield Bound(
                f"{name}: {what} {count / each.runs:.2%}, with {_CONFIDENCE:.0%} confidence at most"
                f" {upper_limit(count, each.runs, _CONFIDENCE):.2%}; stated {level:.0%}",
                rate <= _ROOM * level,
            )
    for rates, found, most in zip(DETECTION, results.detection, _RATIOS, strict=True):
        ratio = found.mean / lower_bound(rates, FALSE_ABORT)
        yield Bound(f"detection of {_rates(rates)}: {ratio:.2f} of {most} bounds", ratio <= most)
    for name, (_, healthy) in SIDE_BY_SIDE.items():
        if healthy:
            ours = results.rules[name][_OURS]
            yield Bound(
                f"{name}: Tidegate aborts {ours.aborted / ours.runs:.2%}",
                ours.aborted / ours.runs <= _ROOM * FALSE_ABORT,
            )
    yield Bound(
        f"engine and simulation differ by {results.engine_difference:.1g} in"
        f" {results.engine_compared:,} e-values",
        results.engine_compared > 0 and results.engine_difference < 1e-9,
    )


def _report(results: Results, bounds: list[Bound]) -> None:
    _report_errors(results)
    _report_detection(results)
    _report_rules(results)
    print_bounds(console, bounds)
    console.print(", ".join(f"{name} {value}" for name, value in results.environment.items()))
    console.print(
        f"the engine took {results.cost_ms:.2f} ms for a window with three objectives: with one"
        f" every 5 s, {5000 / results.cost_ms:,.0f} rollouts would keep a core busy"
    )
    console.print(f"took {results.seconds:.0f} s")


def _report_errors(results: Results) -> None:
    table = Table(
        title=f"Wrong decisions on candidates at the limit, two hours (stated: {FALSE_ABORT:.0%}"
        f" aborted, {BAD_PROMOTION:.0%} promoted)"
    )
    for name in ("scenario", "rollouts", "looks", "aborted", "÷ stated", "promoted", "÷ stated"):
        table.add_column(name, justify="left" if name == "scenario" else "right")
    table.add_column("z-test, peeked at", justify="right")
    for name, each in results.errors.items():
        aborted, promoted = each.aborted / each.runs, each.promoted / each.runs
        table.add_row(
            *(name, f"{each.runs:,}", str(each.looks)),
            *(f"{aborted:.2%}", f"{aborted / FALSE_ABORT:.2f}"),
            *(f"{promoted:.2%}", f"{promoted / BAD_PROMOTION:.2f}"),
            f"{each.z_aborted / each.runs:.1%}" if HEALTHY[name][1].margin == 0 else "–",
        )
    console.print(table)


def _report_detection(results: Results) -> None:
    table = Table(title="Requests until a bad candidate is aborted (one objective at 1x, margin 0)")
    for name in ("baseline → candidate, share", "rollouts", "lower bound", "mean", "÷ bound"):
        table.add_column(name, justify="left" if "share" in name else "right")
    for rates, found in zip(DETECTION, results.detection, strict=True):
        bound = lower_bound(rates, FALSE_ABORT)
        table.add_row(
            *(_rates(rates), f"{found.runs:,}", f"{bound:,.0f}"),
            f"{found.mean:,.0f} ± {found.error:,.0f}",
            f"{found.mean / bound:.2f}",
        )
    console.print(table)


def _report_rules(results: Results) -> None:
    table = Table(
        title="Rules on the same rollouts: aborted; mean time since the candidate is worse; extra"
        " failed calls (in brackets: ÷ Tidegate's)"
    )
    table.add_column("scenario")
    for rule in RULES:
        table.add_column(rule)
    for name, by_rule in results.rules.items():
        _, healthy = SIDE_BY_SIDE[name]
        ours = by_rule[_OURS]
        table.add_row(name, *(_cell(each, ours, healthy=healthy) for each in by_rule.values()))
    console.print(table)


def _cell(each: Stopped, ours: Stopped, *, healthy: bool) -> str:
    share = f"{each.aborted / each.runs:.1%}"
    if healthy:
        return share
    harm = each.harm / each.runs
    text = share + (f", {each.early / each.runs:.1%} before" if each.early else "") + "\n"
    if each.aborted:
        seconds = each.seconds / each.aborted
        text += f"{seconds:.0f} s{_ratio(seconds, ours.seconds / max(ours.aborted, 1))}\n"
    else:
        text += "never\n"
    return text + f"{harm:,.0f}{_ratio(harm, ours.harm / ours.runs)}"


def _ratio(value: float, ours: float) -> str:
    return "" if value == ours or not ours else f" ({value / ours:.1f}×)"


def _rates(rates: tuple[float, float, float]) -> str:
    return f"{rates[0]:.1%} → {rates[1]:.0%}, {rates[2]:.0%}"


def _as_json(results: Results) -> dict[str, Any]:
    values = asdict(results)
    values["detection"] = [
        {
            "baseline": rates[0],
            "candidate": rates[1],
            "share": rates[2],
            "runs": found.runs,
            "mean_requests": found.mean,
            "standard_error": found.error,
            "lower_bound": lower_bound(rates, FALSE_ABORT),
        }
        for rates, found in zip(DETECTION, results.detection, strict=True)
    ]
    return values


def _plot(results: Results, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for name, each in results.errors.items():
        share = [100 * count / each.runs for count in each.aborted_by]
        left.plot([1.2 * place for place in range(1, len(share) + 1)], share, label=name)
    left.axhline(100 * FALSE_ABORT, color="black", linestyle="--", label="stated")
    left.set(xlabel="minutes", ylabel="rollouts ever aborted, %", title="False aborts")
    left.legend(fontsize="small")
    bad = [name for name, (_, healthy) in SIDE_BY_SIDE.items() if not healthy]
    width = 0.8 / len(RULES)
    for place, rule in enumerate(RULES):
        harm = [results.rules[name][rule].harm / results.rules[name][rule].runs for name in bad]
        right.bar([i + place * width for i in range(len(bad))], harm, width, label=rule)
    right.set_xticks([i + 0.4 - width / 2 for i in range(len(bad))], bad, rotation=15)
    right.set(yscale="log", ylabel="extra failed calls", title="Harm in a rollout of ten minutes")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _environment(given: argparse.Namespace) -> dict[str, str]:
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        **{name: metadata.version(name) for name in ("tidegate", "numpy", "msgspec")},
        "load before": f"{os.getloadavg()[0]:.1f}",
        "runs": str(given.runs),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of the runs")
    parser.add_argument("--runs", type=int, help="healthy rollouts per scenario; default 20,000")
    parser.add_argument("--replays", type=int, default=200, help="runs that the engine replays")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results" / "evidence.json")
    given = parser.parse_args()
    if given.runs is None:
        given.runs = 1_000 if given.quick else 20_000
    return given


if __name__ == "__main__":
    sys.exit(main())
