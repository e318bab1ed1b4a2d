"""The access log as a source of evidence: records from MeshService become windows."""

import asyncio
import contextlib
import dataclasses
import time

import grpc
import pytest
from request_records import RECORD
from source_traffic import HOST, epoch, mesh_service, watched

from tidegate.evidence.window import Counted
from tidegate.mesh.telemetry import RequestLog
from tidegate.mesh.v1 import mesh_pb2_grpc
from tidegate.router.sources.access_log import AccessLogSource
from tidegate.router.sources.epochs import RolloutCounts
from tidegate.router.sources.maturity import LONGEST_WAIT_S
from tidegate.router.sources.record_streams import RecordStreams

WAIT_S = 20.0


def record(subset="v1", code=grpc.StatusCode.OK, **more):
    more = {"start_time_s": time.time()} | more
    return dataclasses.replace(RECORD, subset=subset, grpc_status=code, **more)


@contextlib.asynccontextmanager
async def source_of(port):
    options = [
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
    ]
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel,
        RecordStreams({"mesh": mesh_pb2_grpc.MeshServiceStub(channel)}).running() as streams,
        AccessLogSource(streams).running() as source,
    ):
        yield source


async def windows(source, requests, *, lost=0, key="a"):
    """Takes windows until they have so many requests and losses."""
    found = []
    async with asyncio.timeout(WAIT_S):
        while (
            sum(each.requests for each in found) < requests
            or sum(each.lost for each in found) < lost
        ):
            # By then nothing has to wait for other requests.
            found += await source.take(key, time.time() + LONGEST_WAIT_S + 2)
            await asyncio.sleep(0.01)
    return found


async def watching(source):
    async with asyncio.timeout(WAIT_S):
        await source.watching(HOST)


async def test_records_become_counts_of_versions():
    log = RequestLog()
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.begin_epoch("a", epoch(time.time()))
        await watching(source)
        failed = record("v2", grpc.StatusCode.INTERNAL)
        await log.publish([record(), record(), failed, record("v3"), record(host="b")])
        (window,) = await windows(source, 3)
        assert {name: each.requests for name, each in window.versions.items()} == {"v1": 2, "v2": 1}
        assert window.versions["v2"].rates == {"grpcFailures": Counted(1, 1)}
        assert window.shares == {"v1": 0.9, "v2": 0.1}
        assert await source.take("a", time.time()) == ()


async def test_a_burst_is_counted_whole():
    log = RequestLog()
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.begin_epoch("a", epoch(time.time()))
        await watching(source)
        await log.publish([record()] * 20_000)
        found = await windows(source, 20_000)
        assert sum(each.lost for each in found) == 0


async def test_records_that_the_controller_drops_are_in_lost():
    log = RequestLog()
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.begin_epoch("a", epoch(time.time()))
        await watching(source)
        await log.publish([record()] * 60_000)
        found = await windows(source, 50_000, lost=10_000)
        # The last message was sent before records were dropped, or after.
        assert sum(each.requests + each.lost for each in found) == 60_000


async def test_long_texts_of_callers_do_not_break_the_stream():
    log = RequestLog()
    long = "x" * 60_000
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.begin_epoch("a", epoch(time.time()))
        await watching(source)
        hostile = record(path=long, headers={"x-user-id": long}, trailers={"tidegate-top1": long})
        await log.publish([hostile] * 1000)
        found = await windows(source, 1000)
        assert sum(each.lost for each in found) == 0


async def test_a_rollout_that_is_watched_anew_keeps_its_stream():
    log = RequestLog()
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.begin_epoch("a", epoch(time.time()))
        await watching(source)
        await log.publish([record()])
        await windows(source, 1)
        source.watch("a", watched())
        assert source.problem("a") == ""
        source.begin_epoch("a", epoch(time.time()))
        await log.publish([record()])
        await windows(source, 1)
        # Its host may be another.
        source.watch("a", watched(host="llm.models.svc.cluster.local"))
        assert "not watched yet" in source.problem("a")
        with pytest.raises(KeyError):
            await source.watching(HOST)


async def test_a_fault_while_counting_costs_records_and_no_more(monkeypatch):
    log = RequestLog()
    count = RolloutCounts.add

    def fail_on_v2(counts, request):
        assert request.version != "v2"
        count(counts, request)

    monkeypatch.setattr(RolloutCounts, "add", fail_on_v2)
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.begin_epoch("a", epoch(time.time()))
        await watching(source)
        await log.publish([record("v2")])
        async with asyncio.timeout(WAIT_S):
            while "fault while records were counted" not in source.problem("a"):
                await asyncio.sleep(0.01)
        await watching(source)
        await log.publish([record()])
        await windows(source, 1)


async def test_a_receiver_that_does_not_answer_does_not_count_as_watched():
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(mesh_service(RequestLog()))
        await stack.aclose()
        async with source_of(port) as source:
            source.watch("a", watched())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await source.watching(HOST)
            assert "no records of requests arrive: UNAVAILABLE" in source.problem("a")


async def test_a_source_says_why_nothing_arrives():
    log = RequestLog()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(mesh_service(log))
        async with source_of(port) as source:
            source.watch("a", watched())
            assert "not watched yet" in source.problem("a")
            await watching(source)
            assert source.problem("a") == ""
            await stack.aclose()
            async with asyncio.timeout(WAIT_S):
                while "no records of requests arrive" not in source.problem("a"):
                    await asyncio.sleep(0.01)


async def test_records_after_a_break_count_and_the_break_is_in_lost():
    log = RequestLog()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(mesh_service(log))
        async with source_of(port) as source:
            source.watch("a", watched())
            source.begin_epoch("a", epoch(time.time()))
            await watching(source)
            for _ in range(12):
                await log.publish([record()] * 50)
                await asyncio.sleep(0.1)
            await windows(source, 600)
            await stack.aclose()
            async with mesh_service(log, port):
                found = []
                async with asyncio.timeout(WAIT_S):
                    while not any(each.requests for each in found) or not any(
                        each.lost for each in found
                    ):
                        # A record that is published before the source is back reaches nobody.
                        await log.publish([record()])
                        found += await source.take("a", time.time() + LONGEST_WAIT_S + 2)
                        await asyncio.sleep(0.01)


async def test_a_forgotten_rollout_ends_its_stream_and_others_go_on():
    log = RequestLog()
    async with mesh_service(log) as port, source_of(port) as source:
        source.watch("a", watched())
        source.watch("b", watched())
        for key in "ab":
            source.begin_epoch(key, epoch(time.time()))
        await watching(source)
        source.forget("a")
        await log.publish([record()])
        await windows(source, 1, key="b")
        source.forget("b")
        source.forget("b")
        with pytest.raises(KeyError):
            await source.take("b", time.time())
