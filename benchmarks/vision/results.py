"""Measurements, the bounds that they must meet, and their table, file and plot."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from reporting import Bound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "BASELINE",
    "MINIMAL",
    "OURS",
    "Environment",
    "Results",
    "Sample",
    "bounds",
    "plot",
    "table",
]

BASELINE = "baseline"
OURS = "Tidegate"
MINIMAL = "minimal gRPC server"
SHARE_OF_BASELINE = 0.90
OVER_BASELINE_MS = 1.0
# Cores that other programs may keep busy before a measurement means little.
QUIET_CORES = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement of a server, and the mean of the baseline loop before and after it.

    Attributes:
        images_per_s: Images a second with many requests in flight.
        loaded_p50_ms: The median time of those requests; None for the baseline loop.
        loaded_p99_ms: The time that one in a hundred of them exceeds; None for the baseline loop.
        p50_ms: The median time of a single request.
        baseline_images_per_s: Images a second of the baseline loop.
        baseline_p50_ms: The median time of one image in the baseline loop.
        other_cores: Cores that other programs kept busy just before.
    """

    images_per_s: float
    loaded_p50_ms: float | None
    loaded_p99_ms: float | None
    p50_ms: float
    baseline_images_per_s: float
    baseline_p50_ms: float
    other_cores: float

    def baseline_sample(self) -> Sample:
        """The sample of the baseline loop itself."""
        rate, p50_ms = self.baseline_images_per_s, self.baseline_p50_ms
        return Sample(rate, None, None, p50_ms, rate, p50_ms, self.other_cores)


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of the measurement.

    Attributes:
        cpu: The name of the CPU.
        cores: The number of usable cores.
        photo: The photograph.
        in_flight: Requests in flight.
        seconds: Length of each measurement.
        rounds: How often everyone was started.
        turns: Measurements in each round.
        versions: Of everything that matters.
    """

    cpu: str
    cores: int
    photo: str
    in_flight: int
    seconds: int
    rounds: int
    turns: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything.

    Attributes:
        environment: Where.
        settings: The baseline loop's best setting by precision.
        samples: By precision and server.
        failures: Servers that failed, and why.
    """

    environment: Environment
    settings: Mapping[str, str]
    samples: Mapping[str, Mapping[str, Sequence[Sample]]]
    failures: Sequence[str]

    def write(self, path: Path) -> None:
        """Writes it, with what was concluded, as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = asdict(self) | {"bounds": [asdict(each) for each in bounds(self)]}
        path.write_text(json.dumps(document, indent=2) + "\n")


def rate(samples: Sequence[Sample]) -> float:
    """Images a second, the median."""
    return statistics.median(each.images_per_s for each in samples)


def p50_ms(samples: Sequence[Sample]) -> float:
    """Milliseconds of a request alone, the median."""
    return statistics.median(each.p50_ms for each in samples)


def share(samples: Sequence[Sample]) -> float:
    """Images a second as a share of the baseline loop's, the median."""
    return statistics.median(each.images_per_s / each.baseline_images_per_s for each in samples)


def over_ms(samples: Sequence[Sample]) -> float:
    """Milliseconds beyond the baseline loop's, the median."""
    return statistics.median(each.p50_ms - each.baseline_p50_ms for each in samples)


def bounds(results: Results) -> list[Bound]:
    """Holds the results against the bounds."""
    found = []
    for precision, samples in results.samples.items():
        ours = samples.get(OURS, ())
        if not ours:
            continue
        part, over = share(ours), over_ms(ours)
        found.append(
            Bound(
                f"{precision}: {part:.2f} of the baseline loop (at least {SHARE_OF_BASELINE:.2f})",
                part >= SHARE_OF_BASELINE,
            )
        )
        found.append(
            Bound(
                f"{precision}: p50 of one at a time {over:+.2f} ms against the baseline loop "
                f"(at most +{OVER_BASELINE_MS:.1f} ms)",
                over <= OVER_BASELINE_MS,
            )
        )
        for name, theirs in samples.items():
            if name in {BASELINE, MINIMAL, OURS} or not theirs:
                continue
            # They were measured at different times, but each beside the baseline loop.
            times = part / share(theirs)
            says = f"{precision}: {times:.2f} times {name}'s share of the baseline loop (ahead)"
            found.append(Bound(says, times > 1))
    return found


def table(results: Results) -> Table:
    """Everything in one table, medians."""
    drawn = Table(title="EfficientNet-Lite0, JPEG bytes in, five classes out")
    drawn.add_column("precision")
    drawn.add_column("server", no_wrap=True)
    for name in (
        "images/s",
        "of baseline",
        "p50 loaded, ms",
        "p99, ms",
        "p50 alone, ms",
        "over baseline",
    ):
        drawn.add_column(name, justify="right")
    for precision, samples in results.samples.items():
        for name, each in samples.items():
            if not each:
                continue
            drawn.add_row(
                precision,
                name,
                f"{rate(each):.0f}",
                f"{share(each):.2f}",
                _median_text(each, "loaded_p50_ms"),
                _median_text(each, "loaded_p99_ms"),
                f"{p50_ms(each):.2f}",
                f"{over_ms(each):+.2f}",
            )
        drawn.add_section()
    return drawn


def plot(results: Results, path: Path) -> None:
    """Draws images a second, and the time of one at a time, as bars by precision."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    precisions = list(results.samples)
    names = list(dict.fromkeys(name for each in results.samples.values() for name in each))
    figure, (fast, quick) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        present = [i for i, p in enumerate(precisions) if results.samples[p].get(name)]
        at = [i + (index - (len(names) - 1) / 2) * width for i in present]
        mine = [results.samples[precisions[i]][name] for i in present]
        fast.bar(at, [rate(each) for each in mine], width, label=name)
        quick.bar(at, [p50_ms(each) for each in mine], width, label=name)
    for axes in (fast, quick):
        axes.set_xticks(range(len(precisions)), precisions)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    in_flight = results.environment.in_flight
    fast.set_title(f"images/s, {in_flight} in flight (more is better)")
    quick.set_title("p50 of one request at a time, ms (less is better)")
    fast.legend(fontsize="small")
    figure.suptitle(f"{results.environment.cpu}, {results.environment.cores} cores")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _median_text(samples: Sequence[Sample], field: str) -> str:
    values = [value for each in samples if (value := getattr(each, field)) is not None]
    return f"{statistics.median(values):.1f}" if values else ""
