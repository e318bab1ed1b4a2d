"""What wakes and ends the wait for requests to finish: reports, disconnects, the deadline."""

import asyncio
import contextlib
import time

import pytest
from envoy.config.endpoint.v3.load_report_pb2 import ClusterStats

from tidegate.mesh.ads import Distribution
from tidegate.mesh.ads.delta import DeltaRules
from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.status import (
    AckOutcome,
    AckReport,
    NodeId,
    ProxyAck,
    ProxyId,
    XdsVariant,
)
from tidegate.mesh.control.transitions import drainer
from tidegate.mesh.control.transitions.drainer import EndpointDrainer, RequestsInProgress
from tidegate.mesh.resources import ProxyKind, ResourceKey, ResourceType
from tidegate.mesh.telemetry import LoadReports

CLUSTER = "outbound|80|v1|vision"
# Far longer than any wait here may take; far shorter than the deadline.
SOON_S = 5.0
DEADLINE_S = 60.0


class Waiting:
    """A wait for a cluster while one proxy is connected."""

    def __init__(self, proxy_kind=ProxyKind.ENVOY):
        self.reports, self.distribution = LoadReports(), Distribution()
        self.in_progress = RequestsInProgress(self.reports, self.distribution)
        self.proxies = contextlib.ExitStack()
        identity = NodeIdentity(NodeId("a"), proxy_kind, XdsVariant.DELTA, "proxy", "here")
        self.proxies.enter_context(self.distribution.connected(identity, DeltaRules()))
        self.streams = contextlib.ExitStack()
        self.stream = self.streams.enter_context(self.reports.connected())
        self.stream.name = "a"

    def drained(self, deadline_s=DEADLINE_S, cluster=CLUSTER):
        deadline = time.monotonic() + deadline_s
        return asyncio.create_task(self.in_progress.drained([cluster], deadline))

    def report(self, requests, **others):
        stats = []
        for name, count in {CLUSTER: requests, **others}.items():
            stats.append(ClusterStats(cluster_name=name))
            stats[-1].upstream_locality_stats.add(total_requests_in_progress=count)
        self.stream.requested = frozenset({CLUSTER, *others})
        self.stream.record(stats)
        self.reports.notify()

    def close(self):
        self.streams.close()
        self.proxies.close()


@pytest.fixture
async def waiting():
    waiting = Waiting()
    yield waiting
    waiting.close()


@pytest.fixture
async def grpc_waiting(monkeypatch):
    """A wait on a gRPC client, of which a silence of 1 s means no requests."""
    monkeypatch.setattr(drainer, "_SILENCE_IS_ZERO_S", 1.0)
    monkeypatch.setattr(drainer, "_RECHECK_S", 0.1)
    waiting = Waiting(ProxyKind.GRPC)
    yield waiting
    waiting.close()


async def test_a_report_of_no_requests_ends_the_wait(waiting):
    wait = waiting.drained()
    for requests in (2, 1):
        await asyncio.sleep(0.1)
        waiting.report(requests)
    await asyncio.sleep(0.1)
    assert not wait.done()
    waiting.report(0)
    assert await asyncio.wait_for(wait, SOON_S) == {}


async def test_a_silent_proxy_that_disconnects_ends_the_wait(waiting):
    wait = waiting.drained()
    await asyncio.sleep(0.1)
    # Its stream of reports ends first, as when an Envoy is killed.
    waiting.streams.close()
    await asyncio.sleep(0.2)
    assert not wait.done()
    waiting.proxies.close()
    assert await asyncio.wait_for(wait, SOON_S) == {}


@pytest.mark.parametrize(("reported", "left"), [(3, 3), (None, None)])
async def test_the_deadline_ends_the_wait_with_what_was_last_known(waiting, reported, left):
    wait = waiting.drained(0.3)
    await asyncio.sleep(0.05)
    if reported is not None:
        waiting.report(reported)
    assert await asyncio.wait_for(wait, SOON_S) == {CLUSTER: left}


async def test_proxies_report_only_while_the_wait_lasts(waiting):
    wait = waiting.drained(0.1)
    await asyncio.sleep(0.05)
    assert waiting.reports.watched == {CLUSTER}
    await wait
    assert not waiting.reports.watched


async def test_a_silent_grpc_client_has_no_requests(grpc_waiting):
    wait = grpc_waiting.drained()
    await asyncio.sleep(0.5)
    assert not wait.done()
    assert await asyncio.wait_for(wait, SOON_S) == {}


async def test_another_watch_makes_no_grpc_client_silent(grpc_waiting):
    wait = grpc_waiting.drained()
    await asyncio.sleep(0.1)
    grpc_waiting.report(1)
    await asyncio.sleep(1.2)
    # As a status that counts requests does; both its start and its end discard the counts.
    with grpc_waiting.reports.watch(["other"]):
        grpc_waiting.reports.notify()
        await asyncio.sleep(0.3)
    grpc_waiting.reports.notify()
    await asyncio.sleep(0.3)
    assert not wait.done()
    grpc_waiting.report(0)
    assert await asyncio.wait_for(wait, SOON_S) == {}


async def test_the_end_of_another_wait_makes_no_grpc_client_silent(grpc_waiting):
    wait, other = grpc_waiting.drained(), grpc_waiting.drained(cluster="other")
    await asyncio.sleep(0.1)
    grpc_waiting.report(1, other=1)
    await asyncio.sleep(1.2)
    grpc_waiting.report(1, other=0)
    assert await asyncio.wait_for(other, SOON_S) == {}
    grpc_waiting.reports.notify()
    await asyncio.sleep(0.3)
    assert not wait.done()
    # It stays silent from here on.
    assert await asyncio.wait_for(wait, SOON_S) == {}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (AckOutcome.DONE, ""),
        (AckOutcome.REJECTED, "not acknowledged by a"),
    ],
)
async def test_a_drain_that_a_proxy_rejects_lasts_until_the_deadline(
    waiting, monkeypatch, outcome, reason
):
    async def acknowledged(keys, deadline_s):
        return AckReport((ProxyAck(ProxyId(NodeId("a"), 1), ProxyKind.ENVOY, outcome),))

    monkeypatch.setattr(waiting.distribution, "acknowledged", acknowledged)
    endpoints = EndpointDrainer(waiting.distribution, waiting.in_progress, DEADLINE_S, print)
    places = {ProxyKind.ENVOY: [ResourceKey(ResourceType.ENDPOINT, CLUSTER)]}
    drain = asyncio.create_task(endpoints.drain("10.0.0.1:1", places, 1.5))
    await asyncio.sleep(0.1)
    waiting.report(0)
    if outcome is AckOutcome.REJECTED:
        await asyncio.sleep(0.5)
        assert not drain.done()
        waiting.report(2)
    result = await asyncio.wait_for(drain, SOON_S)
    assert (result.reason, result.stranded) == (reason, 2 if reason else 0)
