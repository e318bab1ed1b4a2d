"""Prometheus as a source of evidence, with a real Prometheus."""

import asyncio
import time
from contextlib import asynccontextmanager

import aiohttp
import grpc
import pytest
from aiohttp import web
from counted_mesh import counted_mesh as running
from source_traffic import FAILURES, HOST, NOW_S, epoch, measure, watched

from tidegate.evidence.buckets import upper_edge
from tidegate.evidence.window import Counted
from tidegate.prometheus import PrometheusApi, Series
from tidegate.rollout.spec.objectives import Signal
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.router.sources import prometheus as prometheus_source
from tidegate.router.sources.prometheus import PrometheusSource
from tidegate.router.sources.source import UnsupportedError

SLOW = measure(Signal.LATENCY, above=0.25)
LATENCY = measure(Signal.LATENCY, quantile=True)
LATE = measure(Signal.DEADLINE_EXCEEDED)
WAIT_S = 60.0
SETTLE_S = 0.2


@pytest.fixture
def settling(monkeypatch):
    monkeypatch.setattr(prometheus_source, "SETTLE_S", SETTLE_S)


async def until_counted(source, **requests):
    """Takes windows until each version has so many requests."""
    found = []
    async with asyncio.timeout(WAIT_S):
        while True:
            found += await source.take("a", time.time())
            counted = {
                name: sum(each.versions[name].requests for each in found if name in each.versions)
                for name in requests
            }
            if counted == requests:
                return found
            assert all(counted[name] <= requests[name] for name in requests), counted
            await asyncio.sleep(0.1)


def total(windows, version, measured):
    counts = [
        each.versions[version].rates[measured.metric]
        for each in windows
        if version in each.versions
    ]
    return sum(counts, Counted(0, 0))


async def begin(mesh, source, **shares):
    now_s = await mesh.scraped()
    source.begin_epoch("a", epoch(now_s, now_s, **shares))
    await mesh.scraped()


@pytest.mark.usefixtures("settling")
async def test_counters_become_counts_of_versions_and_epochs(tmp_path):
    async with running(tmp_path) as mesh, PrometheusSource().running() as source:
        mesh.serve("v1", 50)
        mesh.serve("v2", 50, grpc.StatusCode.INTERNAL)
        await mesh.scraped()
        source.watch("a", watched(FAILURES, SLOW, LATENCY, LATE, url=mesh.url))
        await begin(mesh, source, v1=0.9, v2=0.1)
        mesh.serve("v1", 20)
        mesh.serve("v1", 2, grpc.StatusCode.UNAVAILABLE, duration_s=0.001)
        mesh.serve("v2", 3, duration_s=0.2)
        mesh.serve("v2", 2, duration_s=0.4)
        # Both ended without an answer, one of them after the bound.
        mesh.serve("v2", 1, grpc.StatusCode.DEADLINE_EXCEEDED, duration_s=1.0)
        mesh.serve("v2", 1, grpc.StatusCode.CANCELLED, duration_s=0.1)
        windows = await until_counted(source, v1=22, v2=7)
        assert {tuple(each.shares.items()) for each in windows} == {(("v1", 0.9), ("v2", 0.1))}
        assert total(windows, "v1", FAILURES) == Counted(22, 2)
        assert total(windows, "v2", FAILURES) == Counted(7, 0)
        assert total(windows, "v2", LATE) == Counted(7, 1)
        assert total(windows, "v1", SLOW) == Counted(20, 0)
        assert total(windows, "v2", SLOW) == Counted(6, 3)
        buckets = [
            sum(each)
            for each in zip(
                *(
                    each.versions["v2"].histograms[LATENCY.metric]
                    for each in windows
                    if "v2" in each.versions
                ),
                strict=True,
            )
        ]
        found = {upper_edge(number): count for number, count in enumerate(buckets) if count}
        assert list(found.values()) == [3, 2]
        assert all(
            edge / 1.1 < at < edge * 1.1 for edge, at in zip((0.25, 0.5), found, strict=True)
        )
        assert source.problem("a") == ""

        # What happens while the weights change counts nowhere.
        source.begin_change("a", await mesh.scraped())
        mesh.serve("v2", 100)
        await begin(mesh, source, v1=0.5, v2=0.5)
        mesh.serve("v2", 5)
        (window, *_) = await until_counted(source, v2=5)
        assert window.shares == {"v1": 0.5, "v2": 0.5}


@pytest.mark.usefixtures("settling")
async def test_counters_that_restart_count_on(tmp_path):
    async with running(tmp_path) as mesh, PrometheusSource().running() as source:
        mesh.serve("v1", 50)
        await mesh.scraped()
        source.watch("a", watched(FAILURES, url=mesh.url))
        await begin(mesh, source)
        mesh.serve("v1", 10)
        await until_counted(source, v1=10)
        for collector in list(mesh.registry._collector_to_names):
            collector.clear()
        mesh.metrics._series.clear()
        mesh.serve("v1", 4)
        await until_counted(source, v1=4)


async def test_a_host_without_series_is_no_data_with_a_reason(tmp_path):
    async with running(tmp_path) as mesh, PrometheusSource().running() as source:
        await mesh.scraped()
        source.watch("a", watched(FAILURES, url=mesh.url))
        source.begin_epoch("a", epoch(time.time()))
        assert await source.take("a", time.time()) == ()
        assert HOST in source.problem("a")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"measures": (measure(Signal.TIME_TO_FIRST_TOKEN, above=0.2),)}, "timeToFirstToken"),
        ({"measures": (measure(Signal.EMPTY_ANSWERS),)}, "emptyAnswers"),
        ({"measures": (measure(Signal.PREDICTION_DRIFT),)}, "predictionDrift"),
        ({"measures": (measure(Signal.CONFIDENCE, below=0.5),)}, "confidence"),
        ({"measures": (measure(Signal.LATENCY, above=0.2),)}, "use 100ms or 250ms"),
        ({"measures": (measure(Signal.LATENCY, below=0.1),)}, "use above"),
        ({"sticky": Sticky(kind=MatchKind.HEADER, name="x")}, "not users"),
        ({"mirrored": True}, "mirroring"),
        ({"url": ""}, "evidence.url"),
    ],
)
def test_what_prometheus_cannot_count_is_refused_by_name(more, words):
    more = {"url": "http://localhost:1"} | more
    measures = more.pop("measures", (FAILURES,))
    with pytest.raises(UnsupportedError, match=words):
        PrometheusSource().watch("a", watched(*measures, **more))


def success(kind, result):
    data = b'{"status":"success","data":{"resultType":"%s","result":%s}}'
    return data % (kind.encode(), result)


@asynccontextmanager
async def answering(answer):
    """An HTTP server that gives every query the same answer; yields its address."""

    async def say(request):
        await request.read()
        response = web.StreamResponse(status=answer[0])
        await response.prepare(request)
        # In parts, as a large answer comes.
        for start in range(0, len(answer[1]), 1 << 16):
            await response.write(answer[1][start : start + (1 << 16)])
        return response

    app = web.Application()
    app.router.add_post("/api/v1/query", say)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, b"not ready"), "503"),
        ((200, b"<html>"), "no Prometheus"),
        ((200, b"[]"), "no Prometheus"),
        ((200, success("matrix", b'[{"metric":{},"values":[[1,"x"]]}]')), "no samples"),
        ((200, success("matrix", b"[1]")), "no samples"),
        ((200, success("vector", b"[]")), "with a vector"),
        ((422, b'{"status":"error","errorType":"execution","error":"too many"}'), "too many"),
    ],
)
async def test_no_answer_is_no_data_with_a_reason(answer, words):
    async with answering(answer) as url, PrometheusSource().running() as source:
        source.watch("a", watched(url=url))
        source.begin_epoch("a", epoch())
        assert await source.take("a", time.time()) == ()
        assert words in source.problem("a")


async def test_an_unreachable_prometheus_is_no_data_with_a_reason():
    async with PrometheusSource().running() as source:
        source.watch("a", watched(url="http://127.0.0.1:1"))
        assert await source.take("a", time.time()) == ()
        assert "does not answer" in source.problem("a")
        source.forget("a")
        source.forget("a")


async def test_a_large_answer_is_read_whole():
    series = b'{"metric":{"reporter":"source","code":"%d"},"values":[[1,"1"],[2,"NaN"],[3,"2"]]}'
    result = b"[" + b",".join(series % number for number in range(5000)) + b"]"
    async with (
        answering((200, success("matrix", result))) as url,
        aiohttp.ClientSession() as session,
    ):
        found = await PrometheusApi(session, url).samples("up", 60.0, NOW_S)
    assert len(found) == 5000
    # A sample that is no number is no sample.
    assert found[7] == Series({"reporter": "source", "code": "7"}, ((1.0, 1.0), (3.0, 2.0)))
