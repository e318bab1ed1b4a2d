"""A source of evidence that makes up its counts, and what a mesh double has been through."""

import random

from tidegate.evidence.window import Counted, MetricName, TrafficWindow, VersionName, VersionTraffic
from tidegate.router.sources.source import UnsupportedError


def weights_of(mesh, host="vision", version="v2"):
    """The weights that a version has had by a `TrafficRouterDouble`, in order."""
    splits = [split for name, split, _ in mesh.applied if name == host]
    changes = [
        each
        for before, each in zip([None, *splits], splits, strict=False)
        if before is None or not each.same_as(before)
    ]
    return [each.weights.get(version, 0.0) for each in changes]


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
        self.unsupported = self.missing = ""
        self._taken_s = {}
        self._random = random.Random(seed)

    def check(self, watched):
        if self.unsupported:
            raise UnsupportedError(self.unsupported)

    def problem(self, key):
        return self.missing

    def has_news(self, key):
        return bool(self.missing) or (self.epochs[key] is not None and self.requests_per_s > 0)

    def watch(self, key, watched):
        self.check(watched)
        self.watched[key] = watched
        self.epochs[key] = None
        self.log.append(("watch", key))

    def resume(self, host, since_s, requests_per_s):
        return False

    def begin_change(self, key, now_s):
        self._check_watched(key)
        self.epochs[key] = None
        self.log.append(("change", key))

    def begin_epoch(self, key, epoch):
        self._check_watched(key)
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

    def exemplars(self, key):
        return ()

    def forget(self, key):
        del self.watched[key]
        self.log.append(("forget", key))

    def _check_watched(self, key):
        # The sources of the product fail too.
        if key not in self.watched:
            raise KeyError(key)

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
