"""The gates of a transition's stages: what each stage waits for before the next may begin.

A stage that sends resources waits until every live proxy has acknowledged them; the routes also
wait until the proxies' workers have them (`worker_sync`). The first stage waits for a healthy
endpoint in each cluster that routes will name. The drain stage waits until no request runs on the
clusters that go (`drainer`).
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from tidegate.mesh.ads import AckOutcome, AckReport, Distribution, ProxyAck, ProxyId
from tidegate.mesh.control.served_configuration import ServedConfiguration
from tidegate.mesh.control.transitions.drainer import RequestsInProgress
from tidegate.mesh.control.transitions.events import Emit, EventKind
from tidegate.mesh.control.transitions.plan import Stage, StageKind
from tidegate.mesh.control.transitions.worker_sync import WorkerSync
from tidegate.mesh.resources import ProxyKind, ResourceKey
from tidegate.runtime.logging import get_logger

__all__ = ["GateError", "StageGates"]

_log = get_logger(__name__)

# How often a wait for acknowledgements emits an event for each proxy that has answered so far.
_SLICE_S: Final = 0.2

# Workers of proxies that have acknowledged get this long although others have not.
_WORKERS_S: Final = 1.0

Keys = Mapping[ProxyKind, Collection[ResourceKey]]


class GateError(Exception):
    """The gate of a stage did not open in time, or cannot open."""


class StageGates:
    """Waits for the gates of stages.

    Args:
        distribution: Tells which proxies have acknowledged what.
        served: Tells which clusters have a healthy endpoint.
        in_progress: Tells which requests run on a cluster that goes.
        worker_sync: Tells when the workers of proxies use what the proxies have acknowledged.
        drain_deadline_s: How long requests on clusters that go may take to finish.
        why_unhealthy: Says why no endpoint of a cluster takes requests.
    """

    def __init__(
        self,
        distribution: Distribution,
        served: ServedConfiguration,
        in_progress: RequestsInProgress,
        worker_sync: WorkerSync,
        *,
        drain_deadline_s: float,
        why_unhealthy: Callable[[str], str],
    ) -> None:
        self._distribution = distribution
        self._served = served
        self._in_progress = in_progress
        self._worker_sync = worker_sync
        self._drain_deadline_s = drain_deadline_s
        self._why_unhealthy = why_unhealthy

    async def wait(
        self, stage: Stage, deadline_s: float, emit: Emit, *, keep: bool = False
    ) -> None:
        """Waits until the gate of a stage is open.

        Args:
            stage: The stage; what it sends is served already.
            deadline_s: How long proxies and endpoints may take, in seconds.
            emit: Takes the events.
            keep: Whether the gate of the routes opens at the deadline without the proxies that
                have not acknowledged them.

        Raises:
            GateError: The gate is not open in time, or a proxy has rejected a resource.
        """
        began = time.monotonic()
        deadline = began + deadline_s
        # No proxy may get a route before it has the route's clusters.
        keep = keep and stage.kind is not StageKind.CLUSTERS
        if stage.gate.acknowledged:
            await self._acknowledged(stage, deadline_s, deadline, emit, keep=keep)
            if stage.kind is StageKind.ROUTES:
                acknowledged_s = time.monotonic() - began
                if keep:
                    deadline = max(deadline, time.monotonic() + _WORKERS_S)
                await self._workers_synced(acknowledged_s, deadline_s, deadline, emit, keep=keep)
        await self._healthy(stage.gate.healthy, deadline_s, deadline, emit)
        if stage.gate.drained:
            await self.drained(stage.gate.drained, stage.kind, emit)

    async def wait_undone(self, undone: StageKind, keys: Keys, deadline_s: float) -> None:
        """Waits until proxies have acknowledged that a stage is undone, or the deadline passes.

        Args:
            undone: The stage.
            keys: The keys of the resources that undoing the stage changes.
            deadline_s: How long proxies may take, in seconds.
        """
        began = time.monotonic()
        report = await self._distribution.acknowledged(keys, deadline_s)
        if not report.done:
            _log.warning("rolled back without acknowledgement", proxies=_unfinished(report))
        elif undone is StageKind.ROUTES:
            late = await self._worker_sync.wait(time.monotonic() - began, deadline_s)
            if late:
                _log.warning("rolled back, but workers are not in sync yet", proxies=late)

    async def drained(self, clusters: Collection[str], stage: StageKind | None, emit: Emit) -> None:
        """Waits until no request runs on clusters that no route names, or their time is over."""
        deadline = time.monotonic() + self._drain_deadline_s
        left = await self._in_progress.drained(
            clusters,
            deadline,
            on_drained=lambda name: emit(EventKind.CLUSTER_DRAINED, stage, subject=name),
        )
        for name, running in left.items():
            count = "requests" if running is None else f"{running} requests"
            message = f"{count} may still run there after {self._drain_deadline_s:g} s"
            emit(EventKind.STRANDED, stage, subject=name, message=message)

    async def _acknowledged(
        self, stage: Stage, deadline_s: float, deadline: float, emit: Emit, *, keep: bool
    ) -> None:
        keys = stage.gate.acknowledged
        asked = {each.proxy for each in self._distribution.proxies() if each.proxy_kind in keys}
        done: set[ProxyId] = set()
        while True:
            left_s = deadline - time.monotonic()
            report = await self._distribution.acknowledged(keys, max(0.0, min(_SLICE_S, left_s)))
            connected = {each.proxy for each in report.proxies}
            for gone in sorted(asked - done - connected):
                emit(EventKind.PROXY_GONE, stage.kind, proxy=gone.node)
            for each in report.of(AckOutcome.DONE):
                if each.proxy not in done:
                    emit(EventKind.PROXY_ACKNOWLEDGED, stage.kind, proxy=each.proxy.node)
                    done.add(each.proxy)
            asked = connected
            if report.done:
                return
            rejected = report.of(AckOutcome.REJECTED)
            # Routes that one proxy refuses and another takes are right for the other.
            if rejected and not (keep and (done or report.of(AckOutcome.WAITING))):
                raise GateError("; ".join(map(_rejection, rejected)))
            if left_s <= 0 and not (keep and (done or not rejected)):
                raise GateError(f"no answer within {deadline_s:g} s: {_unfinished(report)}")
            if left_s <= 0 or not report.of(AckOutcome.WAITING):
                _emit_late(stage, report, emit)
                return
            if rejected:
                # While one rejects, the report comes at once.
                await asyncio.sleep(min(_SLICE_S, left_s))

    async def _workers_synced(
        self, acknowledged_s: float, deadline_s: float, deadline: float, emit: Emit, *, keep: bool
    ) -> None:
        """Waits until routes that were acknowledged apply to every new request."""
        late = await self._worker_sync.wait(acknowledged_s, deadline - time.monotonic())
        if keep:
            for node in late:
                message = "not all of its workers use the routes yet"
                emit(EventKind.PROXY_LATE, StageKind.ROUTES, proxy=node, message=message)
        elif late:
            raise GateError(
                f"{', '.join(late)} acknowledged, but not all of its workers use the routes within"
                f" {deadline_s:g} s"
            )

    async def _healthy(
        self, clusters: frozenset[str], deadline_s: float, deadline: float, emit: Emit
    ) -> None:
        left = clusters
        while True:
            unhealthy = self._served.unhealthy(left)
            for name in sorted(left - unhealthy):
                emit(EventKind.CLUSTER_HEALTHY, StageKind.CLUSTERS, subject=name)
            left = unhealthy
            if not left:
                return
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._served.changed()
            except TimeoutError:
                reasons = "; ".join(
                    f"{name} has no healthy endpoint ({self._why_unhealthy(name)})"
                    for name in sorted(left)
                )
                raise GateError(f"{reasons}; waited {deadline_s:g} s") from None


def _rejection(ack: ProxyAck) -> str:
    return "; ".join(
        f"{ack.proxy.node} refused {', '.join(map(str, sorted(each.versions, key=str)))}:"
        f" {each.message}"
        for each in ack.rejections
    )


def _unfinished(report: AckReport) -> str:
    return "; ".join(
        _why_unfinished(each) for each in report.proxies if each.outcome is not AckOutcome.DONE
    )


def _why_unfinished(ack: ProxyAck) -> str:
    if ack.outcome is AckOutcome.WAITING:
        return f"{ack.proxy.node} has not acknowledged {_some(map(str, ack.waiting))}"
    return _rejection(ack)


def _emit_late(stage: Stage, report: AckReport, emit: Emit) -> None:
    for each in report.proxies:
        if each.outcome is not AckOutcome.DONE:
            message = _why_unfinished(each)
            emit(EventKind.PROXY_LATE, stage.kind, proxy=each.proxy.node, message=message)


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first
