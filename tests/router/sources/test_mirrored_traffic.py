"""Mirrored copies behind a real controller and a real Envoy: found, paired, and nowhere else."""

import asyncio
import contextlib
import time

import grpc
import pytest
import pytest_asyncio
from mesh_objects import to
from running_mesh import SERVICE, WAIT_S, Backend, Controller, Mesh, started
from source_traffic import FAILURES, HOST, epoch, measure, watched

from tidegate.evidence.window import Counted, VersionTraffic
from tidegate.mesh.v1 import mesh_pb2
from tidegate.rollout.spec.objectives import Signal
from tidegate.rollout.traffic import MatchKind, Sticky
from tidegate.router.sources import pairing
from tidegate.router.sources.access_log import AccessLogSource
from tidegate.router.sources.maturity import LONGEST_WAIT_S
from tidegate.router.sources.record_streams import RecordStreams

pytestmark = pytest.mark.asyncio(loop_scope="module")

DIFFERS = measure(Signal.ANSWER_DISAGREEMENT)
MIRRORED = {"mirror": {"host": "vision", "subset": "v2"}, "mirrorPercentage": {"value": 100}}
BY_COOKIE = Sticky(kind=MatchKind.COOKIE, name="session")


class Labeller(Backend):
    """A server whose best class is the first byte of the request; v2 has another for ``x``."""

    async def _say(self, request, context):
        label = str(request[0] + (self.name == "v2" and request[:1] == b"x"))
        context.set_trailing_metadata((("tidegate-top1", label), ("tidegate-confidence", "0.5")))
        return self.name.encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory):
    """Everything on v1, of which v2 gets copies."""
    folder = tmp_path_factory.mktemp("mesh")
    mesh = Mesh(folder)
    mesh.route = {}
    mesh.controller = Controller(folder, user_cookies="session")
    for name in ("v1", "v2"):
        mesh.backends[name] = Labeller(name)
        await mesh.backends[name].server.start()
    try:
        async with started(mesh):
            yield mesh
    finally:
        await mesh.controller.channel.close()
        if mesh.controller.process.poll() is None:
            await mesh.controller.kill()
        for backend in mesh.backends.values():
            await backend.server.stop(None)


async def direct(mesh, **route):
    """Puts a route in effect, and waits until Envoy has it."""
    if mesh.route == route:
        return
    mesh.route = route
    before = (await mesh.controller.status()).last_transition.id
    mesh.write(*mesh.vision({"route": [to("v1", 100)]} | route))
    await mesh.status_is(lambda now: now.last_transition.id != before and not now.transition.id)


@contextlib.asynccontextmanager
async def counting(mesh, *measures, share=1.0, **more):
    """A source that counts the mesh's traffic from now on."""
    async with (
        RecordStreams({"mesh": mesh.controller.stub}).running() as streams,
        AccessLogSource(streams).running() as source,
    ):
        source.watch("a", watched(*measures, mirrored=True, **more))
        async with asyncio.timeout(WAIT_S):
            await source.watching(HOST)
        source.begin_epoch("a", epoch(time.time(), v1=1.0, v2=share))
        yield source


async def until_counted(source, requests):
    """Takes windows until each version has so many requests; returns traffic by version."""
    found = []
    async with asyncio.timeout(WAIT_S):
        while True:
            found += await source.take("a", time.time() + LONGEST_WAIT_S + 2)
            counted = {
                name: sum(each.versions[name].requests for each in found if name in each.versions)
                for name in requests
            }
            if counted == requests:
                return found
            assert all(counted[name] <= requests[name] for name in requests), counted
            await asyncio.sleep(0.02)


def rates(windows, version, measured):
    total = Counted(0, 0)
    for each in windows:
        total += each.versions.get(version, VersionTraffic()).rates.get(
            measured.metric, Counted(0, 0)
        )
    return total


async def say(channel, request=b"a", *metadata):
    call = channel.unary_unary(f"/{SERVICE}/Say")
    return await call(request, metadata=metadata, timeout=WAIT_S)


async def test_copies_are_found_and_compared_with_their_requests(mesh):
    await direct(mesh, **MIRRORED)
    async with counting(mesh, DIFFERS, FAILURES) as source, mesh.channel() as channel:
        answers = [await say(channel, each) for each in (b"a", b"b", b"x", b"a", b"x")]
        assert set(answers) == {b"v1"}
        windows = await until_counted(source, {"v1": 5, "v2": 5})
    assert rates(windows, "v1", DIFFERS) == Counted(5, 0)
    assert rates(windows, "v2", DIFFERS) == Counted(5, 2)
    assert rates(windows, "v2", FAILURES) == Counted(5, 0)


async def test_other_consumers_see_no_copies(mesh):
    await direct(mesh, **MIRRORED)
    stub = mesh.controller.stub
    plain = stub.WatchRequests(mesh_pb2.WatchRequestsRequest())
    both = stub.WatchRequests(mesh_pb2.WatchRequestsRequest(include_mirrored=True))
    await plain.initial_metadata()
    await both.initial_metadata()
    async with mesh.channel() as channel:
        await say(channel, b"a" * 100)
        found = []
        async with asyncio.timeout(WAIT_S):
            while len(found) < 2:
                found += (await both.read()).records
            await say(channel, b"end")
            seen = []
            while len(seen) < 2:
                seen += (await plain.read()).records
    request, copy = sorted(found, key=lambda each: each.mirrored)
    assert [each.mirrored for each in seen] == [False, False]
    assert (request.subset, copy.subset) == ("v1", "v2")
    assert (request.mirrored, copy.mirrored) == (False, True)
    assert request.trace_id == copy.trace_id != ""
    assert request.request_id == copy.request_id != ""
    assert request.request_bytes == copy.request_bytes == 105
    assert request.response_bytes == copy.response_bytes == 7
    assert copy.endpoint == mesh.backends["v2"].address
    assert copy.trailers["tidegate-top1"] == "97"
    for each in (request, copy):
        last = each.time_to_last_byte.ToNanoseconds()
        assert 0 < last <= each.duration.ToNanoseconds()
    plain.cancel()
    both.cancel()


async def test_a_caller_cannot_pass_its_request_off_as_a_copy(mesh):
    await direct(mesh)
    async with counting(mesh, FAILURES) as source, mesh.channel() as channel:
        await say(channel, b"a", ("x-tidegate-mirrored", "1"))
        windows = await until_counted(source, {"v1": 1, "v2": 0})
    assert not any("v2" in each.versions for each in windows)


async def test_large_bodies_are_mirrored(mesh):
    """Envoy streams copies, so its buffers limit no body."""
    await direct(mesh, **MIRRORED)
    async with counting(mesh, DIFFERS, FAILURES) as source, mesh.channel() as channel:
        await say(channel, b"x" * 3_000_000)
        windows = await until_counted(source, {"v1": 1, "v2": 1})
    assert rates(windows, "v2", DIFFERS) == Counted(1, 1)


async def test_a_caller_that_leaves_while_it_sends_is_no_failure_of_the_candidate(mesh):
    await direct(mesh, **MIRRORED)
    async with counting(mesh, DIFFERS, FAILURES) as source, mesh.channel() as channel:
        for _ in range(3):
            call = channel.stream_unary(f"/{SERVICE}/Say")()
            await call.wait_for_connection()
            await channel.unary_unary(f"/{SERVICE}/Say")(b"a", timeout=WAIT_S)
            call.cancel()
        windows = await until_counted(source, {"v1": 6, "v2": 6})
    for version in ("v1", "v2"):
        assert rates(windows, version, FAILURES) == Counted(6, 0)
    assert rates(windows, "v2", DIFFERS) == Counted(3, 0)


async def test_requests_without_a_copy_are_reported(mesh, monkeypatch):
    """What is written as mirrored is not: as if Envoy had given up the copies."""
    monkeypatch.setattr(pairing, "WAIT_S", 0.0)
    await direct(mesh)
    async with counting(mesh, DIFFERS, FAILURES) as source, mesh.channel() as channel:
        await say(channel)
        found = []
        async with asyncio.timeout(WAIT_S):
            while "1 requests had no mirrored copy" not in source.problem("a"):
                found += await source.take("a", time.time() + LONGEST_WAIT_S + 2)
                await asyncio.sleep(0.02)
    assert sum(each.requests for each in found) == 1


async def test_a_timeout_of_a_rule_is_the_proxys_whoever_ends_the_call(mesh):
    await direct(mesh, timeout="0.05s", retries={"attempts": 0})
    watch = mesh.controller.stub.WatchRequests(mesh_pb2.WatchRequestsRequest())
    await watch.initial_metadata()
    found = []
    async with mesh.channel() as channel:
        for _ in range(30):
            assert [each async for each in _until_it_ends(mesh.flow(channel))] == [b"v1"]
        async with asyncio.timeout(WAIT_S):
            while len(found) < 30:
                found += (await watch.read()).records
    assert all(each.proxy_timeout for each in found)
    watch.cancel()


async def _until_it_ends(stream):
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for each in stream:
            yield each


async def test_users_are_told_by_their_cookie_and_no_other_cookie_is_logged(mesh):
    await direct(mesh)
    watch = mesh.controller.stub.WatchRequests(mesh_pb2.WatchRequestsRequest())
    await watch.initial_metadata()
    async with counting(mesh, FAILURES, sticky=BY_COOKIE) as source, mesh.channel() as channel:
        for session in ("s1", "s2", "s1"):
            await say(channel, b"a", ("cookie", f"secret=1; session={session}"))
        await until_counted(source, {"v1": 2})
        record = (await watch.read()).records[0]
        assert dict(record.cookies) == {"session": "s1"}
        assert "secret" not in str(record)
    watch.cancel()


async def test_a_candidate_that_is_gone_fails_its_copies_only(mesh):
    await direct(mesh, **MIRRORED)
    v2 = mesh.backends["v2"]
    async with counting(mesh, FAILURES) as source, mesh.channel() as channel:
        await say(channel)
        await until_counted(source, {"v1": 1, "v2": 1})
        await v2.server.stop(None)
        answers = [await say(channel) for _ in range(3)]
        assert answers == [b"v1"] * 3
        found = await until_counted(source, {"v1": 3})
    assert rates(found, "v1", FAILURES) == Counted(3, 0)
    copies = rates(found, "v2", FAILURES)
    assert copies.trials == copies.events
