"""What the traffic of all rollouts of a cluster shares, and how it is changed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tidegate.kube.client import KubeClient
from tidegate.traffic.cluster.host_objects import ManifestParser
from tidegate.traffic.cluster.objects import ClusterObjects
from tidegate.traffic.observing import TrafficObserver

__all__ = ["ClusterTrafficSettings", "TrafficSurroundings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTrafficSettings:
    """How traffic is changed on a cluster.

    Attributes:
        settle_s: After how many seconds without a sign a split is taken to be in force.
        urgent_s: After how many seconds an urgent split is taken to be in force, although proxies
            still follow the old routes.
        subset_settle_s: How many seconds istiod has for a new subset before requests go to it, and
            for a new EnvoyFilter before routes need it.
        probe_percent: The share that a version without traffic gets first.
        capacity_factor: How many endpoints of a candidate carry what one of the baseline's does. 0
            asks for one Ready endpoint at any share.
    """

    settle_s: float = 5.0
    urgent_s: float = 5.0
    subset_settle_s: float = 2.0
    probe_percent: float = 1.0
    capacity_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSurroundings:
    """What the traffic of all rollouts shares.

    Attributes:
        client: The API server.
        objects: Reads the objects of hosts.
        observer: Tells since when a split is in force.
        settings: How traffic is changed.
        clock: Gives the time in seconds since the epoch.
        sleep: Waits for some seconds.
        parser: Parses manifests.
    """

    client: KubeClient
    objects: ClusterObjects
    observer: TrafficObserver
    settings: ClusterTrafficSettings = ClusterTrafficSettings()
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    parser: ManifestParser = field(default_factory=ManifestParser)
