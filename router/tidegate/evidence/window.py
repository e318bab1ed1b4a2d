"""Traffic windows: what each version's traffic did between two moments, as counts.

A window has sufficient statistics for every test of this package. Its size does not grow with the
number of requests. A source of evidence (the access log, or Prometheus) makes windows; the tests
read them. A window never spans a change of weights, and leaves out the time in which a change was
on its way to the proxies.
"""

from typing import NewType

import msgspec

__all__ = [
    "Counted",
    "MetricName",
    "TrafficWindow",
    "VersionName",
    "VersionTraffic",
]

VersionName = NewType("VersionName", str)
"""A model version: the subset of the host that serves it."""

MetricName = NewType("MetricName", str)
"""The name of a measure, such as ``grpcFailures`` or ``latency above 200ms``."""


class Counted(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How often something happened.

    Attributes:
        trials: The units (requests or users) in which it could have happened.
        events: The units in which it happened; at most `trials`.
    """

    trials: int
    events: int

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(self.trials + other.trials, self.events + other.events)

    def __sub__(self, other: "Counted") -> "Counted":
        return Counted(self.trials - other.trials, self.events - other.events)

    @property
    def rate(self) -> float | None:
        """The share of the trials that were events; None without trials."""
        return self.events / self.trials if self.trials else None


class VersionTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """The traffic of one version in a window.

    Attributes:
        requests: The units that ended, whatever came of them.
        rates: Counts of bad events by measure.
        histograms: Counts by measure and bucket of `tidegate.evidence.buckets`; a measure has all
            buckets or is absent.
        categories: Counts by measure and category, such as a label.
        gauges: The last value by measure, from PromQL.
    """

    requests: int = 0
    rates: dict[MetricName, Counted] = {}
    histograms: dict[MetricName, tuple[int, ...]] = {}
    categories: dict[MetricName, dict[str, int]] = {}
    gauges: dict[MetricName, float] = {}


class TrafficWindow(msgspec.Struct, frozen=True, kw_only=True):
    """What each version's traffic did between two moments under the same weights.

    Attributes:
        start_s: Start, in seconds since the epoch.
        end_s: End, in seconds since the epoch.
        shares: The intended shares of the versions, from 0 to 1. A mirrored version has the share
            of requests that are copied to it.
        versions: What each version's traffic did. A version without traffic may be absent.
        lost: Requests of which the source knows that it has missed their records. An estimate for
            the time in which it had no connection.
        counted_until_s: Before when requests of this epoch are in this window or an earlier one,
            but for those that end late; 0 if the source cannot say.
    """

    start_s: float
    end_s: float
    shares: dict[VersionName, float]
    versions: dict[VersionName, VersionTraffic]
    lost: int = 0
    counted_until_s: float = 0.0

    @property
    def requests(self) -> int:
        """The units that ended in the window, of all versions."""
        return sum(each.requests for each in self.versions.values())
