"""Asks a Prometheus what a dashboard shows, with its variables filled in."""

import asyncio
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

import aiohttp
import msgspec

from tidegate.cli.dashboard.definitions import (
    Dashboard,
    DashboardError,
    Marks,
    Panel,
    Query,
    Variable,
)
from tidegate.prometheus import PrometheusApi, PrometheusError, Series

__all__ = ["Line", "Mark", "PanelData", "TimeRange", "ask", "filled"]

_TIMEOUT_S: Final = 30.0
# So many points over time are as many as a panel has pixels to tell apart.
_POINTS: Final = 300
# Grafana's, for a Prometheus that scrapes every 15 s: every scrape interval up to that one works.
_LEAST_RATE_INTERVAL_S: Final = 60.0
_SCRAPE_INTERVAL_S: Final = 15.0
_VARIABLE: Final = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<bare>[A-Za-z_]\w*))")
_LABEL: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_AT_ONCE: Final = 4


class TimeRange(msgspec.Struct, frozen=True):
    """What the plots span.

    Attributes:
        start_s: The beginning, in seconds since the epoch.
        end_s: The end.
    """

    start_s: float
    end_s: float

    @property
    def step_s(self) -> float:
        """Seconds between two points of a plot."""
        return max(1.0, math.ceil((self.end_s - self.start_s) / _POINTS))


class Line(msgspec.Struct, frozen=True):
    """A series under its name in the legend.

    Attributes:
        name: The name.
        labels: Its labels.
        samples: Times and values; one of an instant query.
    """

    name: str
    labels: Mapping[str, str]
    samples: tuple[tuple[float, float], ...]


class Mark(msgspec.Struct, frozen=True):
    """A moment that the plots mark.

    Attributes:
        time_s: When.
        text: What happened.
        colour: Grafana's name of the colour.
    """

    time_s: float
    text: str
    colour: str


class PanelData(msgspec.Struct, frozen=True):
    """What a panel shows.

    Attributes:
        panel: The panel.
        lines: Its series, in the order of its queries.
        problem: Why a query gave nothing; empty if all answered.
    """

    panel: Panel
    lines: tuple[Line, ...]
    problem: str = ""


async def ask(
    url: str, dashboard: Dashboard, span: TimeRange, given: Mapping[str, str]
) -> tuple[tuple[PanelData, ...], tuple[Mark, ...]]:
    """Asks everything that a dashboard shows.

    Args:
        url: The address of the Prometheus.
        dashboard: The dashboard.
        span: The time range.
        given: Values of variables; others have those of the dashboard.

    Returns:
        What its panels show, and the moments that it marks.

    Raises:
        DashboardError: The Prometheus does not answer.
    """
    values = _values(dashboard.variables, given)
    # One after another a Prometheus is idle in between; all at once it would be a burst.
    slots = asyncio.Semaphore(_AT_ONCE)
    async with aiohttp.ClientSession() as session:
        api = PrometheusApi(session, url, _TIMEOUT_S)
        try:
            await api.latest("vector(1)", span.end_s)
        except PrometheusError as error:
            raise DashboardError(
                f"{error}. Start a Prometheus as docs/dashboards.md says, or name yours with"
                " --prometheus"
            ) from error
        shown = await asyncio.gather(
            *(_ask_panel(api, slots, each, span, values) for each in dashboard.panels)
        )
        marked = await asyncio.gather(
            *(_ask_marks(api, slots, each, span, values) for each in dashboard.marks)
        )
    marks = sorted((mark for each in marked for mark in each), key=lambda mark: mark.time_s)
    return tuple(shown), tuple(marks)


def filled(expression: str, values: Mapping[str, str], span: TimeRange) -> str:
    """Returns a query with values in place of variables; unknown ones stay.

    Args:
        expression: The query.
        values: The values by name.
        span: What ``$__range``, ``$__interval`` and ``$__rate_interval`` are made of.
    """
    step_s = span.step_s
    known = {
        "__range": f"{max(1, round(span.end_s - span.start_s))}s",
        "__interval": f"{round(step_s)}s",
        "__rate_interval": f"{round(max(_LEAST_RATE_INTERVAL_S, step_s + _SCRAPE_INTERVAL_S))}s",
        **values,
    }

    def value_of(match: re.Match[str]) -> str:
        return known.get(match["braced"] or match["bare"], match[0])

    return _VARIABLE.sub(value_of, expression)


def _values(variables: Iterable[Variable], given: Mapping[str, str]) -> dict[str, str]:
    return {**{each.name: each.value for each in variables}, **given}


async def _ask_panel(
    api: PrometheusApi,
    slots: asyncio.Semaphore,
    panel: Panel,
    span: TimeRange,
    values: Mapping[str, str],
) -> PanelData:
    lines: list[Line] = []
    problem = ""
    for query in panel.queries:
        expression = filled(query.expression, values, span)
        try:
            async with slots:
                if query.instant:
                    found = await api.latest(expression, span.end_s)
                else:
                    found = await api.over_time(expression, span.start_s, span.end_s, span.step_s)
        except PrometheusError as error:
            problem = f"{expression}: {error}"
            continue
        lines += [_line(query, each) for each in found if each.samples]
    return PanelData(panel, tuple(lines), problem)


async def _ask_marks(
    api: PrometheusApi,
    slots: asyncio.Semaphore,
    marks: Marks,
    span: TimeRange,
    values: Mapping[str, str],
) -> list[Mark]:
    expression = filled(marks.expression, values, span)
    try:
        async with slots:
            found = await api.over_time(expression, span.start_s, span.end_s, span.step_s)
    except PrometheusError:
        # The plots say all that they say without them.
        return []
    return [
        Mark(time_s, _legend(marks.text or marks.name, series.labels), marks.colour)
        for series in found
        for time_s in _beginnings(series, span)
    ]


def _beginnings(series: Series, span: TimeRange) -> Iterable[float]:
    """When a series begins anew; one that lasts from before the time range does not."""
    before_s = span.start_s
    for time_s, _ in series.samples:
        if time_s - before_s > 1.5 * span.step_s:
            yield time_s
        before_s = time_s


def _line(query: Query, series: Series) -> Line:
    return Line(_legend(query.legend, series.labels), series.labels, series.samples)


def _legend(text: str, labels: Mapping[str, str]) -> str:
    if text:
        return " ".join(_LABEL.sub(lambda match: labels.get(match[1], ""), text).split())
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
