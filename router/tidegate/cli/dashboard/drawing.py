"""Draws panels over time: lines, and the states of things."""

import datetime as dt
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.dates import MINUTELY, AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tidegate.cli.dashboard.answers import Line, Mark, PanelData, TimeRange
from tidegate.cli.dashboard.units import text_of
from tidegate.cli.figures import COLOURS, GREEN, RED, STYLE, use_log_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Entry", "draw_lines", "draw_states"]

_PIXELS_PER_INCH: Final = 96
_COLUMN_PIXELS: Final = 62
_ROW_PIXELS: Final = 26
# A line is broken where samples are missing.
_GAP_STEPS: Final = 4
_LONGEST_DOT: Final = 1.0
_GREY: Final = "#8c959f"
# Grafana's names of colours. The palette of lines has other tones.
_NAMED: Final = {
    "blue": "#1f6feb",
    "dark-red": "#82071e",
    "green": GREEN,
    "grey": _GREY,
    "light-blue": "#80ccff",
    "light-green": "#9be9a8",
    "light-red": "#ff8182",
    "orange": "#d1672a",
    "purple": "#8250df",
    "red": RED,
    "super-light-blue": "#b6e3ff",
}
_MORE_COLOURS: Final = ("#0a7ea4", "#e3a008", "#a40e5c", "#4b8b3b", "#6e40c9", "#c2410c", "#374151")


class Entry(NamedTuple):
    """A line of a legend.

    Attributes:
        name: The name of the series.
        colour: Its colour.
        value: Its last value as text; empty if it has none.
        line: How its line looks, in the words of CSS.
    """

    name: str
    colour: str
    value: str = ""
    line: str = "solid"


def draw_lines(
    data: PanelData, span: TimeRange, marks: Sequence[Mark]
) -> tuple[Figure, list[Entry]]:
    """Draws the series of a panel.

    Args:
        data: The panel and its series; at least one.
        span: The time range.
        marks: The moments to mark.

    Returns:
        The figure, and its legend.
    """
    panel = data.panel
    custom: Mapping[str, Any] = panel.defaults.get("custom") or {}
    with mpl.rc_context(STYLE):
        figure, axes = _figure(panel.place)
        shapes = [_shape(data, line, colour) for line, colour in _coloured(data)]
        for line, shape in zip(data.lines, shapes, strict=True):
            times, values = _broken(line, span)
            axes.plot(times, values, **shape)
        if (custom.get("stacking") or {}).get("mode") == "normal":
            _stack(axes, data, span, shapes)
        _set_axes(axes, data, custom)
        _set_times(axes, span)
        _mark(axes, marks)
    legend = [
        Entry(
            line.name,
            str(shape["color"]),
            text_of(line.samples[-1][1], panel.unit),
            _line_of(shape),
        )
        for line, shape in zip(data.lines, shapes, strict=True)
    ]
    return figure, legend


def draw_states(
    data: PanelData, span: TimeRange, marks: Sequence[Mark]
) -> tuple[Figure, list[Entry]]:
    """Draws the states of a panel's series over time.

    Args:
        data: The panel and its series; at least one.
        span: The time range.
        marks: The moments to mark.

    Returns:
        The figure, and its legend.
    """
    states = _states(data)
    seen: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        figure, axes = _figure(data.panel.place)
        for at, line in enumerate(data.lines):
            for start_s, end_s, value in _runs(line, span):
                text, colour = states.get(value, (value, _GREY))
                seen[text] = colour
                left, right = _date(start_s), _date(end_s)
                axes.barh(at, right - left, left=left, height=0.8, color=colour)
        axes.set_yticks(range(len(data.lines)), [each.name for each in data.lines])
        axes.set_ylim(len(data.lines) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        _set_times(axes, span)
        _mark(axes, marks)
    return figure, [Entry(text, colour) for text, colour in seen.items()]


def _figure(place: tuple[int, int, int, int]) -> "tuple[Figure, Axes]":
    _, _, columns, rows = place
    width = columns * _COLUMN_PIXELS / _PIXELS_PER_INCH
    height = max(1.2, rows * _ROW_PIXELS / _PIXELS_PER_INCH)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _coloured(data: PanelData) -> Iterator[tuple[Line, str]]:
    """Lines with colours; lines that differ only in what the panel shapes have the same one."""
    colours: dict[str, str] = {}
    palette = itertools.cycle((*COLOURS, *_MORE_COLOURS))
    shaped = [re.compile(each.pattern) for each in data.panel.overrides if each.pattern]
    for line in data.lines:
        key = line.name
        for pattern in shaped:
            key = pattern.sub("", key)
        key = " ".join(key.replace("()", "").split())
        if key not in colours:
            colours[key] = next(palette)
        yield line, colours[key]


def _shape(data: PanelData, line: Line, colour: str) -> dict[str, Any]:
    """How a line looks, in matplotlib's terms."""
    shape: dict[str, Any] = {"color": colour, "linewidth": 1.2}
    for override in data.panel.overrides:
        if re.search(override.pattern, line.name) is None:
            continue
        for name, value in override.properties.items():
            match name:
                case "custom.lineWidth":
                    shape["linewidth"] = 0.6 + 0.6 * float(value)
                case "custom.lineStyle" if value.get("fill") == "dash":
                    # In widths of the line.
                    shape["linestyle"] = (0, tuple(each / 2 for each in value.get("dash", (4, 4))))
                case "custom.lineInterpolation" if value == "stepAfter":
                    shape["drawstyle"] = "steps-post"
                case "color":
                    shape["color"] = _NAMED.get(value.get("fixedColor", ""), colour)
    if len(line.samples) == 1:
        shape["marker"] = "."
    return shape


def _line_of(shape: Mapping[str, Any]) -> str:
    """How a line looks, in the words of CSS: short dashes are dots there."""
    if "linestyle" not in shape:
        return "solid"
    return "dotted" if shape["linestyle"][1][0] <= _LONGEST_DOT else "dashed"


def _broken(line: Line, span: TimeRange) -> tuple[list[float], list[float]]:
    """The points of a line, with a hole where samples are missing."""
    times: list[float] = []
    values: list[float] = []
    before_s = line.samples[0][0]
    for time_s, value in line.samples:
        if time_s - before_s > _GAP_STEPS * span.step_s:
            times.append(_date(before_s + span.step_s))
            values.append(math.nan)
        times.append(_date(time_s))
        values.append(value)
        before_s = time_s
    return times, values


def _stack(
    axes: "Axes", data: PanelData, span: TimeRange, shapes: Sequence[Mapping[str, Any]]
) -> None:
    """Draws the series on top of each other, in place of lines."""
    for drawn in list(axes.lines):
        drawn.remove()
    count = round((span.end_s - span.start_s) / span.step_s) + 1
    grid = [span.start_s + at * span.step_s for at in range(count)]
    rows = []
    for line in data.lines:
        known = {round((time_s - span.start_s) / span.step_s): v for time_s, v in line.samples}
        rows.append([known.get(at, 0.0) for at in range(count)])
    colours = [each["color"] for each in shapes]
    axes.stackplot([_date(each) for each in grid], *rows, colors=colours, alpha=0.75, linewidth=0)


def _set_axes(axes: "Axes", data: PanelData, custom: Mapping[str, Any]) -> None:
    unit, defaults = data.panel.unit, data.panel.defaults
    if (custom.get("scaleDistribution") or {}).get("type") == "log":
        positive = [value for line in data.lines for _, value in line.samples if value > 0]
        if positive:
            use_log_scale(axes, lambda value: text_of(value, unit))
            axes.set_ylim(min(positive) / 1.5, max(positive) * 1.5)
            return
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text_of(value, unit)))
    bottom, top = axes.get_ylim()
    least, soft = defaults.get("min"), custom.get("axisSoftMax")
    if least is not None:
        bottom = float(least)
    if soft is not None:
        top = max(top, float(soft) * 1.02)
    highest = max((value for line in data.lines for _, value in line.samples), default=0.0)
    if least is not None and highest <= bottom:
        top = bottom + 1.0
    # A line of zeros lies above the axis, where people see it.
    axes.set_ylim(bottom - (top - bottom) / 40 if least is not None else bottom, top)


def _set_times(axes: "Axes", span: TimeRange) -> None:
    axes.set_xlim(_date(span.start_s), _date(span.end_s))
    locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
    # By default two minutes are no interval, and ten of them have two ticks.
    locator.intervald[MINUTELY] = [1, 2, 5, 10, 15, 30]
    axes.xaxis.set_major_locator(locator)
    shape = "%H:%M:%S" if span.end_s - span.start_s < 180 else "%H:%M"
    if span.end_s - span.start_s > 86_400:
        shape = "%d %b %H:%M"
    formatter = DateFormatter(shape, tz=_zone())  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)


def _mark(axes: "Axes", marks: Sequence[Mark]) -> None:
    for mark in marks:
        colour = _NAMED.get(mark.colour, _GREY)
        axes.axvline(_date(mark.time_s), color=colour, linewidth=0.7, linestyle="--", alpha=0.7)


def _states(data: PanelData) -> dict[str, tuple[str, str]]:
    """The word and the colour of each value."""
    found: dict[str, tuple[str, str]] = {}
    for mapping in data.panel.defaults.get("mappings") or ():
        if mapping.get("type") == "value":
            for value, result in (mapping.get("options") or {}).items():
                colour = _NAMED.get(result.get("color", ""), _GREY)
                found[value] = (str(result.get("text", value)), colour)
    return found


def _runs(line: Line, span: TimeRange) -> Iterator[tuple[float, float, str]]:
    """The times in which a series has the same value."""
    start_s = end_s = line.samples[0][0]
    value = line.samples[0][1]
    for time_s, current in line.samples:
        if current != value or time_s - end_s > _GAP_STEPS * span.step_s:
            yield start_s, min(end_s + span.step_s, time_s), f"{value:g}"
            start_s, value = time_s, current
        end_s = time_s
    yield start_s, end_s + span.step_s, f"{value:g}"


def _date(time_s: float) -> float:
    moment = dt.datetime.fromtimestamp(time_s, dt.UTC)
    return float(date2num(moment))  # type: ignore[no-untyped-call]


def _zone() -> dt.tzinfo | None:
    return dt.datetime.now().astimezone().tzinfo
