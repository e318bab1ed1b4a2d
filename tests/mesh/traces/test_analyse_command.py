"""``tidegate trace analyse`` with the controller's API, and with a Jaeger without a search."""

import asyncio
import json

import aiohttp
import pytest
from aiohttp import web
from made_traces import START_US, many_calls, vision_call
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_spans import exported, request, span
from typer.testing import CliRunner

from tidegate.cli.traces import analysing, commands, period_reading
from tidegate.cli.traces.jaeger_client import JaegerClient
from tidegate.cli.traces.period_reading import read_period
from tidegate.mesh.traces.errors import TracesError, TracesUnreachableError
from tidegate.trace_analysis.analysis import UnknownVersionError

SERVICE = "tidegate-vision"
END_US = START_US + 3600 * 10**6


@pytest.fixture(autouse=True)
def an_hour_later(monkeypatch):
    """The command runs an hour after the traces began."""
    monkeypatch.setattr(analysing, "now_us", lambda: END_US)


async def stored(traces, made):
    sent = ExportTraceServiceRequest()
    for each in made:
        for part in exported(each):
            sent.MergeFrom(part)
    await traces.stub.Export(sent)


@pytest.fixture
async def traces(collector):
    """A collector with eighty calls of two versions, one of which failed."""
    traces = await collector()
    await stored(traces, many_calls(79, slower_us=20_000))
    failed = vision_call(80, (1, 1, 1, 1), start_us=80_000, status="UNAVAILABLE")
    await stored(traces, [failed])
    return traces


async def invoked(url, *arguments):
    return await asyncio.to_thread(
        CliRunner().invoke, commands.app, ["analyse", "--url", url, *arguments]
    )


async def analysed(url, *arguments):
    done = await invoked(url, *arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


async def refused(url, *arguments):
    done = await invoked(url, *arguments)
    assert done.exit_code == 2, (done.output, done.exception)
    return " ".join(done.stderr.replace("│", " ").split())


async def error_of(url, *arguments, kind=TracesError):
    done = await invoked(url, *arguments)
    assert isinstance(done.exception, kind), (done.output, done.exception)
    return str(done.exception)


async def test_a_malformed_option_is_refused_with_its_name_and_the_right_form(traces):
    for text in ("soon", "5", "-1h", "1h x", ""):
        said = await refused(traces.url, "--since", text)
        assert f"--since is {text!r}, which is not a duration; write it like 30s, 15m" in said
    said = await refused(traces.url, "--compare", "v1", "v1")
    assert "--compare needs two versions, and both are 'v1'" in said
    said = await refused(traces.url, "--flame-format", "d3")
    assert "--flame-format needs --flame FILE" in said


async def test_an_unknown_service_is_an_error_that_names_the_known_ones(traces):
    assert await error_of(traces.url, "--service", "vision") == (
        f"there is no service vision at {traces.url};"
        " there are ingress, tidegate-cli, tidegate-vision"
    )


async def test_without_traces_the_error_says_so(collector):
    url = (await collector()).url
    assert await error_of(url) == f"there are no traces at {url}"
    assert await error_of(url, "--service", "x") == (
        f"there is no service x at {url}; there are none at all"
    )


async def test_a_period_without_traces_is_an_error_that_says_when_there_were_some(traces):
    assert await error_of(traces.url, "--service", SERVICE, "--since", "5m") == (
        f"there are no traces of {SERVICE} of the last 5m at {traces.url}; one of the newest began"
        " 2025-11-24 16:00:00.080Z; --since looks back further"
    )


async def test_spans_without_a_version_need_a_service(collector):
    traces = await collector()
    await traces.stub.Export(request(span(1, 1), service="mine"))
    said = await error_of(traces.url)
    assert "has named the version of a model lately; choose one with --service: mine" in said
    assert "1 call" in await analysed(traces.url, "--service", "mine")


async def test_an_unknown_version_and_a_method_without_calls_are_errors(traces):
    said = await error_of(traces.url, "--version", "v9", kind=UnknownVersionError)
    assert "was served by version v9; there are" in said
    said = await error_of(traces.url, "--operation", "VisionService/Nothing")
    assert said == (
        f"there are no calls of {SERVICE} VisionService/Nothing in the traces"
        f" (80 of the last 1h at {traces.url})"
    )


async def test_a_jaeger_that_is_away_is_unreachable():
    said = await error_of("http://127.0.0.1:9", kind=TracesUnreachableError)
    assert "cannot read traces from http://127.0.0.1:9: Connection refused" in said


async def test_the_service_whose_spans_name_versions_is_found_and_reported(traces):
    text = await analysed(traces.url, "--compare", "v1", "v2")
    assert text.startswith(f"{SERVICE}: 80 calls, 640 spans, 2025-11-24 16:00:00.001Z to ")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "VERSION CALLS FAILED MEAN P50 P95 P99 QUEUE COMPUTE SERVER OUTSIDE" in lines
    assert "Where the time goes, 1-int8 (v2)" in lines
    assert "1-int8 compared with 1-fp32" in lines
    assert any(
        line.startswith(f"{SERVICE} inference 50%") and line.endswith(" more") for line in lines
    )
    assert any(" 1-fp32 1 UNAVAILABLE " in line for line in lines)


async def test_the_report_is_json_for_programs(traces):
    document = json.loads(await analysed(traces.url, "--output", "json", "--compare", "v1", "v2"))
    assert document["schema"] == "tidegate.trace-analysis/v1"
    assert (document["start_us"], document["end_us"]) == (START_US, END_US)
    (report,) = document["services"]
    assert (report["service"], report["calls"], report["spans"]) == (SERVICE, 80, 640)
    assert sum(each["statuses"].get("UNAVAILABLE", 0) for each in report["versions"]) == 1
    differences = {
        (each["what"], each["quantile"]): each for each in report["comparison"]["differences"]
    }
    assert differences[f"{SERVICE} inference", 0.5]["verdict"] == "more"
    assert [each["trace_id"] for each in report["failed"]] == [f"{80:032x}"]


async def test_flame_graphs_are_written_in_each_form(traces, tmp_path):
    for name, options, beginning in (
        ("calls.svg", (), "<svg "),
        ("calls.json", (), '{"$schema": "https://www.speedscope.app/'),
        ("d3.json", ("--flame-format", "d3"), f'{{"name": "{SERVICE}"'),
    ):
        await analysed(traces.url, "--flame", str(tmp_path / name), *options)
        assert (tmp_path / name).read_text().startswith(beginning)
    said = await refused(traces.url, "--flame", str(tmp_path / "missing/calls.svg"))
    assert "cannot write" in said
    assert "No such file or directory" in said


async def test_each_of_several_services_is_reported_and_a_flame_graph_needs_one(traces, tmp_path):
    sent = request(
        span(0xC0, 1, tidegate__model__version="7", kind=2, start_ms=5), service="tidegate-llm"
    )
    await traces.stub.Export(sent)
    text = await analysed(traces.url)
    assert text.index("tidegate-llm: 1 call, 1 span") < text.index(f"{SERVICE}: 80 calls")
    said = await refused(traces.url, "--flame", str(tmp_path / "calls.svg"))
    assert f"choose one of tidegate-llm, {SERVICE} with --service" in said


async def test_only_the_newest_traces_are_read_beyond_the_limit(traces):
    done = await invoked(traces.url, "--limit", "10")
    assert f"these are the newest 10 traces of {SERVICE}; --limit reads more" in done.stderr
    assert "10 calls" in done.stdout


async def read(url, most=1_000):
    def work():
        return list(read_period(JaegerClient(url), SERVICE, START_US, END_US, most))

    return [int(each.trace_id, 16) for each in await asyncio.to_thread(work)]


async def test_a_period_with_more_traces_than_a_page_is_divided(traces, monkeypatch):
    monkeypatch.setattr(period_reading, "_PAGE", 7)
    assert sorted(await read(traces.url)) == list(range(1, 81))
    assert sorted(await read(traces.url, 10)) == list(range(71, 81))


async def test_a_moment_with_more_traces_than_a_page_ends(collector, monkeypatch):
    traces = await collector()
    await stored(traces, (vision_call(number, (1, 1, 1, 1)) for number in range(1, 9)))
    monkeypatch.setattr(period_reading, "_PAGE", 3)
    assert len(await read(traces.url)) == 3


@pytest.fixture
async def later_jaeger(traces):
    """A Jaeger without the search for whole traces, which serves the page of its UI instead."""

    async def answer(asked):
        if asked.path == "/api/traces":
            return web.Response(text="<!doctype html>", content_type="text/html")
        async with (
            aiohttp.ClientSession() as session,
            session.get(traces.url + asked.path_qs) as found,
        ):
            return web.json_response(await found.json(), status=found.status)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_jaeger_without_the_search_is_read_trace_by_trace(later_jaeger):
    assert sorted(await read(later_jaeger)) == list(range(1, 81))
