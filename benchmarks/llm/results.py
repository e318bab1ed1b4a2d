"""Turns measurements into a table, bounds and a plot; every ratio is taken within one round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from reporting import Bound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from workloads import Measurement, Workload

__all__ = [
    "BASELINE",
    "BASELINE_KERNELS",
    "LABELS",
    "OPENAI",
    "TIDEGATE",
    "TUNED_OPENAI",
    "Estimate",
    "Row",
    "Turn",
    "bounds",
    "plot",
    "rows",
    "table",
]

BASELINE, BASELINE_KERNELS = "baseline", "baseline-kernels"
TIDEGATE, OPENAI, TUNED_OPENAI = "tidegate", "openai", "tuned"
LABELS = {
    BASELINE: "AsyncLLM",
    BASELINE_KERNELS: "AsyncLLM, kernels",
    TIDEGATE: "Tidegate gRPC",
    OPENAI: "vLLM OpenAI HTTP",
    TUNED_OPENAI: "vLLM OpenAI, tuned",
}
_SHARE_OF_BASELINE = 0.95
_OVER_BASELINE_MS = 3.0


@dataclass(frozen=True, slots=True)
class Turn:
    """The measurement of one system with one workload.

    Attributes:
        start: The number of the start of all systems.
        round_number: The round; measurements of one round are compared with each other.
        kind: The system.
        load: The workload.
        measurement: The result.
        front_cpu_s: CPU time of the process in front of the engine.
        client_cpu_s: CPU time of the load generator; equal where that is the front.
    """

    start: int
    round_number: int
    kind: str
    load: Workload
    measurement: Measurement
    front_cpu_s: float
    client_cpu_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return self.measurement.tokens / self.measurement.seconds

    @property
    def ttft_p50_ms(self) -> float:
        """The median time to the first token, in ms."""
        return 1000 * statistics.median(self.measurement.ttft_s)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A comparison: the mean over the starts of the median over the rounds of each start.

    Attributes:
        value: The mean.
        error: Its standard error; None for a single start, and where a system is compared with
            itself.
    """

    value: float
    error: float | None

    def shown(self, form: str) -> str:
        """Formats value and error."""
        found = format(self.value, form)
        return found if self.error is None else f"{found} ± {format(self.error, form.lstrip('+'))}"


@dataclass(frozen=True, slots=True)
class Row:
    """One system with one workload: medians over the rounds, and comparisons.

    Attributes:
        load: The workload and the requests in flight.
        kind: The system.
        tokens_per_s: Tokens a second.
        of_baseline: Ratio of the tokens a second to those of AsyncLLM in the same round.
        of_baseline_kernels: Ratio to AsyncLLM with Tidegate's kernels.
        of_openai: Ratio to vLLM's OpenAI server with its defaults.
        of_tuned_openai: Ratio to the same server with the cores, libraries and kernels of
            Tidegate's engine.
        ttft_p50_ms: Median time to first token.
        ttft_over_baseline_ms: Its difference from AsyncLLM in the same round.
        ttft_over_baseline_kernels_ms: Its difference from AsyncLLM with Tidegate's kernels.
        ttft_p95_ms: Time to first token that one request in twenty exceeds, over all rounds.
        front_us_per_token: CPU time of the front.
        client_us_per_token: CPU time of the load generator.
    """

    load: str
    kind: str
    tokens_per_s: float
    of_baseline: Estimate
    of_baseline_kernels: Estimate
    of_openai: Estimate
    of_tuned_openai: Estimate
    ttft_p50_ms: float
    ttft_over_baseline_ms: Estimate
    ttft_over_baseline_kernels_ms: Estimate
    ttft_p95_ms: float
    front_us_per_token: float
    client_us_per_token: float

    @property
    def is_speed(self) -> bool:
        """Whether tokens a second are shown; for answers of two tokens they mean nothing."""
        return not self.load.endswith("sequential")


def rows(turns: Sequence[Turn]) -> list[Row]:
    """Summarises measurements.

    Args:
        turns: The same number for each system and workload.
    """
    found: dict[tuple[str, int], dict[str, list[Turn]]] = {}
    for turn in turns:
        by_kind = found.setdefault((turn.load.kind, turn.load.streams), {})
        by_kind.setdefault(turn.kind, []).append(turn)
    return [
        _row(f"{streams} {load}", by_kind, kind)
        for (load, streams), by_kind in found.items()
        for kind in LABELS
        if kind in by_kind
    ]


def _row(load: str, by_kind: dict[str, list[Turn]], kind: str) -> Row:
    own, baseline, kernels = by_kind[kind], by_kind[BASELINE], by_kind[BASELINE_KERNELS]
    median = statistics.median
    ttft_s = sorted(each for turn in own for each in turn.measurement.ttft_s)
    return Row(
        load=load,
        kind=kind,
        tokens_per_s=median(turn.tokens_per_s for turn in own),
        of_baseline=_estimate(own, baseline, _speed_ratio),
        of_baseline_kernels=_estimate(own, kernels, _speed_ratio),
        of_openai=_estimate(own, by_kind[OPENAI], _speed_ratio),
        of_tuned_openai=_estimate(own, by_kind[TUNED_OPENAI], _speed_ratio),
        ttft_p50_ms=median(turn.ttft_p50_ms for turn in own),
        ttft_over_baseline_ms=_estimate(own, baseline, _later_ms),
        ttft_over_baseline_kernels_ms=_estimate(own, kernels, _later_ms),
        ttft_p95_ms=1000 * ttft_s[int(0.95 * (len(ttft_s) - 1))],
        front_us_per_token=median(_us_per_token(turn, turn.front_cpu_s) for turn in own),
        client_us_per_token=median(_us_per_token(turn, turn.client_cpu_s) for turn in own),
    )


def _estimate(
    own: list[Turn], other: list[Turn], compare: Callable[[Turn, Turn], float]
) -> Estimate:
    by_start: dict[int, list[float]] = {}
    for a, b in zip(own, other, strict=True):
        by_start.setdefault(a.start, []).append(compare(a, b))
    medians = [statistics.median(each) for each in by_start.values()]
    if len(medians) < 2 or own is other:
        return Estimate(statistics.mean(medians), None)
    return Estimate(statistics.mean(medians), statistics.stdev(medians) / len(medians) ** 0.5)


def _speed_ratio(own: Turn, other: Turn) -> float:
    return own.tokens_per_s / other.tokens_per_s


def _later_ms(own: Turn, other: Turn) -> float:
    return own.ttft_p50_ms - other.ttft_p50_ms


def _us_per_token(turn: Turn, seconds: float) -> float:
    return 1e6 * seconds / turn.measurement.all_tokens


def bounds(found: Sequence[Row]) -> list[Bound]:
    """Returns the bounds on the Tidegate server."""
    concluded = []
    for row in found:
        if row.kind != TIDEGATE:
            continue
        baseline = (LABELS[BASELINE], row.of_baseline, row.ttft_over_baseline_ms)
        kernels = (
            LABELS[BASELINE_KERNELS],
            row.of_baseline_kernels,
            row.ttft_over_baseline_kernels_ms,
        )
        if row.is_speed:
            for name, ratio, _ in (baseline, kernels):
                speed = f"{row.load}: {ratio.shown('.3f')} of the tokens/s of {name}"
                met = ratio.value >= _SHARE_OF_BASELINE
                concluded.append(Bound(f"{speed}, at least {_SHARE_OF_BASELINE}", met))
            for name, ratio in (
                (LABELS[OPENAI], row.of_openai),
                (LABELS[TUNED_OPENAI], row.of_tuned_openai),
            ):
                speed = f"{row.load}: {ratio.shown('.3f')} of the tokens/s of {name}, above 1"
                concluded.append(Bound(speed, ratio.value > 1))
        for name, _, later in (baseline, kernels):
            over = f"{row.load}: TTFT p50 {later.shown('+.1f')} ms over {name}"
            met = later.value <= _OVER_BASELINE_MS
            concluded.append(Bound(f"{over}, at most {_OVER_BASELINE_MS:+.1f}", met))
    return concluded


def table(found: Sequence[Row]) -> Table:
    """Returns the summary as a table."""
    shown = Table("load", "", box=None)
    for column in (
        "tokens/s",
        "/ AsyncLLM",
        "/ kernels",
        "/ OpenAI",
        "/ tuned",
        "TTFT p50",
        "- AsyncLLM",
        "- kernels",
        "p95",
        "front",
        "client",
    ):
        shown.add_column(column, justify="right")
    for row in found:
        ratios = (row.of_baseline, row.of_baseline_kernels, row.of_openai, row.of_tuned_openai)
        speed = [f"{row.tokens_per_s:.1f}", *(each.shown(".3f") for each in ratios)]
        shown.add_row(
            row.load,
            LABELS[row.kind],
            *(speed if row.is_speed else [""] * len(speed)),
            f"{row.ttft_p50_ms:.1f} ms",
            f"{row.ttft_over_baseline_ms.shown('+.1f')} ms",
            f"{row.ttft_over_baseline_kernels_ms.shown('+.1f')} ms",
            f"{row.ttft_p95_ms:.1f} ms",
            f"{row.front_us_per_token:.0f} us",
            f"{row.client_us_per_token:.0f} us",
        )
    return shown


def plot(found: Sequence[Row], path: Path) -> None:
    """Draws the summary as a plot."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels: list[tuple[str, Sequence[Row], Callable[[Row], float]]] = [
        ("time to first token, p50, ms", found, lambda row: row.ttft_p50_ms)
    ]
    # Sequential requests are too short for a throughput.
    if fast := [row for row in found if row.is_speed]:
        panels.insert(0, ("tokens/s", fast, lambda row: row.tokens_per_s))
    size = (5.5 * len(panels), 4)
    figure, drawn = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axes, (title, some, value) in zip(drawn[0], panels, strict=True):
        loads = list(dict.fromkeys(row.load for row in some))
        kinds = list(dict.fromkeys(row.kind for row in some))
        width = 0.8 / len(kinds)
        for place, kind in enumerate(kinds):
            heights = [value(row) for row in some if row.kind == kind]
            places = [index + (place - (len(kinds) - 1) / 2) * width for index in range(len(loads))]
            axes.bar(places, heights, 0.9 * width, label=LABELS[kind])
        axes.set_title(title)
        axes.set_xticks(range(len(loads)), loads)
        axes.legend()
    figure.savefig(path)
