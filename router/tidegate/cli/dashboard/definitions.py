"""Reads the JSON of a Grafana dashboard: its variables, its marks, and its panels.

Only what this command draws is read. A panel of another type, or one that does not ask Prometheus,
is an error that names it: a page that silently leaves panels out would mislead.
"""

import difflib
import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tidegate.errors import TidegateError

__all__ = [
    "Dashboard",
    "DashboardError",
    "Marks",
    "Override",
    "Panel",
    "PanelType",
    "Query",
    "Variable",
    "find_dashboard",
    "read_dashboard",
    "shipped_dashboards",
]

PanelType = str
_DRAWN: Final = ("timeseries", "state-timeline", "stat", "table")
_COLUMNS: Final = 24
# In the wheel, and in a checkout.
_FOLDERS: Final = ("json", "../../../../mesh/istio/components/dashboards")


class DashboardError(TidegateError):
    """A dashboard is not there, or cannot be drawn; the message says why."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """A query of a panel.

    Attributes:
        expression: The PromQL, with variables.
        legend: The name of each series, with labels as ``{{version}}``; empty for its labels.
        instant: Whether only the value at the end of the time range counts.
    """

    expression: str
    legend: str
    instant: bool


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """How series look whose names match.

    Attributes:
        pattern: The regular expression.
        properties: Grafana's properties by their names, such as ``custom.lineWidth``.
    """

    pattern: str
    properties: Mapping[str, Any]


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """A panel, or the heading of a row.

    Attributes:
        id: Its number.
        type: ``timeseries``, ``state-timeline``, ``stat``, ``table`` or ``row``.
        title: Its title.
        description: What it says.
        place: Its column, row, width and height on Grafana's grid of 24 columns.
        queries: Its queries.
        unit: Grafana's name of the unit.
        defaults: Grafana's other settings of its fields.
        overrides: How some series look.
        transformations: Grafana's transformations of its table.
    """

    id: int
    type: PanelType
    title: str
    description: str
    place: tuple[int, int, int, int]
    queries: tuple[Query, ...] = ()
    unit: str = "short"
    defaults: Mapping[str, Any] = {}
    overrides: tuple[Override, ...] = ()
    transformations: tuple[Mapping[str, Any], ...] = ()


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """Moments that are marked in every plot over time.

    Attributes:
        name: What they are.
        expression: The PromQL; a moment is where a series begins.
        text: What happened, with labels as ``{{phase}}``.
        colour: Grafana's name of the colour.
    """

    name: str
    expression: str
    text: str
    colour: str


class Variable(msgspec.Struct, frozen=True, kw_only=True):
    """A variable of a dashboard.

    Attributes:
        name: Its name in queries.
        value: Its value unless somebody gives another one; for labels it matches all.
    """

    name: str
    value: str


class Dashboard(msgspec.Struct, frozen=True, kw_only=True):
    """A dashboard.

    Attributes:
        title: Its title.
        description: What it is for.
        variables: Its variables.
        marks: The moments that it marks.
        panels: Its panels, in order.
    """

    title: str
    description: str
    variables: tuple[Variable, ...]
    marks: tuple[Marks, ...]
    panels: tuple[Panel, ...]


def shipped_dashboards() -> dict[str, Path]:
    """Returns the files of the dashboards that Tidegate ships, by name."""
    here = Path(str(importlib.resources.files("tidegate.cli.dashboard")))
    for folder in _FOLDERS:
        files = sorted((here / folder).glob("*.json"))
        if files:
            return {each.stem: each for each in files}
    return {}


def find_dashboard(name: str) -> Path:
    """Returns the file of a dashboard.

    Args:
        name: The name of one that Tidegate ships, or a path.

    Raises:
        DashboardError: There is none.
    """
    shipped = shipped_dashboards()
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return Path(name)
    close = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise DashboardError(
        f"there is no dashboard {name!r}; {hint}name one of {', '.join(shipped)}, or a file"
    )


def read_dashboard(path: Path) -> Dashboard:
    """Reads a dashboard's file.

    Raises:
        DashboardError: The file cannot be read, or has a panel that cannot be drawn.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DashboardError(f"{path} cannot be read: {reason}") from error
    except ValueError as error:
        raise DashboardError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("panels"), list):
        raise DashboardError(
            f"{path} is not a dashboard: it has no list 'panels'. Write Grafana's classic JSON"
            " (Dashboard settings, JSON Model)"
        )
    try:
        return Dashboard(
            title=str(found.get("title") or path.stem),
            description=str(found.get("description") or ""),
            variables=tuple(map(_variable, _items(found, "templating"))),
            marks=tuple(_marks(_items(found, "annotations"))),
            panels=tuple(_panels(path, found["panels"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DashboardError(f"{path} is not a dashboard: {error!r}") from error


def _items(found: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    return (found.get(name) or {}).get("list") or ()


def _variable(found: Mapping[str, Any]) -> Variable:
    if found.get("type") == "query":
        value = str(found.get("allValue") or ".*")
    else:
        current = (found.get("current") or {}).get("value")
        value = str(current or found.get("query") or "")
    return Variable(name=str(found["name"]), value=value)


def _marks(found: Sequence[Mapping[str, Any]]) -> Iterator[Marks]:
    for each in found:
        expression = each.get("expr") or (each.get("target") or {}).get("expr")
        if expression and each.get("enable", True):
            yield Marks(
                name=str(each.get("name", "")),
                expression=str(expression),
                text=str(each.get("titleFormat") or ""),
                colour=str(each.get("iconColor") or ""),
            )


def _panels(path: Path, found: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    for at, each in enumerate(found):
        yield _panel(f"{path}: panels[{at}]", each)
        # Those of a collapsed row are inside it.
        yield from _panels(path, each.get("panels") or ())


def _panel(where: str, found: Mapping[str, Any]) -> Panel:
    kind, title = str(found.get("type")), str(found.get("title") or "")
    where = f"{where} ({title!r})"
    if kind != "row" and kind not in _DRAWN:
        raise DashboardError(
            f"{where}: type: {kind!r} cannot be drawn; draw it in Grafana, or make it one of"
            f" {', '.join(_DRAWN)}"
        )
    grid = found.get("gridPos") or {}
    place = tuple(int(grid.get(key, default)) for key, default in _GRID.items())
    fields = found.get("fieldConfig") or {}
    defaults = fields.get("defaults") or {}
    return Panel(
        id=int(found.get("id") or 0),
        type=kind,
        title=title,
        description=str(found.get("description") or ""),
        place=(place[0], place[1], min(place[2], _COLUMNS), place[3]),
        queries=tuple(_queries(where, found)),
        unit=str(defaults.get("unit") or "short"),
        defaults=defaults,
        overrides=tuple(_overrides(fields)),
        transformations=tuple(found.get("transformations") or ()),
    )


_GRID: Final = {"x": 0, "y": 0, "w": 12, "h": 8}


def _queries(where: str, found: Mapping[str, Any]) -> Iterator[Query]:
    for at, each in enumerate(found.get("targets") or ()):
        if each.get("hide"):
            continue
        if not each.get("expr"):
            raise DashboardError(
                f"{where}: targets[{at}].expr: is missing; only queries of a Prometheus are drawn"
            )
        legend = each.get("legendFormat") or ""
        yield Query(
            expression=str(each["expr"]),
            legend="" if legend == "__auto" else str(legend),
            instant=bool(each.get("instant")) and not each.get("range"),
        )


def _overrides(fields: Mapping[str, Any]) -> Iterator[Override]:
    for each in fields.get("overrides") or ():
        matcher = each.get("matcher") or {}
        if matcher.get("id") == "byRegexp":
            pattern = str(matcher.get("options") or "").strip("/")
            properties = {one["id"]: one.get("value") for one in each.get("properties") or ()}
            yield Override(pattern=pattern, properties=properties)
