"""``tidegate dashboard render``: panels of a real Prometheus as a page that stands alone."""

import asyncio
import json
import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
from prometheus_server import prometheus
from typer.testing import CliRunner

from tidegate.cli.dashboard.answers import TimeRange, ask, filled
from tidegate.cli.dashboard.commands import app
from tidegate.cli.dashboard.definitions import (
    DashboardError,
    find_dashboard,
    read_dashboard,
    shipped_dashboards,
)
from tidegate.cli.dashboard.pages import DrawnDashboard, dashboards_page
from tidegate.cli.dashboard.units import text_of

NASTY = '<script>alert("1")</script>'
SPAN = TimeRange(1_000.0, 1_900.0)


def panel(kind, expression, legend="{{version}}", **more):
    target = {"expr": expression, "legendFormat": legend}
    if kind in ("stat", "table"):
        target |= {"instant": True, "range": False}
    return {"type": kind, "title": f"a {kind}", "targets": [target]} | more


def written(tmp_path, *panels, **more):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"title": "Own", "panels": list(panels)} | more))
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["render", *map(str, arguments)], env={"COLUMNS": "300"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list 'panels'"),
        (
            '{"panels": [{"type": "heatmap", "title": "Heat"}]}',
            r"panels\[0\] \('Heat'\): type: 'he",
        ),
        (
            '{"panels": [{"type": "stat", "targets": [{"query": "x"}]}]}',
            r"targets\[0\].expr: is mis",
        ),
        ('{"panels": [3]}', "is not a dashboard"),
    ],
)
def test_a_file_that_cannot_be_drawn_is_refused_with_the_place(tmp_path, text, problem):
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(DashboardError, match=problem):
        read_dashboard(path)


def test_an_unknown_dashboard_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(DashboardError, match="did you mean rollouts"):
        find_dashboard("rolouts")
    with pytest.raises(DashboardError, match="cnn, controller, llm, rollouts, services"):
        find_dashboard("x" * 20)
    with pytest.raises(DashboardError, match="cannot be read"):
        read_dashboard(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--since", "5"), "--since 5: write a duration from 10s to 31d"),
        (("--since", "1s"), "--since 1s: write a duration"),
        (("--var", "service"), "--var service: write NAME=VALUE"),
        (("--var", "sevice=x"), "--var sevice: is in no dashboard; there are datasource, jaeger"),
        (("--prometheus", "localhost:9090"), "write an address like http://127.0.0.1:9090"),
    ],
)
def test_a_wrong_option_is_refused_with_the_fix(arguments, problem):
    result = run(*arguments)
    assert result.exit_code == 2
    assert problem in " ".join(re.sub("[│╭╰─╮╯]", " ", result.output).split())


def test_a_prometheus_that_does_not_answer_is_named(tmp_path):
    result = run("--prometheus", "http://127.0.0.1:1", "-o", tmp_path / "page.html")
    assert isinstance(result.exception, DashboardError)
    assert "http://127.0.0.1:1 does not answer" in str(result.exception)
    assert not (tmp_path / "page.html").exists()


def test_variables_are_filled_in_and_other_dollars_stay():
    query = (
        'rate(a{b=~"$b",c="${c:regex}"}[$__rate_interval]) + label_replace(d, "e", "$1", "", "")'
    )
    assert filled(query, {"b": ".*", "c": "x"}, SPAN) == (
        'rate(a{b=~".*",c="x"}[60s]) + label_replace(d, "e", "$1", "", "")'
    )
    assert filled("increase(a[$__range])", {}, SPAN) == "increase(a[900s])"
    # At least four scrapes, and no gap between two points.
    assert filled("$__rate_interval", {}, TimeRange(0, 30 * 86_400)) == "8655s"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0462, "s", "46.2 ms"),
        (90.0, "s", "1.5 min"),
        (0.051, "percentunit", "5.1%"),
        (29.04, "reqps", "29 req/s"),
        (1_234_567.0, "short", "1.23M"),
        (150 * 2**20, "bytes", "150 MiB"),
        (1e9, "none", "1e9"),
        (2.5e-7, "none", "2.5e-7"),
        (0.0, "s", "0 s"),
        (12.0, "no unit", "12"),
        (float("inf"), "none", "∞"),
        (float("nan"), "s", "–"),
    ],
)
def test_numbers_have_their_units(value, unit, text):
    assert text_of(value, unit) == text


def test_every_shipped_dashboard_can_be_read():
    assert len(shipped_dashboards()) == 5
    for path in shipped_dashboards().values():
        assert len(read_dashboard(path).panels) > 8


@pytest.fixture
async def server(tmp_path):
    """A Prometheus with metrics of two versions, one of which has a name that is no good HTML."""
    registry = CollectorRegistry()
    requests = Counter("requests", "Requests.", ("version",), registry=registry)
    phase = Gauge("phase", "The phase.", ("name",), registry=registry)
    for version in ("v1", NASTY):
        requests.labels(version).inc(120)
    phase.labels("demo").set(1)
    http, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        async with prometheus(tmp_path, {"own": http.server_port}) as client:
            await client.until("count_over_time(phase[1m]) >= 3")
            yield client
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


async def test_every_type_of_panel_is_drawn_into_a_page_that_loads_nothing(server, tmp_path):
    states = {"1": {"text": "progressing", "color": "blue"}}
    fields = {"defaults": {"mappings": [{"type": "value", "options": states}]}}
    limit = {
        "matcher": {"id": "byRegexp", "options": "/limit/"},
        "properties": [{"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [4, 4]}}],
    }
    hidden = {"excludeByName": {"Time": True, "instance": True, "job": True, "__name__": True}}
    renamed = hidden | {"renameByName": {"version": "model version", "Value": "how many"}}
    path = written(
        tmp_path,
        {"type": "row", "title": "A row"},
        panel("timeseries", "requests_total", fieldConfig={"overrides": [limit]}),
        panel(
            *("timeseries", "requests_total + 1", "log of {{version}}"),
            fieldConfig={"defaults": {"custom": {"scaleDistribution": {"type": "log"}}}},
        ),
        panel(
            *("timeseries", "0 * requests_total", "stacked"),
            fieldConfig={"defaults": {"min": 0, "custom": {"stacking": {"mode": "normal"}}}},
        ),
        panel("state-timeline", "phase", "{{name}}", fieldConfig=fields),
        panel("stat", "sum(requests_total)", "in total"),
        panel(
            *("table", "requests_total"),
            transformations=[{"id": "organize", "options": renamed}],
        ),
        panel("timeseries", "nothing"),
        panel("stat", "sum("),
        annotations={"list": [{"expr": "phase", "name": "Began", "iconColor": "red"}]},
    )
    dashboard = read_dashboard(path)
    now_s = float((await server.query("vector(time())"))[0][1])
    span = TimeRange(now_s - 60, now_s)
    drawn = DrawnDashboard(dashboard, *await ask(server.url, dashboard, span, {}))
    page = dashboards_page([drawn], span, server.url)
    assert page.count("<svg") == 4
    assert NASTY not in page
    assert "alert" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert "<h2>A row</h2>" in page
    assert "progressing" in page
    assert "<b>240</b>in total" in page
    assert "<th>model version</th><th>how many</th>" in page
    assert "<td>v1</td><td>120</td>" in page
    assert "__name__" not in page
    assert drawn.empty == ("a timeseries", "a stat")
    (problem,) = drawn.problems
    assert "sum(" in problem
    assert "parse error" in problem
    # The series begins within the time range, and is marked there once.
    (mark,) = drawn.marks
    assert (mark.text, mark.colour) == ("Began", "red")


async def test_the_command_writes_the_page_and_says_how_many_panels_are_empty(server, tmp_path):
    path = written(tmp_path, panel("stat", "sum(requests_total)"), panel("stat", "nothing"))
    page = tmp_path / "page.html"
    arguments = ("--prometheus", server.url, "-d", path, "-o", page, "--since", "1m")
    result = await asyncio.to_thread(run, *arguments)
    assert result.exit_code == 0, result.output
    assert "2 panels, 1 of them without data" in result.stderr
    assert "<title>Own</title>" in page.read_text()
    result = await asyncio.to_thread(run, *arguments, "-o", tmp_path / "no" / "page.html")
    assert result.exit_code == 2
    assert "No such file or directory" in result.output
    broken = written(tmp_path, panel("stat", "sum("))
    result = await asyncio.to_thread(run, "--prometheus", server.url, "-d", broken, "-o", page)
    assert "failed queries: 1, such as sum(" in str(result.exception)
