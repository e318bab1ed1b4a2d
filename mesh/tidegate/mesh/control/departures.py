"""Endpoints that leave, from the moment they are unwanted to the moment they are gone.

Whatever takes an endpoint away, be it a server that stops, an edit or other labels of a subset, it
first becomes ``DRAINING`` where it is served. Once every live proxy has acknowledged that, nothing
new begins there; once the proxies report that nothing runs there either, or a deadline has passed,
it goes. What still ran then is reported as stranded. An endpoint that comes back meanwhile stays.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.ads import Distribution
from tidegate.mesh.control.endpoints import addresses, with_leaving
from tidegate.mesh.control.loads import Loads
from tidegate.mesh.resources import ProxyKind, Resource, ResourceKey
from tidegate.runtime.logging import get_logger

__all__ = ["Departure", "Departures"]

_log = get_logger(__name__)

_LOOK_S: Final = 0.1


@dataclass(slots=True, eq=False)
class Departure:
    """An endpoint that leaves one cluster of one proxy kind.

    Attributes:
        proxy_kind: who is served it.
        key: the cluster's endpoints.
        address: the endpoint, ``address:port``.
        deadline: when it goes whatever runs there, by the monotonic clock.
        finished: whether nothing keeps it any more.
    """

    proxy_kind: ProxyKind
    key: ResourceKey
    address: str
    deadline: float
    finished: bool = False


class Departures:
    """All endpoints that are leaving.

    Args:
        distribution: knows who has acknowledged that they drain.
        loads: knows what runs on them.
        deadline_s: how long the requests that run on an endpoint may take to finish.
        on_stranded: told of an endpoint that went with requests on it, and more in words.
    """

    def __init__(
        self,
        distribution: Distribution,
        loads: Loads,
        deadline_s: float,
        on_stranded: Callable[[str, str], None],
    ) -> None:
        self._distribution = distribution
        self._loads = loads
        self._deadline_s = deadline_s
        self._on_stranded = on_stranded
        self._leaving: dict[tuple[ProxyKind, ResourceKey], dict[str, Departure]] = {}
        self._begun: deque[Departure] = deque()
        self._some = asyncio.Event()

    def __iter__(self) -> Iterator[Departure]:
        return iter([each for group in self._leaving.values() for each in group.values()])

    def hold(self, proxy_kind: ProxyKind, old: Resource, new: Resource) -> Resource:
        """What to serve instead of new endpoints, so that none of the old ones is cut.

        Args:
            proxy_kind: who is served.
            old: what is served now.
            new: what is wanted.
        """
        place = (proxy_kind, new.key)
        known = self._leaving.pop(place, {})
        kept: dict[str, Departure] = {}
        for address in addresses(old) - addresses(new):
            departure = known.get(address) or self._begin(proxy_kind, new.key, address)
            if not departure.finished:
                kept[address] = departure
        if not kept:
            return new
        self._leaving[place] = kept
        return with_leaving(old, new, frozenset(kept))

    def forget(self, proxy_kind: ProxyKind, key: ResourceKey) -> None:
        """Says that a cluster is gone with all its endpoints."""
        self._leaving.pop((proxy_kind, key), None)

    async def follow(self, release: Callable[[ProxyKind, ResourceKey], None]) -> None:
        """Lets endpoints go when they may, for ever.

        Args:
            release: serves a cluster's endpoints without those that are finished.
        """
        async with asyncio.TaskGroup() as departing:
            while True:
                while self._begun:
                    departing.create_task(self._depart(self._begun.popleft(), release))
                self._some.clear()
                await self._some.wait()

    def _begin(self, proxy_kind: ProxyKind, key: ResourceKey, address: str) -> Departure:
        deadline = time.monotonic() + self._deadline_s
        departure = Departure(proxy_kind, key, address, deadline)
        self._begun.append(departure)
        self._some.set()
        return departure

    async def _depart(
        self, departure: Departure, release: Callable[[ProxyKind, ResourceKey], None]
    ) -> None:
        cluster, address = departure.key.name, departure.address
        keys = {departure.proxy_kind: (departure.key,)}
        await self._distribution.acknowledged(keys, departure.deadline - time.monotonic())
        since = time.monotonic()
        known: int | None = None
        with self._loads.watch((cluster,)):
            while self._is_leaving(departure):
                running = self._loads.running(
                    cluster, since, address=address, proxy_kind=departure.proxy_kind
                )
                known = known if running is None else running
                if known == 0 or time.monotonic() >= departure.deadline:
                    break
                await asyncio.sleep(_LOOK_S)
        if not self._is_leaving(departure):
            return
        if known == 0:
            _log.info("endpoint drained", cluster=cluster, endpoint=address)
        else:
            _log.warning("endpoint gone before its requests", cluster=cluster, endpoint=address)
            count = "an unknown number" if known is None else known
            self._on_stranded(address, f"has left {cluster} with requests still running: {count}")
        departure.finished = True
        release(departure.proxy_kind, departure.key)

    def _is_leaving(self, departure: Departure) -> bool:
        group = self._leaving.get((departure.proxy_kind, departure.key), {})
        return group.get(departure.address) is departure
