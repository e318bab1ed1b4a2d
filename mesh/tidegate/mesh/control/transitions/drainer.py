"""Draining: an endpoint or a cluster goes only when no request runs there any more.

Whatever takes an endpoint away (a server that stops, an edit, other labels of a subset), the
endpoint first becomes ``DRAINING`` where it is served. Once every live proxy has acknowledged that,
no request begins there. Once the proxies report that no request runs there either, or a deadline
has passed, the endpoint goes. Requests that still run then are reported as stranded. An endpoint
that comes back meanwhile stays.

All waits for requests to finish are `RequestsInProgress.drained`; load reports wake it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from tidegate.mesh.ads import AckOutcome, AckReport, Distribution
from tidegate.mesh.control.endpoints.assignments import addresses, with_draining
from tidegate.mesh.resources import ProxyKind, Resource, ResourceKey
from tidegate.mesh.telemetry.load_reports import LoadReports
from tidegate.runtime.logging import get_logger

__all__ = ["DrainResult", "EndpointDrainer", "RequestsInProgress"]

_log = get_logger(__name__)

# A gRPC client reports once a second, and not at all while it has nothing to report.
_SILENCE_IS_ZERO_S: Final = 3.0
# How soon a wait notices that a proxy has been silent for so long.
_RECHECK_S: Final = 0.5
# Reports of many proxies arrive together; they are counted once.
_GATHER_S: Final = 0.05

Release = Callable[[ProxyKind, ResourceKey], None]
"""Serves a cluster's endpoints without those that have drained."""


class RequestsInProgress:
    """Counts the requests that run on clusters and endpoints, as every live proxy reports them.

    Args:
        reports: The load reports of the proxies.
        distribution: The proxies that are connected.
    """

    def __init__(self, reports: LoadReports, distribution: Distribution) -> None:
        self._reports = reports
        self._distribution = distribution

    def watch(self, clusters: Collection[str]) -> AbstractContextManager[None]:
        """Asks the proxies to report on clusters while the context is open."""
        return self._reports.watch(clusters)

    def last_known(self, cluster: str, address: str | None = None) -> int | None:
        """The last reported number of requests on a cluster, or on one of its endpoints.

        Returns:
            The number. ``None`` if no proxy has reported, which is so while nobody watches.
        """
        counts = [
            each.requests if address is None else each.at(address)
            for each in self._reports.in_progress(cluster).values()
        ]
        known = [each for each in counts if each is not None]
        return sum(known) if known else None

    async def drained(
        self,
        clusters: Collection[str],
        deadline: float,
        *,
        address: str | None = None,
        proxy_kind: ProxyKind | None = None,
        on_drained: Callable[[str], None] = lambda _: None,
    ) -> Mapping[str, int | None]:
        """Waits until no request runs on clusters, or the deadline passes.

        Call it once no new request can begin there.

        Args:
            clusters: The clusters.
            deadline: When to stop waiting, by the monotonic clock.
            address: Counts only the requests on this endpoint, ``address:port``.
            proxy_kind: Counts only the requests of proxies of this kind.
            on_drained: Called with each cluster once it has drained.

        Returns:
            The clusters that have not drained, each with the requests that were last known to run
            there. ``None`` means that some live proxy has never reported.
        """
        left: dict[str, int | None] = dict.fromkeys(sorted(clusters))
        if not left:
            return left
        since = time.monotonic()
        with self._reports.watch(clusters):
            while True:
                now = time.monotonic()
                for name in list(left):
                    count = self._running(name, address, proxy_kind, now - since)
                    if count == 0:
                        del left[name]
                        on_drained(name)
                    elif count is not None:
                        left[name] = count
                if not left or now >= deadline:
                    return left
                await self._wait_for_news(min(deadline - now, _RECHECK_S))

    def _running(
        self, cluster: str, address: str | None, proxy_kind: ProxyKind | None, waited_s: float
    ) -> int | None:
        """Counts the requests that run on a watched cluster.

        Every start and end of a watch discards the counts, also those of other waits. So the
        silence of a proxy begins there, and not with the wait.

        Returns:
            The number. ``None`` while some live proxy has not reported.
        """
        loads = self._reports.in_progress(cluster)
        counts = {
            node: each.requests if address is None else each.at(address)
            for node, each in loads.items()
        }
        for each in self._distribution.proxies():
            node = each.proxy.node
            if proxy_kind not in (None, each.proxy_kind):
                counts.pop(node, None)
            elif counts.get(node) is None:
                # A gRPC client opens no stream of reports before it uses a cluster that has them.
                silent_s = loads[node].silent_s if node in loads else waited_s
                if each.proxy_kind is not ProxyKind.GRPC or silent_s < _SILENCE_IS_ZERO_S:
                    return None
        return sum(filter(None, counts.values()))

    async def _wait_for_news(self, timeout_s: float) -> None:
        """Waits until a proxy reports or disconnects, or the time is over."""
        news = [
            asyncio.create_task(self._reports.next_report(), name="next-load-report"),
            asyncio.create_task(self._distribution.proxy_gone(), name="proxy-gone"),
        ]
        try:
            await asyncio.wait(news, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in news:
                each.cancel()
        await asyncio.sleep(min(_GATHER_S, timeout_s))


@dataclass(slots=True, eq=False)
class _DrainingEndpoint:
    """An endpoint that drains in one cluster of one proxy kind.

    Attributes:
        proxy_kind: The proxies that are served it.
        key: The cluster's endpoints.
        address: The endpoint, ``address:port``.
        deadline: When the endpoint goes, whatever runs there, by the monotonic clock.
        finished: Whether it need not be served any more.
        task: Waits for its requests; ``None`` until the wait begins.
    """

    proxy_kind: ProxyKind
    key: ResourceKey
    address: str
    deadline: float
    finished: bool = False
    task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Ends the wait for its requests."""
        if self.task is not None and not self.finished:
            self.task.cancel()


@dataclass(frozen=True, slots=True)
class DrainResult:
    """How a drain that a person asked for ended.

    Attributes:
        stranded: Requests that still run on the endpoint.
        reason: Why the endpoint has not drained; empty if it has.
    """

    stranded: int
    reason: str


class EndpointDrainer:
    """Keeps endpoints that are to go in what is served until they have drained.

    Args:
        distribution: Tells when proxies have acknowledged that an endpoint drains.
        in_progress: Tells when its requests have finished.
        deadline_s: How long the requests on an endpoint may take to finish.
        on_stranded: Called with an endpoint that went while requests ran on it, and the details.
    """

    def __init__(
        self,
        distribution: Distribution,
        in_progress: RequestsInProgress,
        deadline_s: float,
        on_stranded: Callable[[str, str], None],
    ) -> None:
        self._distribution = distribution
        self._in_progress = in_progress
        self._deadline_s = deadline_s
        self._on_stranded = on_stranded
        self._draining: dict[tuple[ProxyKind, ResourceKey], dict[str, _DrainingEndpoint]] = {}
        self._new: deque[_DrainingEndpoint] = deque()
        self._some = asyncio.Event()

    def hold(self, proxy_kind: ProxyKind, old: Resource, new: Resource) -> Resource:
        """Adds the endpoints that have to drain first to a cluster's new endpoints.

        Args:
            proxy_kind: The proxies that are served them.
            old: What is served now.
            new: What is wanted.
        """
        place = (proxy_kind, new.key)
        known = self._draining.pop(place, {})
        kept: dict[str, _DrainingEndpoint] = {}
        for address in addresses(old) - addresses(new):
            endpoint = known.pop(address, None) or self._begin(proxy_kind, new.key, address)
            if not endpoint.finished:
                kept[address] = endpoint
        for back in known.values():
            back.stop()
        if not kept:
            return new
        self._draining[place] = kept
        return with_draining(old, new, frozenset(kept))

    def forget(self, proxy_kind: ProxyKind, key: ResourceKey) -> None:
        """Stops draining a cluster's endpoints, because the cluster has gone."""
        for each in self._draining.pop((proxy_kind, key), {}).values():
            each.stop()

    async def follow(self, release: Release) -> None:
        """Lets endpoints go when they have drained, for ever.

        Args:
            release: Called with each cluster of which an endpoint has drained.
        """
        async with asyncio.TaskGroup() as tasks:
            while True:
                while self._new:
                    endpoint = self._new.popleft()
                    if self._is_draining(endpoint):
                        endpoint.task = tasks.create_task(self._drain(endpoint, release))
                self._some.clear()
                await self._some.wait()

    async def drain(
        self,
        address: str,
        places: Mapping[ProxyKind, Sequence[ResourceKey]],
        deadline_s: float | None = None,
    ) -> DrainResult:
        """Waits until an endpoint that a person took out of use has drained.

        Args:
            address: The endpoint, ``address:port``.
            places: The clusters' endpoints that it is among.
            deadline_s: How long to wait; as long as for every endpoint unless given.
        """
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        deadline = time.monotonic() + deadline_s
        report = await self._distribution.acknowledged(places, deadline_s)
        clusters = {key.name for keys in places.values() for key in keys}
        left: Mapping[str, int | None]
        if report.done:
            left = await self._in_progress.drained(clusters, deadline, address=address)
        else:
            # A proxy that has not acknowledged may still begin requests, so no count ends the wait.
            with self._in_progress.watch(clusters):
                await asyncio.sleep(deadline - time.monotonic())
                left = {name: self._in_progress.last_known(name, address) for name in clusters}
        stranded = sum(filter(None, left.values()))
        return DrainResult(stranded, _why_not_drained(report, left))

    def _begin(self, proxy_kind: ProxyKind, key: ResourceKey, address: str) -> _DrainingEndpoint:
        deadline = time.monotonic() + self._deadline_s
        endpoint = _DrainingEndpoint(proxy_kind, key, address, deadline)
        self._new.append(endpoint)
        self._some.set()
        return endpoint

    async def _drain(self, endpoint: _DrainingEndpoint, release: Release) -> None:
        cluster, address = endpoint.key.name, endpoint.address
        keys = {endpoint.proxy_kind: (endpoint.key,)}
        await self._distribution.acknowledged(keys, endpoint.deadline - time.monotonic())
        left = await self._in_progress.drained(
            (cluster,), endpoint.deadline, address=address, proxy_kind=endpoint.proxy_kind
        )
        if not left:
            _log.info("endpoint drained", cluster=cluster, endpoint=address)
        else:
            _log.warning("endpoint gone before its requests", cluster=cluster, endpoint=address)
            count = "an unknown number" if left[cluster] is None else left[cluster]
            self._on_stranded(address, f"has left {cluster} with requests still running: {count}")
        endpoint.finished = True
        release(endpoint.proxy_kind, endpoint.key)

    def _is_draining(self, endpoint: _DrainingEndpoint) -> bool:
        group = self._draining.get((endpoint.proxy_kind, endpoint.key), {})
        return group.get(endpoint.address) is endpoint


def _why_not_drained(report: AckReport, left: Mapping[str, int | None]) -> str:
    waiting = {each.proxy.node for each in report.proxies if each.outcome is not AckOutcome.DONE}
    if waiting:
        return f"not acknowledged by {', '.join(sorted(waiting))}"
    if None in left.values():
        return "some proxy has not reported what runs there"
    return "requests still run there" if left else ""
