"""One HTML page with dashboards: it needs nothing but itself, and loads nothing."""

import datetime as dt
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from tidegate.cli.dashboard.answers import Line, Mark, PanelData, TimeRange
from tidegate.cli.dashboard.definitions import Dashboard, Panel
from tidegate.cli.dashboard.units import text_of
from tidegate.rollout.texts import escaped

__all__ = ["DrawnDashboard", "dashboards_page"]

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; color: #1f2328; background: #f6f8fa; margin: 1rem; }}
main {{ max-width: 1560px; margin: 0 auto; }}
h1 {{ font-size: 1.3rem; margin: 1.5rem 0 .2rem; }}
h2 {{ font-size: 1rem; margin: 1rem 0 0; grid-column: 1 / -1; }}
.grid {{ display: grid; grid-template-columns: repeat(24, minmax(0, 1fr)); gap: .5rem; }}
.panel {{ background: #fff; border: 1px solid #d0d7de; border-radius: 6px; padding: .5rem .6rem;
  min-width: 0; overflow: hidden; }}
.panel h3 {{ font-size: .85rem; margin: 0 0 .3rem; }}
.panel svg {{ width: 100%; height: auto; display: block; }}
.legend {{ font-size: 11px; color: #424a53; display: flex; flex-wrap: wrap; gap: 0 .9rem; }}
.legend i {{ display: inline-block; width: 14px; border-top: 3px solid; margin: 0 4px 3px 0; }}
.legend b {{ font-weight: 600; }}
.numbers {{ display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; }}
.numbers b {{ display: block; font-size: 1.7rem; font-weight: 600; line-height: 1.2; }}
table {{ border-collapse: collapse; width: 100%; font-size: 12px; }}
th, td {{ text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #d0d7de;
  overflow-wrap: anywhere; }}
.dim {{ color: #656d76; }} .bad {{ color: #cf222e; }}
@media (max-width: 800px) {{ .grid {{ display: block; }} .panel {{ margin-bottom: .5rem; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_MOST_IN_LEGEND: Final = 40
_MOST_ROWS: Final = 100


class DrawnDashboard:
    """A dashboard with what it shows.

    Args:
        dashboard: The dashboard.
        panels: What its panels show.
        marks: The moments that it marks.
    """

    def __init__(
        self, dashboard: Dashboard, panels: Sequence[PanelData], marks: Sequence[Mark]
    ) -> None:
        self.dashboard = dashboard
        self.panels = panels
        self.marks = marks

    @property
    def empty(self) -> tuple[str, ...]:
        """The titles of panels without data."""
        shown = (each for each in self.panels if each.panel.queries)
        return tuple(each.panel.title for each in shown if not each.lines)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why queries failed."""
        return tuple(each.problem for each in self.panels if each.problem)


def dashboards_page(drawn: Sequence[DrawnDashboard], span: TimeRange, url: str) -> str:
    """Returns the page.

    Args:
        drawn: The dashboards.
        span: The time range.
        url: The address of the Prometheus.
    """
    start, end = (dt.datetime.fromtimestamp(each).astimezone() for each in _ends(span))
    told = f"{start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S %Z}, from {url}"
    parts = [f'<p class="dim">{_html(told)}</p>']
    for number, each in enumerate(drawn):
        parts += _dashboard(each, span, number)
    title = drawn[0].dashboard.title if len(drawn) == 1 else "Tidegate: dashboards"
    return _PAGE.format(title=_html(title), body="\n".join(parts))


def _ends(span: TimeRange) -> tuple[float, float]:
    return span.start_s, span.end_s


def _dashboard(drawn: DrawnDashboard, span: TimeRange, number: int) -> Iterable[str]:
    yield f"<h1>{_html(drawn.dashboard.title)}</h1>"
    yield f'<p class="dim">{_html(drawn.dashboard.description)}</p>'
    yield '<div class="grid">'
    for data in drawn.panels:
        panel = data.panel
        if panel.type == "row":
            yield f"<h2>{_html(panel.title)}</h2>"
            continue
        column, _, width, _ = panel.place
        place = f"grid-column: {column + 1} / span {width}"
        yield f'<section class="panel" style="{place}" title="{_html(panel.description)}">'
        yield f"<h3>{_html(panel.title)}</h3>"
        yield from _content(data, span, drawn.marks, f"{number}-{panel.id}")
        yield "</section>"
    yield "</div>"


def _content(data: PanelData, span: TimeRange, marks: Sequence[Mark], salt: str) -> Iterable[str]:
    if data.problem:
        yield f'<p class="bad">{_html(data.problem)}</p>'
    if not data.lines:
        yield '<p class="dim">no data</p>'
        return
    match data.panel.type:
        case "stat":
            yield _numbers(data)
        case "table":
            yield _table(data)
        case _:
            # Drawing needs a library that takes a second to import.
            from tidegate.cli.dashboard.drawing import draw_lines, draw_states
            from tidegate.cli.figures import svg

            draw = draw_states if data.panel.type == "state-timeline" else draw_lines
            figure, legend = draw(data, span, marks)
            yield svg(figure, salt, tight=False)
            yield _legend(legend)


def _legend(entries: Sequence[tuple[str, str, str, str]]) -> str:
    shown = dict.fromkeys(entries)
    items = [
        f'<span><i style="border-top: 3px {line} {colour}"></i>{_html(name)}'
        f" <b>{_html(value)}</b></span>"
        for name, colour, value, line in list(shown)[:_MOST_IN_LEGEND]
    ]
    if len(shown) > _MOST_IN_LEGEND:
        items.append(f"<span>and {len(shown) - _MOST_IN_LEGEND} more</span>")
    return f'<div class="legend">{"".join(items)}</div>'


def _numbers(data: PanelData) -> str:
    items = (
        f"<span><b>{_html(text_of(line.samples[-1][1], data.panel.unit))}</b>{_html(line.name)}"
        "</span>"
        for line in data.lines
    )
    return f'<div class="numbers">{"".join(items)}</div>'


def _table(data: PanelData) -> str:
    columns = _columns(data.panel, data.lines)
    rows = sorted(tuple(_cell(data.panel, line, name) for name in columns) for line in data.lines)
    lines = [f"<tr>{''.join(f'<th>{_html(each)}</th>' for each in columns.values())}</tr>"]
    lines += [
        f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>"
        for row in rows[:_MOST_ROWS]
    ]
    if len(rows) > _MOST_ROWS:
        lines.append(f"<tr><td>and {len(rows) - _MOST_ROWS} more</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _columns(panel: Panel, lines: Sequence[Line]) -> dict[str, str]:
    """The headings of the columns by the labels that they show, in their order."""
    names = dict.fromkeys(name for line in lines for name in line.labels)
    columns = {**{name: name for name in names}, "Value": "Value"}
    for each in panel.transformations:
        if each.get("id") != "organize":
            continue
        options = each.get("options") or {}
        hidden, order = options.get("excludeByName") or {}, options.get("indexByName") or {}
        titles = options.get("renameByName") or {}
        kept = [name for name in columns if not hidden.get(name)]
        kept.sort(key=lambda name: order.get(name, len(order)))
        columns = {name: titles.get(name) or name for name in kept}
    return columns


def _cell(panel: Panel, line: Line, name: str) -> str:
    if name == "Value":
        return text_of(line.samples[-1][1], panel.unit)
    return line.labels.get(name, "")


def _html(text: str) -> str:
    return escape(escaped(text), quote=True)
