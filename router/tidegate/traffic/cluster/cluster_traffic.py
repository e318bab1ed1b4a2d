"""Gives each rollout of a cluster its `TrafficRouter`."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from tidegate.kube.client import KubeClient
from tidegate.rollout.spec.model import Rollout
from tidegate.traffic.cluster.memory import RolloutMemory
from tidegate.traffic.cluster.objects import ClusterObjects
from tidegate.traffic.cluster.rollout_traffic import RolloutTraffic
from tidegate.traffic.cluster.surroundings import ClusterTrafficSettings, TrafficSurroundings
from tidegate.traffic.observing import TrafficObserver

__all__ = ["ClusterTraffic"]


class ClusterTraffic:
    """Gives each rollout what reads and changes its traffic.

    Args:
        client: The API server.
        objects: Reads the objects of hosts.
        observer: Tells since when a split is in force.
        settings: How traffic is changed.
        clock: Gives the time in seconds since the epoch.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        client: KubeClient,
        objects: ClusterObjects,
        observer: TrafficObserver,
        settings: ClusterTrafficSettings | None = None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._around = TrafficSurroundings(
            client=client,
            objects=objects,
            observer=observer,
            settings=settings or ClusterTrafficSettings(),
            clock=clock,
            sleep=sleep,
        )
        self._memories: dict[str, RolloutMemory] = {}

    def of(self, rollout: Rollout) -> RolloutTraffic:
        """Returns what reads and changes the traffic of a rollout."""
        memory = self._memories.get(rollout.key)
        if memory is None:
            memory = self._memories[rollout.key] = RolloutMemory()
        return RolloutTraffic(self._around, rollout, memory)

    def forget(self, key: str) -> None:
        """Drops what is known of a rollout that is gone."""
        self._memories.pop(key, None)
