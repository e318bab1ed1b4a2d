"""Plots of rollouts and of simulations as SVG: one place decides how they look."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from tidegate.cli.figures import COLOURS, GREEN, RED, STYLE, svg, use_log_scale
from tidegate.cli.rollout.words import limit_text, seconds_of
from tidegate.rollout.simulation.runs import End, Point, Run
from tidegate.rollout.v1 import rollout_pb2

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["effect_plot", "evidence_plot", "harm_plot", "simulation_plot", "svg", "traffic_plot"]

_ENDS: Final = {
    End.PROMOTED: GREEN,
    End.COMPLETED: "#1f6feb",
    End.ABORTED: RED,
    End.PAUSED: "#bf8700",
    End.OPEN: "#57606a",
}


def traffic_plot(
    samples: Sequence[rollout_pb2.Sample], events: Iterable[rollout_pb2.Event]
) -> Figure:
    """The shares of the versions over time, with the moments at which something was decided."""
    with _figure(2.4) as (figure, axes):
        unit, name = _time_unit(samples)
        times = _times(samples, unit)
        versions = sorted({each for sample in samples for each in sample.weights})
        for version, colour in zip(versions, itertools.cycle(COLOURS), strict=False):
            wanted = [sample.weights.get(version, 0.0) for sample in samples]
            observed = [sample.observed_weights.get(version, 0.0) for sample in samples]
            axes.step(times, wanted, where="post", color=colour, label=version)
            axes.step(times, observed, where="post", color=colour, linestyle=":", linewidth=1)
        start_s = seconds_of(samples[0].time)
        for event in events:
            if event.kind in ("StageEntered", "Promoting", "Aborting", "Completing", "Paused"):
                at = (seconds_of(event.time) - start_s) / unit
                axes.axvline(at, color="#8c959f", linewidth=0.7, linestyle="--")
        axes.set_ylim(-2, 102)
        axes.set_ylabel("share of the requests, %")
        axes.set_xlabel(name)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def evidence_plot(samples: Sequence[rollout_pb2.Sample], candidate: str, *, safe: bool) -> Figure:
    """The e-values of a candidate over time, on a log scale, with their thresholds.

    Args:
        samples: The samples, in order.
        candidate: The candidate.
        safe: Whether to draw the proofs that objectives are met; else those of harm.
    """
    with _figure(2.6) as (figure, axes):
        unit, name = _time_unit(samples)
        found = list(_assessed(samples, candidate, unit))
        for at, metric in enumerate(_metrics(found)):
            points = [
                (time, each.safe_e if safe else each.harm_e)
                for time, assessment in found
                for each in assessment.objectives
                if each.metric == metric
            ]
            colour = COLOURS[at % len(COLOURS)]
            axes.plot(*_columns((t, _bounded(e)) for t, e in points), color=colour, label=metric)
        if not safe:
            points = [(time, _bounded(each.harm_e)) for time, each in found]
            axes.plot(*_columns(points), color="black", linewidth=1.6, label="all together")
            axes.axhline(found[-1][1].harm_threshold, color=RED, linestyle="--", label="abort")
        elif found[-1][1].objectives:
            threshold = max(each.safe_threshold for each in found[-1][1].objectives)
            axes.axhline(threshold, color=GREEN, linestyle="--", label="met")
        use_log_scale(axes)
        axes.set_ylabel("e-value that it is met" if safe else "e-value of harm")
        axes.set_xlabel(name)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def effect_plot(
    samples: Sequence[rollout_pb2.Sample], candidate: str, objective: rollout_pb2.Objective, at: int
) -> Figure | None:
    """The effect of an objective over time with its confidence sequence; None without data.

    Args:
        samples: The samples, in order.
        candidate: The candidate.
        objective: The objective.
        at: Its place among the objectives.
    """
    unit, name = _time_unit(samples)
    found = [
        (time, assessment.objectives[at])
        for time, assessment in _assessed(samples, candidate, unit)
        if at < len(assessment.objectives)
    ]
    points = [(time, each) for time, each in found if each.HasField("effect")]
    if not points:
        return None
    with _figure(2.2) as (figure, axes):
        limit = points[-1][1].effect_limit
        ends = [
            value
            for _, each in points
            for value in (each.effect, each.effect_low, each.effect_high)
            if limit / 50 < value < 50 * max(limit, 1e-9)
        ]
        bottom = min([*ends, limit]) / 1.5 if limit > 0 else 0.0
        top = max([*ends, limit]) * 1.5
        times = [time for time, _ in points]
        low = [max(each.effect_low, bottom) for _, each in points]
        high = [
            min(each.effect_high, top) if each.HasField("effect_high") else top
            for _, each in points
        ]
        axes.fill_between(times, low, high, color=COLOURS[0], alpha=0.2, step="post", linewidth=0)
        effects = [min(max(each.effect, bottom), top) for _, each in points]
        axes.plot(times, effects, color=COLOURS[0], label="effect")
        words = f"tolerated: {limit_text(objective, limit)}"
        axes.axhline(limit, color=RED, linestyle="--", label=words)
        if bottom > 0:
            use_log_scale(axes)
        axes.set_ylim(bottom, top)
        axes.set_ylabel(points[-1][1].metric)
        axes.set_xlabel(name)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def harm_plot(samples: Sequence[rollout_pb2.Sample], budget: float | None) -> Figure:
    """Extra bad requests over time, by the best estimate."""
    with _figure(1.8) as (figure, axes):
        unit, name = _time_unit(samples)
        axes.plot(_times(samples, unit), [each.harm_spent for each in samples], color=COLOURS[1])
        if budget is not None:
            axes.axhline(budget, color=RED, linestyle="--", label=f"budget: {budget:g}")
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        axes.set_ylabel("extra bad requests")
        axes.set_xlabel(name)
    return figure


def simulation_plot(runs: Sequence[Run], title: str) -> Figure:
    """When runs end and how, the candidate's weight, and what it costs users."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 7), layout="constrained")
        ends, weights, harm = figure.subplots(3, 1, sharex=True)
        longest_s = max(each.time_s for each in runs)
        unit, name = _unit(longest_s)
        for end, colour in _ENDS.items():
            times = sorted(each.time_s / unit for each in runs if each.end is end)
            if times:
                shares = [100 * (at + 1) / len(runs) for at in range(len(times))]
                path = ([0, *times, longest_s / unit], [0, *shares, shares[-1]])
                ends.step(*path, where="post", color=colour, label=end.value)
        ends.set_ylim(-2, 102)
        ends.set_ylabel("runs that have ended, %")
        ends.legend(loc="best")
        grid = [longest_s * at / 200 for at in range(201)]
        _band(weights, runs, grid, unit, lambda point: point.weight)
        weights.set_ylabel("candidate's share, %")
        _band(harm, runs, grid, unit, lambda point: point.extra_bad)
        harm.set_ylabel("extra bad requests")
        harm.set_xlabel(name)
        figure.suptitle(title)
    return figure


def _band(
    axes: "Axes",
    runs: Sequence[Run],
    grid: Sequence[float],
    unit: float,
    of: Callable[[Point], float],
) -> None:
    """Draws the median of runs and the band between the 10th and the 90th percentile."""
    columns = []
    for run in runs:
        values, at = [], 0
        for time_s in grid:
            while at + 1 < len(run.points) and run.points[at + 1].time_s <= time_s:
                at += 1
            values.append(of(run.points[at]))
        columns.append(values)
    rows = [sorted(each) for each in zip(*columns, strict=True)]
    times = [time_s / unit for time_s in grid]

    def quantile(share: float) -> list[float]:
        return [row[min(len(row) - 1, math.floor(share * len(row)))] for row in rows]

    ends = quantile(0.1), quantile(0.9)
    axes.fill_between(times, *ends, color=COLOURS[0], alpha=0.2, linewidth=0)
    axes.plot(times, quantile(0.5), color=COLOURS[0], label="median, 10% to 90%")
    axes.legend(loc="best")


@contextmanager
def _figure(height: float) -> "Iterator[tuple[Figure, Axes]]":
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, height))
        yield figure, figure.add_subplot()


def _unit(longest_s: float) -> tuple[float, str]:
    if longest_s < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if longest_s < 3 * 3600 else (3600.0, "hours")


def _time_unit(samples: Sequence[rollout_pb2.Sample]) -> tuple[float, str]:
    unit, name = _unit(seconds_of(samples[-1].time) - seconds_of(samples[0].time))
    return unit, f"{name} from the start"


def _times(samples: Sequence[rollout_pb2.Sample], unit: float) -> list[float]:
    start_s = seconds_of(samples[0].time)
    return [(seconds_of(each.time) - start_s) / unit for each in samples]


def _assessed(
    samples: Sequence[rollout_pb2.Sample], candidate: str, unit: float
) -> Iterator[tuple[float, rollout_pb2.Assessment]]:
    for time, sample in zip(_times(samples, unit), samples, strict=True):
        for assessment in sample.assessments:
            if assessment.candidate == candidate:
                yield time, assessment


def _metrics(found: Sequence[tuple[float, rollout_pb2.Assessment]]) -> list[str]:
    return [each.metric for each in found[-1][1].objectives] if found else []


def _columns(points: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    rows = list(points)
    return [each[0] for each in rows], [each[1] for each in rows]


def _bounded(e: float) -> float:
    """Keeps e-values on the plot; beyond these powers they all say the same."""
    return min(max(e, 1e-6), 1e9)
