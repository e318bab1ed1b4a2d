"""Queries to a real Prometheus become gauges, or no data with a reason."""

import asyncio
import time

import grpc
import pytest
import pytest_asyncio
from counted_mesh import counted_mesh
from source_traffic import NOW_S, epoch, measure, mesh_service, watched

from tidegate.evidence.window import TrafficWindow, VersionTraffic
from tidegate.mesh.telemetry import RequestLog
from tidegate.mesh.v1 import mesh_pb2_grpc
from tidegate.prometheus import PrometheusError
from tidegate.rollout.spec.objectives import Signal
from tidegate.router.sources.access_log import AccessLogSource
from tidegate.router.sources.gauges import Gauges, read_gauges, substituted, with_gauges
from tidegate.router.sources.prometheus import PrometheusSource
from tidegate.router.sources.record_streams import RecordStreams
from tidegate.router.sources.source import UnsupportedError

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    async with counted_mesh(tmp_path_factory.mktemp("prometheus")) as mesh:
        mesh.serve("v2", 7)
        await mesh.prometheus.until("istio_requests_total")
        yield mesh


GAUGE = {"signal": Signal.PROMQL, "metric": "gpuErrors"}


@pytest.mark.parametrize(
    ("query", "number", "problem"),
    [
        ('sum(istio_requests_total{destination_version="$version"}) * 2', 14.0, ""),
        ('sum(istio_requests_total{destination_service="$host"})', 7.0, ""),
        ("3", 3.0, ""),
        ('istio_requests_total{destination_version="v9"}', None, "gives nothing"),
        ("istio_request_duration_milliseconds_bucket", None, "numbers and not one"),
        ("sum(istio_requests_total) * 0 / 0", None, "NaN"),
        ("sum(istio_requests_total) / 0", None, "Inf"),
        ("istio_requests_total[1m]", None, "matrix"),
        ("sum(", None, "bad_data"),
        ('"text"', None, "string"),
    ],
)
async def test_a_query_gives_one_number_or_no_data_with_a_reason(mesh, query, number, problem):
    asked = watched(measure(**GAUGE, query=query), url=mesh.url)
    async with PrometheusSource().running() as source:
        source.watch("a", asked)
        source.begin_epoch("a", epoch(time.time()))
        windows = await source.take("a", time.time())
        if number is None:
            assert windows == ()
            assert problem in source.problem("a")
            assert query.replace("$version", "v2") in source.problem("a")
        else:
            assert windows[-1].versions["v2"].gauges == {"gpuErrors": number}
            assert source.problem("a") == ""


async def test_the_access_log_has_gauges_too(mesh):
    asked = watched(measure(**GAUGE, query="sum(istio_requests_total)"), url=mesh.url)
    async with (
        mesh_service(RequestLog()) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        RecordStreams({"mesh": mesh_pb2_grpc.MeshServiceStub(channel)}).running() as streams,
        AccessLogSource(streams).running() as source,
    ):
        with pytest.raises(UnsupportedError, match=r"gpuErrors needs a Prometheus.*evidence\.url"):
            source.watch("a", watched(measure(**GAUGE, query="1")))
        source.watch("a", asked)
        assert await source.take("a", time.time()) == ()
        source.begin_epoch("a", epoch(time.time()))
        (window,) = await source.take("a", time.time())
        assert window.versions["v2"].gauges == {"gpuErrors": 7.0}
        source.begin_change("a", time.time())
        assert await source.take("a", time.time()) == ()


class TogetherApi:
    """Answers no query before several have come."""

    def __init__(self, queries):
        self._all = asyncio.Barrier(queries)

    async def number(self, query, at_s):
        await self._all.wait()
        if "v3" in query:
            raise PrometheusError("gives nothing")
        return 1.0


@pytest.mark.asyncio(loop_scope="function")
async def test_queries_are_asked_at_once():
    asked = watched(measure(**GAUGE, query="$version"), candidates=("v2", "v3"))
    async with asyncio.timeout(10):
        gauges = await read_gauges(TogetherApi(2), asked, NOW_S)
    assert gauges == Gauges(
        {"v2": {"gpuErrors": 1.0}}, ("gpuErrors of v3: the query v3 gives nothing",)
    )


@pytest.mark.asyncio(loop_scope="function")
async def test_variables_cannot_leave_their_string():
    query = substituted('up{version="$version", host="$host"}', "a.b", 'x"} or vector(1) #\\')
    assert query == r'up{version="x\"} or vector(1) #\\", host="a.b"}'


@pytest.mark.asyncio(loop_scope="function")
async def test_gauges_join_the_window_of_the_epoch_that_lasts():
    gauges = Gauges({"v2": {"gpuErrors": 1.0}})
    old = TrafficWindow(start_s=1, end_s=2, shares={"v1": 1.0}, versions={})
    new = TrafficWindow(
        start_s=2, end_s=3, shares={"v1": 0.5}, versions={"v2": VersionTraffic(requests=4)}
    )
    lasting = epoch(v1=0.5)
    first, second = with_gauges([old, new], gauges, lasting, NOW_S)
    assert first == old
    assert (second.requests, second.versions["v2"].gauges) == (4, {"gpuErrors": 1.0})
    # The last window may be of an epoch that has ended.
    first, second = with_gauges([old], gauges, lasting, NOW_S)
    assert (first, second.shares, second.requests) == (old, {"v1": 0.5}, 0)
    assert with_gauges([old], gauges, None, NOW_S) == (old,)
    assert with_gauges([old], Gauges({}), lasting, NOW_S) == (old,)
