"""Doubles of what a rollout meets: a mesh in memory, and a source that makes up its counts."""

import asyncio
import random
from collections import deque

from tidegate.evidence.window import Counted, MetricName, TrafficWindow, VersionName, VersionTraffic
from tidegate.rollout.traffic import Applied, HostTraffic, Knowledge, TrafficSplit
from tidegate.traffic.router import TrafficError

DOMAIN = ".models.svc.cluster.local"


class MemoryMesh:
    """A TrafficRouter whose hosts are values.

    Attributes:
        in_force: Every split that was ever in force, by host, the last one last.
        failures: Errors of the next calls of `apply`.
        unreadable: Why no host can be read; empty if it can.
        hold: While it is clear, splits wait before they come into force.
    """

    def __init__(self, clock, versions=("v1", "v2")):
        self._clock = clock
        self._versions = versions
        self.in_force = {}
        self.owners = {}
        self.failures = deque()
        self.unreadable = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.applying = asyncio.Event()

    def full_name(self, host):
        return host if "." in host else host + DOMAIN

    async def read(self, host):
        if self.unreadable:
            raise TrafficError(self.unreadable)
        host = self.full_name(host)
        split = self.in_force.setdefault(host, [TrafficSplit(weights={"v1": 100.0})])[-1]
        return HostTraffic(
            host=host,
            split=split,
            versions=self._versions,
            owner=self.owners.get(host, ""),
            ready=self._versions,
        )

    async def apply(self, host, split, owner):
        host = self.full_name(host)
        requested_s = self._clock()
        self.applying.set()
        await self.hold.wait()
        self.applying.clear()
        if self.failures:
            raise self.failures.popleft()
        splits = self.in_force.setdefault(host, [TrafficSplit(weights={"v1": 100.0})])
        if not splits[-1].same_as(split):
            splits.append(split)
        self.owners[host] = owner
        return Applied(since_s=self._clock(), requested_s=requested_s, known=Knowledge.ACKNOWLEDGED)

    def change(self, host, split, owner=""):
        """Somebody else changes the traffic."""
        host = self.full_name(host)
        self.in_force[host].append(split)
        self.owners[host] = owner

    def weights(self, host, version="v2"):
        """The weights that a version has had, in order."""
        splits = self.in_force[self.full_name(host)]
        return [each.weights.get(version, 0.0) for each in splits]


class SyntheticSource:
    """A TrafficSource of Poisson traffic.

    Args:
        requests_per_s: The requests of each host.
        failures: The share of requests that fail, by version.
        seed: Repeats the same traffic.
    """

    def __init__(self, requests_per_s=2000.0, failures=None, seed=1):
        self.requests_per_s = requests_per_s
        self.failures = {"v1": 0.01, "v2": 0.01} | (failures or {})
        self.watched = {}
        self.epochs = {}
        self.log = []
        self._taken_s = {}
        self._random = random.Random(seed)

    def watch(self, key, watched):
        self.watched[key] = watched
        self.epochs[key] = None
        self.log.append(("watch", key))

    def begin_change(self, key, now_s):
        self.epochs[key] = None
        self.log.append(("change", key))

    def begin_epoch(self, key, epoch):
        self.epochs[key] = epoch
        self._taken_s[key] = epoch.since_s
        self.log.append(("epoch", key, dict(epoch.shares)))

    async def take(self, key, now_s):
        epoch = self.epochs[key]
        if epoch is None or now_s <= self._taken_s[key]:
            return ()
        start_s, self._taken_s[key] = self._taken_s[key], now_s
        versions = {
            VersionName(name): self._traffic(key, name, share * (now_s - start_s))
            for name, share in epoch.shares.items()
        }
        shares = {VersionName(name): share for name, share in epoch.shares.items()}
        window = TrafficWindow(start_s=start_s, end_s=now_s, shares=shares, versions=versions)
        return (window,) if window.requests else ()

    def forget(self, key):
        del self.watched[key]
        self.log.append(("forget", key))

    def _traffic(self, key, version, seconds):
        requests = self._poisson(self.requests_per_s * seconds)
        failed = min(requests, self._poisson(requests * self.failures[version]))
        rates = {
            MetricName(str(each.metric)): Counted(requests, failed)
            for each in self.watched[key].measures
        }
        return VersionTraffic(requests=requests, rates=rates)

    def _poisson(self, mean):
        if mean <= 0:
            return 0
        return max(0, round(self._random.gauss(mean, mean**0.5)))
