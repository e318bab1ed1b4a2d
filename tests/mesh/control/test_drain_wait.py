"""What wakes the wait for requests to finish: load reports, disconnects, and the deadline."""

import asyncio
import contextlib
import time

import pytest
from envoy.config.endpoint.v3.load_report_pb2 import ClusterStats

from tidegate.mesh.ads import Distribution
from tidegate.mesh.ads.delta import DeltaRules
from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.status import NodeId, XdsVariant
from tidegate.mesh.control.transitions.drainer import RequestsInProgress
from tidegate.mesh.resources import ProxyKind
from tidegate.mesh.telemetry import LoadReports

CLUSTER = "outbound|80|v1|vision"
# Far longer than any wait here may take; far shorter than the deadline.
SOON_S = 5.0
DEADLINE_S = 60.0


class Waiting:
    """A wait for a cluster while one Envoy is connected."""

    def __init__(self):
        self.reports, self.distribution = LoadReports(), Distribution()
        self.in_progress = RequestsInProgress(self.reports, self.distribution)
        self.proxies = contextlib.ExitStack()
        identity = NodeIdentity(NodeId("a"), ProxyKind.ENVOY, XdsVariant.DELTA, "envoy", "here")
        self.proxies.enter_context(self.distribution.connected(identity, DeltaRules()))
        self.streams = contextlib.ExitStack()
        self.stream = self.streams.enter_context(self.reports.connected())
        self.stream.name = "a"

    def drained(self, deadline_s=DEADLINE_S):
        deadline = time.monotonic() + deadline_s
        return asyncio.create_task(self.in_progress.drained([CLUSTER], deadline))

    def report(self, requests):
        stats = ClusterStats(cluster_name=CLUSTER)
        stats.upstream_locality_stats.add(total_requests_in_progress=requests)
        self.stream.requested = frozenset({CLUSTER})
        self.stream.record([stats])
        self.reports.notify()


@pytest.fixture
async def waiting():
    waiting = Waiting()
    yield waiting
    waiting.streams.close()
    waiting.proxies.close()


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
