"""Replicas of the router receive access logs, and the leader counts the records of all."""

import asyncio
import contextlib
import time

import grpc
import pytest
from envoy.config.core.v3.base_pb2 import Node
from envoy.data.accesslog.v3.accesslog_pb2 import HTTPAccessLogEntry
from envoy.service.accesslog.v3.als_pb2 import StreamAccessLogsMessage
from envoy.service.accesslog.v3.als_pb2_grpc import AccessLogServiceStub
from source_traffic import HOST, epoch, watched

from tidegate.rollout.traffic import Knowledge
from tidegate.router.istio_log.istio_log import IstioLog
from tidegate.router.sources.maturity import LONGEST_WAIT_S
from tidegate.traffic.observing import WrittenChange

WAIT_S = 20.0


@contextlib.asynccontextmanager
async def replica():
    log = IstioLog()
    server = grpc.aio.server()
    log.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield log, f"127.0.0.1:{port}"
    finally:
        log.shut_down()
        await server.stop(1)


def entry(version="v1", route="vision@r1", start_s=None):
    made = HTTPAccessLogEntry()
    made.request.path = "/tidegate.vision.v1.VisionService/Classify"
    made.request.authority = "vision.example.com"
    made.response.response_trailers["grpc-status"] = "0"
    common = made.common_properties
    common.upstream_cluster = f"outbound|8500|{version}|{HOST}"
    common.route_name = route
    common.start_time.FromNanoseconds(int((start_s or time.time()) * 1e9))
    return made


@contextlib.asynccontextmanager
async def proxy(address, number=1):
    """A stream of an Envoy to a replica: call it with entries."""
    node = Node(id=f"router~10.0.0.{number}~gateway-{number}.ingress~ingress.svc.cluster.local")
    async with grpc.aio.insecure_channel(address) as channel:
        call = AccessLogServiceStub(channel).StreamAccessLogs()
        first = StreamAccessLogsMessage()
        first.identifier.node.CopyFrom(node)
        await call.write(first)

        async def send(*entries):
            message = StreamAccessLogsMessage()
            message.http_logs.log_entry.extend(entries)
            await call.write(message)

        yield send
        await call.done_writing()
        await call


async def counted(log, requests):
    found = []
    async with asyncio.timeout(WAIT_S):
        while sum(each.requests for each in found) < requests:
            found += await log.source.take("a", time.time() + LONGEST_WAIT_S + 2)
            await asyncio.sleep(0.01)
    return found


async def test_the_leader_counts_what_any_replica_receives():
    async with replica() as (leader, own), replica() as (_, other), leader.reading():
        leader.source.watch("a", watched())
        assert "no receiver of access logs" in leader.source.problem("a")
        await leader.set_receivers([own, other])
        leader.source.begin_epoch("a", epoch(time.time()))
        async with asyncio.timeout(WAIT_S):
            await leader.source.watching(HOST)
        assert leader.source.problem("a") == ""
        async with proxy(own, 1) as one, proxy(other, 2) as two:
            await one(*[entry()] * 30)
            await two(*[entry("v2")] * 10)
            found = await counted(leader, 40)
        assert sum(each.lost for each in found) == 0
        versions = [each.versions for each in found]
        assert sum(each["v2"].requests for each in versions if "v2" in each) == 10


async def test_replicas_come_and_go():
    async with replica() as (leader, own), leader.reading():
        leader.source.watch("a", watched())
        await leader.set_receivers([own])
        leader.source.begin_epoch("a", epoch(time.time()))
        async with replica() as (_, other):
            await leader.set_receivers([own, other])
            async with asyncio.timeout(WAIT_S):
                await leader.source.watching(HOST)
            async with proxy(other) as send:
                await send(*[entry()] * 20)
                await counted(leader, 20)
        async with asyncio.timeout(WAIT_S):
            while other not in leader.source.problem("a"):
                await asyncio.sleep(0.01)
        await leader.set_receivers([own])
        assert leader.source.problem("a") == ""
        async with proxy(own) as send:
            await send(*[entry()] * 5)
            await counted(leader, 5)


async def test_a_change_is_in_force_when_proxies_of_all_replicas_have_it():
    async with replica() as (leader, own), replica() as (_, other), leader.reading():
        await leader.set_receivers([own, other])
        leader.source.watch("a", watched())
        async with asyncio.timeout(WAIT_S):
            await leader.source.watching(HOST)
        async with proxy(own, 1) as one, proxy(other, 2) as two:
            await one(entry())
            await two(entry())
            written_s = time.time()
            change = WrittenChange(
                host=HOST,
                before={"v1": 1.0},
                after={"v1": 0.5, "v2": 0.5},
                revision="r2",
                written_s=written_s,
                settle_s=10.0,
            )
            waiting = asyncio.create_task(leader.observer.in_force(change))
            await one(entry(route="vision@r2", start_s=written_s + 0.2))
            await two(entry(start_s=written_s + 0.3))
            done, _ = await asyncio.wait({waiting}, timeout=0.6)
            assert not done
            await two(entry(route="vision@r2", start_s=written_s + 0.4))
            async with asyncio.timeout(WAIT_S):
                sighting = await waiting
    assert sighting.known is Knowledge.OBSERVED
    assert abs(sighting.since_s - written_s - 0.4) < 0.01
    assert "through 2 proxies" in sighting.detail


async def test_a_new_leader_counts_what_the_old_one_had_not():
    async with replica() as (first, own), replica() as (second, other):
        began_s = time.time() - 8
        async with proxy(own, 1) as one, proxy(other, 2) as two:
            async with first.reading():
                await first.set_receivers([own, other])
                first.source.watch("a", watched())
                first.source.begin_epoch("a", epoch(began_s))
                async with asyncio.timeout(WAIT_S):
                    await first.source.watching(HOST)
                for number in range(60):
                    version = "v2" if number % 10 == 0 else "v1"
                    await (one, two)[number % 2](entry(version, start_s=began_s + number / 10))
                seen = first.observer._hosts
                async with asyncio.timeout(WAIT_S):
                    while HOST not in seen or sum(map(len, seen[HOST].by_proxy().values())) < 60:
                        await asyncio.sleep(0.01)
                # The requests of the last seconds may not all have ended.
                windows = await first.source.take("a", began_s + 5)
                counted_by_first = sum(each.requests for each in windows)
                until_s = windows[-1].counted_until_s
            for _ in range(20):
                await one(entry())
            async with second.reading():
                await second.set_receivers([own, other])
                assert second.source.resume(HOST, until_s, 0.0)
                second.source.watch("a", watched())
                second.source.begin_epoch("a", epoch(until_s))
                await two(entry())
                found = await counted(second, 81 - counted_by_first)
    assert 0 < counted_by_first < 60
    assert counted_by_first + sum(each.requests for each in found) == 81


async def test_a_replica_that_appears_later_gives_what_it_got_before_and_once():
    async with replica() as (leader, own), replica() as (_, other), leader.reading():
        await leader.set_receivers([own])
        leader.source.watch("a", watched())
        leader.source.begin_epoch("a", epoch(time.time()))
        async with asyncio.timeout(WAIT_S):
            await leader.source.watching(HOST)
        async with proxy(other) as send:
            await send(*[entry()] * 7)
            await asyncio.sleep(0.2)
            await leader.set_receivers([own, other])
            await counted(leader, 7)
            await leader.set_receivers([own])
            await leader.set_receivers([own, other])
            async with asyncio.timeout(WAIT_S):
                await leader.source.watching(HOST)
            await send(entry())
            assert sum(each.requests for each in await counted(leader, 1)) == 1


async def lead(log, address, count):
    """Leads until so many requests are counted; the lead is lost then."""
    async with log.reading():
        await log.set_receivers([address])
        log.source.watch("a", watched())
        log.source.begin_epoch("a", epoch(time.time()))
        async with asyncio.timeout(WAIT_S):
            await log.source.watching(HOST)
        async with proxy(address) as send:
            await send(*[entry()] * count)
        found = await counted(log, count)
        assert sum(each.requests for each in found) == count
        log.source.forget("a")
        raise LostError


async def test_a_replica_that_leads_again_counts_again():
    async with replica() as (leader, own):
        for count in (3, 4):
            lost = False
            try:
                await lead(leader, own, count)
            except* LostError:
                lost = True
            assert lost
            # Between two terms nobody reads.
            await leader.set_receivers([own])


class LostError(Exception):
    """The lead is lost."""


@pytest.mark.parametrize(
    ("vanished", "lost"), [(True, 260), (False, 0)], ids=["vanished", "handed over"]
)
async def test_what_a_leader_that_vanished_had_received_counts_as_lost(vanished, lost):
    now_s = time.time()
    async with replica() as (leader, own), proxy(own) as send:
        for version in ("v1", "v2"):
            recent, counted_before = (entry(version, start_s=now_s - age) for age in (5, 60))
            await send(*[recent] * 20, *[counted_before] * 7)
        async with leader.reading(after_crash=vanished):
            # The last leader counted until ten seconds ago, at 30 requests a second.
            assert leader.source.resume(HOST, now_s - 10, 30.0)
            leader.source.watch("a", watched())
            leader.source.begin_epoch("a", epoch(now_s - 60, v1=0.5, v2=0.5))
            await leader.set_receivers([own])
            found, until_s = [], time.time()
            async with asyncio.timeout(WAIT_S):
                while sum(each.requests for each in found) < 40:
                    found += await leader.source.take("a", until_s + 4)
                    await asyncio.sleep(0.01)
            assert sum(each.lost for each in found) == 0
            found += await leader.source.take("a", until_s + 6)
    assert sum(each.requests for each in found) == 40
    assert sum(each.lost for each in found) == pytest.approx(lost, abs=15)


async def test_what_a_replica_that_vanished_had_not_sent_counts_as_lost():
    async with replica() as (leader, own), leader.reading():
        leader.source.watch("a", watched())
        leader.source.begin_epoch("a", epoch(time.time()))
        server = grpc.aio.server()
        other = IstioLog()
        other.register(server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        await leader.set_receivers([own, address])
        async with asyncio.timeout(WAIT_S):
            await leader.source.watching(HOST)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async with proxy(address) as send:
                for _ in range(13):
                    await send(*[entry()] * 10)
                    await asyncio.sleep(0.1)
                await asyncio.sleep(0.5)
                # It ends without a word to those who read it.
                await server.stop(None)
        async with asyncio.timeout(WAIT_S):
            while address not in leader.source.problem("a"):
                await asyncio.sleep(0.01)
        await leader.set_receivers([own])
        found = await counted(leader, 130)
    # About 100 requests a second, of the half second of silence and until the replica was gone.
    assert 40 <= sum(each.lost for each in found) <= 300
