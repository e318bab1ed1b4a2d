"""Jaeger's query API: requests of Grafana, of two generations of Jaeger's UI, and any others."""

import json

import aiohttp
import hypothesis.strategies as st
import pytest
from hypothesis import given
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_spans import MS, START_NS, request, span

from tidegate.mesh.traces.errors import BadQueryError, TracesError
from tidegate.mesh.traces.intake import TraceLimits
from tidegate.mesh.traces.jaeger_api import jaeger_api
from tidegate.mesh.traces.jaeger_query import (
    dependency_period_ns,
    search_query,
    summary_query,
    trace_id,
)

START_US = START_NS // 1000


@pytest.fixture
async def api(collector):
    """A collector with two traces; yields a function that queries it."""
    traces = await collector()
    client = span(1, 1, name="call", kind=Span.SPAN_KIND_CLIENT, duration_ms=9)
    await traces.stub.Export(request(client, service="client"))
    await traces.stub.Export(request(span(1, 2, parent=1, name="infer", failed=True, version="v2")))
    await traces.stub.Export(request(span(2, 1, start_ms=20, name="idle", duration_ms=0.5)))
    async with aiohttp.ClientSession(traces.url) as session:

        async def ask(path, **parameters):
            async with session.get(path, params=parameters) as answer:
                assert answer.content_type == "application/json"
                return answer.status, await answer.json()

        yield ask


async def ids(api, **parameters):
    status, answer = await api("/api/traces", **parameters)
    assert status == 200
    return [int(trace["traceID"], 16) for trace in answer["data"]]


async def test_services_and_operations(api):
    assert await api("/api/services") == (
        200,
        {"data": ["client", "vision"], "total": 2, "limit": 0, "offset": 0, "errors": None},
    )
    _, answer = await api("/api/services/vision/operations")
    assert answer["data"] == ["idle", "infer"]
    _, answer = await api("/api/operations", service="client")
    assert answer["data"] == [{"name": "call", "spanKind": "client"}]
    _, answer = await api("/api/operations", service="client", spanKind="server")
    assert answer["data"] == []
    _, answer = await api("/api/services/no%2Fsuch/operations")
    assert answer["data"] == []


async def test_trace_by_its_id_with_or_without_leading_zeros(api):
    status, answer = await api(f"/api/traces/{1:032x}")
    assert status == 200
    (trace,) = answer["data"]
    assert [each["operationName"] for each in trace["spans"]] == ["call", "infer"]
    assert {each["serviceName"] for each in trace["processes"].values()} == {"client", "vision"}
    assert await api("/api/traces/1") == (status, answer)


async def test_search_with_grafanas_parameters(api):
    everything = {"start": f"{START_US - 1}", "end": f"{START_US + 10**6}", "lookback": "custom"}
    vision = {**everything, "service": "vision"}
    client = {**everything, "service": "client"}
    assert await ids(api, **vision, limit="20") == [2, 1]
    assert await ids(api, **vision, limit="1") == [2]
    assert await ids(api, **client) == [1]
    assert await ids(api, **vision, operation="idle") == [2]
    assert await ids(api, **vision, minDuration="1ms") == [1]
    assert await ids(api, **vision, maxDuration="600us") == [2]
    assert await ids(api, **vision, minDuration="1ms", maxDuration="0s") == [1]
    assert await ids(api, **vision, tags='{"error":"true"}') == [1]
    assert await ids(api, **client, tags='{"error":"true"}') == []
    # All spans that have not failed, with status OK or none.
    assert await ids(api, **vision, tags='{"error":"false"}') == [2]
    assert await ids(api, **vision, operation="infer", tags='{"error":"false"}') == []
    assert await ids(api, **vision, tag="version:v2") == [1]
    assert await ids(api, **vision, tags='{"version":"v1"}') == []
    assert await ids(api, service="vision", start=f"{START_US + 10}") == [2]
    assert await ids(api, service="vision", end=f"{START_US + 10}") == [1]


async def test_lookback_counts_from_the_end(api):
    end = f"{START_US + 30_000}"
    assert await ids(api, service="vision", end=end, lookback="15ms") == [2]
    assert await ids(api, service="vision", end=end, lookback="2d") == [2, 1]
    # The clock of the API is an hour ahead.
    assert await ids(api, service="vision", lookback="1m") == []


async def test_several_traces_by_id_with_the_missing_ones(api):
    _, answer = await api("/api/traces?traceID=2&traceID=abc&traceID=1")
    assert [int(trace["traceID"], 16) for trace in answer["data"]] == [2, 1]
    assert answer["errors"] == [{"msg": "trace not found", "traceID": f"{0xABC:032x}"}]


async def test_dependencies_are_calls_between_services(api):
    _, answer = await api("/api/dependencies")
    assert answer["data"] == [{"parent": "client", "child": "vision", "callCount": 1}]
    _, answer = await api("/api/dependencies", endTs=f"{START_US // 1000 + 5}", lookback="10")
    assert len(answer["data"]) == 1
    _, answer = await api("/api/dependencies", endTs=f"{START_US // 1000 - 5}", lookback="10")
    assert answer["data"] == []
    _, answer = await api("/api/dependencies", service="other")
    assert answer["data"] == []


async def test_the_later_api_accepts_its_older_parameter_names(api):
    status, answer = await api(
        "/api/v3/trace-summaries",
        **{
            "query.service_name": "client",
            "query.start_time_min": "2025-11-24T15:59:00.000Z",
            "query.start_time_max": "2025-11-24T16:01:00.000Z",
            "query.num_traces": "1",
        },
    )
    assert (status, len(answer["summaries"])) == (200, 1)
    _, answer = await api("/api/v3/operations", service="client", span_kind="server")
    assert answer == {"operations": []}


async def test_requests_of_jaegers_ui_since_2026(api):
    assert await api("/api/v3/services") == (200, {"services": ["client", "vision"]})
    _, answer = await api("/api/v3/operations", service="vision")
    assert [each["name"] for each in answer["operations"]] == ["idle", "infer"]
    status, answer = await api(
        "/api/v3/trace-summaries",
        **{
            "query.serviceName": "client",
            "query.startTimeMin": "2025-11-24T15:59:00.000Z",
            "query.startTimeMax": "2025-11-24T16:01:00.000Z",
            "query.searchDepth": "20",
            "query.durationMin": "1ms",
        },
    )
    assert status == 200
    assert answer == {
        "summaries": [
            {
                "traceId": f"{1:032x}",
                "rootServiceName": "client",
                "rootOperationName": "call",
                "minStartTimeUnixNano": str(START_NS),
                "maxEndTimeUnixNano": str(START_NS + 9 * MS),
                "spanCount": 2,
                "errorSpanCount": 1,
                "orphanSpanCount": 0,
                "services": [
                    {"name": "client", "spanCount": 1, "errorSpanCount": 0},
                    {"name": "vision", "spanCount": 1, "errorSpanCount": 1},
                ],
            }
        ]
    }


@pytest.mark.parametrize(
    ("path", "parameters", "status", "message"),
    [
        ("/api/traces/xyz", {}, 400, "hexadecimal"),
        (f"/api/traces/{'1' * 33}", {}, 400, "hexadecimal"),
        ("/api/traces/abc", {}, 404, "trace not found"),
        (f"/api/traces/{1:032x}", {"raw": "maybe"}, 400, "unable to parse param 'raw'"),
        (f"/api/traces/{1:032x}", {"start": "soon"}, 400, "'start'"),
        ("/api/traces", {}, 400, "parameter 'service' is required"),
        ("/api/traces", {"service": ""}, 400, "parameter 'service' is required"),
        ("/api/traces", {"operation": "idle"}, 400, "parameter 'service' is required"),
        ("/api/traces", {"service": "vision", "raw": "maybe"}, 400, "'raw'"),
        ("/api/traces", {"service": "vision", "limit": f"{2**31}"}, 400, "out of range"),
        ("/api/traces", {"service": "vision", "end": f"{2**63}"}, 400, "out of range"),
        ("/api/traces", {"traceID": "1", "limit": "many"}, 400, "'limit'"),
        ("/api/traces", {"traceID": "1", "start": "soon"}, 400, "'start'"),
        ("/api/dependencies", {"endTs": f"{2**63}"}, 400, "out of range"),
        ("/api/traces", {"start": "soon"}, 400, "'start'"),
        ("/api/traces", {"limit": "many"}, 400, "'limit'"),
        ("/api/traces", {"minDuration": "5"}, 400, "'minDuration'"),
        ("/api/traces", {"minDuration": "2s", "maxDuration": "1s"}, 400, "greater than"),
        ("/api/traces", {"tags": "[]"}, 400, "'tags'"),
        ("/api/traces", {"tags": '{"a":1}'}, 400, "'tags'"),
        ("/api/traces", {"tags": "[" * 100_0}, 400, "'tags'"),
        ("/api/traces", {"tag": "a"}, 400, "'tag'"),
        ("/api/traces", {"traceID": "!"}, 400, "hexadecimal"),
        ("/api/operations", {}, 400, "'service' is required"),
        ("/api/dependencies", {"lookback": "1h"}, 400, "'lookback'"),
        ("/api/nothing", {}, 404, "Not Found"),
    ],
)
async def test_errors_are_jaegers_json(api, path, parameters, status, message):
    got, answer = await api(path, **parameters)
    assert got == status
    assert answer["data"] is None
    (error,) = answer["errors"]
    assert error["code"] == status
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "are required"),
        ({"query.startTimeMin": "x", "query.startTimeMax": "y"}, "query.startTimeMin"),
        ({"query.startTimeMin": "2025-11-24", "query.startTimeMax": "y"}, "no time zone"),
    ],
)
async def test_errors_of_the_later_api_are_its_own(api, parameters, message):
    status, answer = await api("/api/v3/trace-summaries", **parameters)
    assert status == 400
    assert answer["error"]["httpCode"] == 400
    assert message in answer["error"]["message"]


async def test_methods_that_modify_are_not_allowed(collector):
    traces = await collector()
    async with aiohttp.ClientSession(traces.url) as session, session.post("/api/traces") as answer:
        assert answer.status == 405
        assert (await answer.json())["errors"][0]["code"] == 405


async def test_a_busy_store_is_reported(collector):
    traces = await collector(TraceLimits(max_waiting=0))
    async with aiohttp.ClientSession(traces.url) as session, session.get("/api/services") as answer:
        assert answer.status == 503
        assert "try again" in (await answer.json())["errors"][0]["msg"]


async def test_a_port_in_use_is_reported(collector):
    traces = await collector()
    port = int(traces.url.rpartition(":")[2])
    with pytest.raises(TracesError, match=f"cannot listen on 127.0.0.1:{port}"):
        async with jaeger_api(traces.store, port=port):
            pass


async def test_hostile_span_is_shown_as_json(collector):
    traces = await collector()
    odd = span(1, 1, name='"\x00\x1b[31m</script>', nan=float("nan"), big=2**60)
    await traces.stub.Export(request(odd))
    async with aiohttp.ClientSession(traces.url) as session, session.get("/api/traces/1") as answer:
        (trace,) = json.loads(await answer.read())["data"]
    assert trace["spans"][0]["operationName"] == odd.name


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        *[("1ns", 1), ("1.5us", 1500), ("2µs", 2000), ("2μs", 2000), ("1ms", MS)],
        *[("1h2m3.5s", 3_723_500 * MS), (".5s", 500 * MS), ("1d", 86_400_000 * MS)],
    ],
)
def test_durations_have_gos_syntax(text, nanoseconds):
    assert search_query({"service": ["a"], "minDuration": [text]}, 0).duration_min_ns == nanoseconds


def test_times_of_the_later_api_keep_their_nanoseconds():
    times = {
        "query.startTimeMin": ["1970-01-01T00:00:01.000000007Z"],
        "query.startTimeMax": ["1970-01-01T01:00:02+01:00"],
    }
    query = summary_query(times)
    assert (query.start_min_ns, query.start_max_ns) == (1_000_000_007, 2_000_000_000)


def test_limit_is_bounded():
    assert search_query({"service": ["a"]}, 0).limit == 100
    assert search_query({"service": ["a"], "limit": ["999999"]}, 0).limit == 1_500
    assert search_query({"service": ["a"], "limit": ["-1"]}, 0).limit == 0


names = st.sampled_from(
    [
        *("service", "operation", "tag", "tags", "limit", "start", "end", "lookback", "endTs"),
        *("minDuration", "maxDuration", "query.startTimeMin", "query.startTimeMax"),
        *("query.attributes", "query.searchDepth", "query.durationMin"),
    ]
)
written = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.datetimes(timezones=st.timezones()).map(lambda each: each.isoformat()),
    st.from_regex(r"[0-9.]{1,30}(ns|us|ms|s|h)", fullmatch=True),
)


@given(st.dictionaries(names, st.lists(written, max_size=2)), st.text(max_size=40))
def test_any_query_is_parsed_or_refused(parameters, text):
    for read in (
        lambda: search_query(parameters, START_NS),
        lambda: summary_query(parameters),
        lambda: dependency_period_ns(parameters, START_NS),
        lambda: trace_id(text),
    ):
        try:
            read()
        except BadQueryError:
            continue
