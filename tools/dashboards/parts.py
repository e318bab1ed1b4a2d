"""The parts of dashboards: queries, panels, variables and links, all of one look.

Every query names the metric, its filters and its window, so that it means the same in Grafana, in
`tidegate dashboard render` and in the query field of Prometheus. `$__rate_interval` is Grafana's
window for `rate`: at least four scrapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.cog.variants import Dataquery

__all__ = [
    "DASHED",
    "DOTTED",
    "LIMIT",
    "QUANTILES",
    "STEPPED",
    "Shape",
    "annotation",
    "dashboard_of",
    "label_variable",
    "latest",
    "latest_numbers",
    "latest_table",
    "over_time",
    "query",
    "row",
    "search_link",
    "states_over_time",
    "text_variable",
]

_SOURCE: Final = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_SOURCE_OF_VARIABLES: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG: Final = "tidegate"
_RED: Final = "red"


class Shape:
    """How some series of a panel look, chosen by their names.

    Args:
        pattern: A regular expression of the names.
        dash: The lengths of the dashes and gaps of the line; empty for a whole line.
        width: The width of the line.
        colour: A fixed colour; empty for the next one of the palette.
        stepped: Whether a value lasts until the next one.
    """

    def __init__(
        self,
        pattern: str,
        *,
        dash: Sequence[float] = (),
        width: float | None = None,
        colour: str = "",
        stepped: bool = False,
    ) -> None:
        self._pattern = pattern
        self._properties: list[models.DynamicConfigValue] = []
        if dash:
            style = {"fill": "dash", "dash": list(dash)}
            self._add("custom.lineStyle", style)
        if width is not None:
            self._add("custom.lineWidth", width)
        if colour:
            self._add("color", {"mode": "fixed", "fixedColor": colour})
        if stepped:
            self._add("custom.lineInterpolation", "stepAfter")

    def _add(self, name: str, value: object) -> None:
        self._properties.append(models.DynamicConfigValue(id_val=name, value=value))

    def add_to(self, panel: timeseries.Panel) -> None:
        """Gives a panel's series this shape."""
        panel.override_by_regexp(f"/{self._pattern}/", self._properties)


LIMIT: Final = Shape("threshold|limit|budget", dash=(10, 6), colour=_RED, stepped=True)
"""What a value is compared with."""

STEPPED: Final = Shape("intended", stepped=True, width=2)
"""What was decided, and holds until the next decision."""

DASHED: Final = Shape("written", dash=(8, 4), stepped=True)
"""What stands in the objects of the mesh."""

DOTTED: Final = Shape("observed|ends", dash=(2, 3), width=1)
"""What was counted."""

QUANTILES: Final = (Shape("p50"), Shape("p95", dash=(6, 4)), Shape("p99", dash=(2, 3)))
"""The quantiles of one version: the higher ones have broken lines."""


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    """A query whose value over time is drawn.

    Args:
        expression: The PromQL.
        legend: The name of each series, with labels as ``{{version}}``.
    """
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(_SOURCE)


def latest(expression: str, legend: str = "") -> prometheus.Dataquery:
    """A query whose value at the end of the time range is shown.

    Args:
        expression: The PromQL; ``$__range`` is the length of the time range.
        legend: The name of each number.
    """
    return query(expression, legend).instant()


def over_time(
    title: str,
    description: str,
    queries: Sequence[prometheus.Dataquery],
    *,
    unit: str = "short",
    span: int = 12,
    height: int = 8,
    shapes: Iterable[Shape] = (),
    log: bool = False,
    stacked: bool = False,
    least: float | None = None,
    most: float | None = None,
    link: dashboard.DashboardLink | None = None,
) -> timeseries.Panel:
    """A panel with lines over time.

    Args:
        title: The title.
        description: What the panel says, and what to do about it.
        queries: The queries.
        unit: Grafana's name of the unit: ``s``, ``percentunit``, ``reqps``.
        span: The width, of 24.
        height: The height, in Grafana's units.
        shapes: Shapes of some series.
        log: Whether the axis is logarithmic.
        stacked: Whether the series add up.
        least: Where the axis begins; by default where the data do.
        most: Where the axis ends at least.
        link: Where a click on a series leads.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .targets(_named(queries))
        .unit(unit)
        .span(span)
        .height(height)
        .line_width(1)
        .fill_opacity(30 if stacked else 0)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if log:
        panel.scale_distribution(
            common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        )
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.axis_soft_max(most)
    if link is not None:
        panel.data_links([link])
    for shape in shapes:
        shape.add_to(panel)
    return panel


def states_over_time(
    title: str,
    description: str,
    queries: Sequence[prometheus.Dataquery],
    states: Mapping[str, tuple[str, str]],
    *,
    span: int = 24,
    height: int = 5,
) -> statetimeline.Panel:
    """A panel with the states of things over time.

    Args:
        title: The title.
        description: What the panel says.
        queries: The queries; their values are the states.
        states: The word and the colour of each value.
        span: The width, of 24.
        height: The height.
    """
    results = {
        value: models.ValueMappingResult(text=text, color=colour, index=at)
        for at, (value, (text, colour)) in enumerate(states.items())
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .targets(_named(queries))
        .mappings([models.ValueMap(options=results)])
        .merge_values(True)
        .row_height(0.8)
        .span(span)
        .height(height)
    )


def latest_numbers(
    title: str,
    description: str,
    queries: Sequence[prometheus.Dataquery],
    *,
    unit: str = "short",
    span: int = 24,
    height: int = 4,
) -> stat.Panel:
    """A panel with some numbers.

    Args:
        title: The title.
        description: What the panel says.
        queries: The queries, made by `latest`.
        unit: Grafana's name of the unit.
        span: The width, of 24.
        height: The height.
    """
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .targets(_named(queries))
        .unit(unit)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(common_models.BigValueColorMode.NONE)
        .text_mode(common_models.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .span(span)
        .height(height)
    )


def latest_table(
    title: str,
    description: str,
    expression: str,
    columns: Mapping[str, str],
    *,
    value: str = "",
    unit: str = "short",
    span: int = 12,
    height: int = 8,
) -> table.Panel:
    """A panel with a row for each series.

    Args:
        title: The title.
        description: What the panel says.
        expression: The PromQL.
        columns: The headings of the labels to show, in their order.
        value: The heading of the value; empty hides it.
        unit: Grafana's name of its unit.
        span: The width, of 24.
        height: The height.
    """
    names = {**columns, **({"Value": value} if value else {})}
    organise = models.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": {"Time": True, **({} if value else {"Value": True})},
            "indexByName": {name: at for at, name in enumerate(names)},
            "renameByName": names,
        },
    )
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(_SOURCE)
        .targets(_named([latest(expression).format(PromQueryFormat.TABLE)]))
        .transformations([organise])
        .unit(unit)
        .span(span)
        .height(height)
    )


def _named(queries: Sequence[prometheus.Dataquery]) -> list[Builder[Dataquery]]:
    """Names the queries of a panel A, B, C."""
    return [each.ref_id(chr(ord("A") + at)) for at, each in enumerate(queries)]


def row(title: str) -> dashboard.Row:
    """The heading of the panels that follow."""
    return dashboard.Row(title)


def label_variable(name: str, label: str, metric: str, *, title: str) -> dashboard.QueryVariable:
    """A variable with the values of a label, all of them at first.

    Args:
        name: The variable's name in queries.
        label: The label.
        metric: The series whose label it is.
        title: What people see.
    """
    return (
        dashboard.QueryVariable(name)
        .label(title)
        .query(f"label_values({metric}, {label})")
        .datasource(_SOURCE_OF_VARIABLES)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(text="All", value="$__all"))
    )


def text_variable(name: str, value: str, *, title: str) -> dashboard.TextBoxVariable:
    """A variable that people type in, such as the address of another program."""
    return dashboard.TextBoxVariable(name).label(title).default_value(value)


def search_link(title: str, url: str) -> dashboard.DashboardLink:
    """A link to another program, with variables and labels in its address."""
    link = dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK)
    return link.url(url).target_blank(True)


def annotation(name: str, expression: str, text: str, colour: str) -> dashboard.AnnotationQuery:
    """Marks moments in every panel over time.

    Args:
        name: What the moments are.
        expression: The PromQL; a moment is where a series begins.
        text: What happened, with labels as ``{{phase}}``.
        colour: The colour of the marks.
    """
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(_SOURCE_OF_VARIABLES)
        .enable(True)
        .icon_color(colour)
        .expr(expression)
        .step("10s")
        .title_format(text)
    )


def dashboard_of(
    name: str,
    title: str,
    description: str,
    *,
    variables: Sequence[Builder[models.VariableModel]],
    parts: Sequence[
        dashboard.Row | timeseries.Panel | statetimeline.Panel | stat.Panel | table.Panel
    ],
    annotations: Sequence[dashboard.AnnotationQuery] = (),
    links: Sequence[dashboard.DashboardLink] = (),
) -> dashboard.Dashboard:
    """A dashboard.

    Args:
        name: Its identity after ``tidegate-``.
        title: Its title.
        description: What it is for.
        variables: Its variables, beside the one of the Prometheus.
        parts: Its headings and panels, in order.
        annotations: The moments that it marks.
        links: Its links, beside those to the other dashboards.
    """
    others = (
        dashboard.DashboardLink("Tidegate")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(True)
        .keep_time(True)
    )
    made = (
        dashboard.Dashboard(title)
        .uid(f"tidegate-{name}")
        .description(description)
        .tags([_TAG])
        .editable()
        .timezone("browser")
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
    )
    for variable in variables:
        made.with_variable(variable)
    for each in annotations:
        made.annotation(each)
    for number, part in enumerate(parts, 1):
        part.id(number)
        if isinstance(part, dashboard.Row):
            made.with_row(part)
        else:
            made.with_panel(part)
    return made.links([others, *links])
