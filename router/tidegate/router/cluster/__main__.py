"""``python -m tidegate.router.cluster``: starts the router of a cluster.

Every replica receives access logs. One leads, and runs the rollouts.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

from tidegate.chassis.server import run
from tidegate.errors import TidegateError
from tidegate.kube.backoff import Backoff
from tidegate.kube.client import KubeClient
from tidegate.kube.lease import LeaseElector, LeaseLostError
from tidegate.kube.lease_record import LeaseSettings
from tidegate.router.cluster.caches import following, replica_addresses
from tidegate.router.cluster.leading import TakenError, run_rollouts
from tidegate.router.cluster.log_facts import keep_facts
from tidegate.router.cluster.settings import ClusterSettings
from tidegate.router.istio_log.istio_log import IstioLog, IstioLogSettings
from tidegate.runtime.logging import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import grpc

    from tidegate.chassis.health import Health
    from tidegate.router.cluster.caches import Caches

__all__ = ["ClusterApplication", "main"]

_log = get_logger(__name__)

_RETRY_S: Final = 1.0
# Two routers that both run rollouts would take turns, so the one that is refused stays away.
_TAKEN_BACKOFF: Final = Backoff(first_s=15.0, most_s=300.0)


class ClusterApplication:
    """Everything that one replica of the router serves.

    It is ready once it knows the cluster's objects. The drain ends its lead first, so that another
    replica leads while this one still receives access logs.

    Args:
        settings: The router's settings.
    """

    service_names = IstioLog.service_names

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        service, namespace = settings.peers_service, settings.own_namespace
        self._access_log = IstioLog(
            IstioLogSettings(
                user_cookies=tuple(settings.user_cookies),
                authority=f"{service}.{namespace}.svc:{settings.grpc_port}" if service else "",
                istio_metrics=settings.istio_metrics,
            )
        )

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the access log service and the method that other replicas read it by."""
        self._access_log.register(server)

    @asynccontextmanager
    async def run(self, health: Health) -> AsyncIterator[None]:
        """Competes for the lead, and runs the rollouts while this replica leads."""
        settings, log = self._settings, self._access_log
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._client())
            # A renewal must not wait behind the writes of many rollouts.
            lease_client = await stack.enter_async_context(self._client())
            caches = await stack.enter_async_context(
                following(
                    *(client, settings.namespaces, settings.own_namespace, settings.peers_service),
                    settings.sticky_namespaces,
                )
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            await caches.synced()
            competing = tasks.create_task(self._compete(client, lease_client, caches))
            log.workloads.follow(caches.traffic.pods)
            working = (
                competing,
                tasks.create_task(keep_facts(log, caches.traffic)),
                tasks.create_task(log.count_requests()),
            )
            for each in working:
                stack.callback(each.cancel)
            health.set_all(True)
            draining = tasks.create_task(self._leave_at_drain(health, competing))
            stack.callback(draining.cancel)
            yield

    def _client(self) -> AbstractAsyncContextManager[KubeClient]:
        settings = self._settings
        return KubeClient.opened(
            kubeconfig=settings.kubeconfig,
            context=settings.context,
            namespace=settings.own_namespace,
            user_agent="tidegate-router",
        )

    async def _compete(self, client: KubeClient, lease_client: KubeClient, caches: Caches) -> None:
        """Leads whenever this replica has the lease."""
        settings = self._settings
        elector = LeaseElector(
            lease_client,
            settings.lease,
            identity=settings.identity,
            namespace=settings.own_namespace,
            settings=lease_settings(settings.lease_duration_s),
        )
        fenced = client.fenced(lambda: elector.is_leader)
        taken, led_s = 0, math.inf

        async def lead() -> None:
            nonlocal led_s
            led_s = time.monotonic()
            await self._lead(fenced, caches, after_crash=bool(elector.predecessor))

        while True:
            wait_s = _RETRY_S
            failures: tuple[TidegateError, ...] = ()
            try:
                await elector.run(lead)
            except LeaseLostError as error:
                _log.warning("leads no more", reason=str(error))
            except TidegateError as error:
                failures = (error,)
            except BaseExceptionGroup as errors:
                failures = expected_of(errors)
            if any(isinstance(each, TakenError) for each in failures):
                # The other router of a while ago is another story.
                taken = 1 if time.monotonic() - led_s > _TAKEN_BACKOFF.most_s else taken + 1
                wait_s = _TAKEN_BACKOFF.delay_s(taken, random.random())  # noqa: S311
            if failures:
                reason = "; ".join(dict.fromkeys(map(str, failures)))
                _log.warning("cannot lead", reason=reason, retry_in_s=round(wait_s, 1))
            await asyncio.sleep(wait_s)

    async def _lead(self, client: KubeClient, caches: Caches, *, after_crash: bool) -> None:
        log = self._access_log
        async with log.reading(after_crash=after_crash), asyncio.TaskGroup() as tasks:
            following_replicas = tasks.create_task(self._follow_replicas(caches))
            try:
                await run_rollouts(client, caches, log, self._settings)
            finally:
                following_replicas.cancel()

    async def _follow_replicas(self, caches: Caches) -> None:
        """Has the access logs of all replicas read."""
        settings, log = self._settings, self._access_log
        own = f"{_reachable(settings.host)}:{settings.grpc_port}"
        if caches.replicas is None:
            await log.set_receivers((own,))
            return
        changed = asyncio.Event()
        end = caches.replicas.on_change(lambda *_: changed.set())
        try:
            while True:
                addresses = replica_addresses(caches.replicas.all(), settings.grpc_port)
                await log.set_receivers(addresses or (own,))
                await changed.wait()
                changed.clear()
        finally:
            end()

    async def _leave_at_drain(self, health: Health, competing: asyncio.Task[None]) -> None:
        async for serving in health.watch(self.service_names[0]):
            if not serving:
                competing.cancel()
                await asyncio.wait({competing})
                # The next leader asks this replica for the requests that it has not counted.
                await asyncio.sleep(self._settings.drain_delay_s)
                self._access_log.shut_down()
                return


def expected_of(errors: BaseExceptionGroup[BaseException]) -> tuple[TidegateError, ...]:
    """Returns the errors of a group, those of groups within it too.

    Args:
        errors: The group.

    Raises:
        BaseExceptionGroup: Some are faults of the program.
    """
    expected, faults = errors.split(TidegateError)
    if faults is not None:
        raise faults from None
    return tuple(_leaves(expected)) if expected is not None else ()


def _leaves(errors: BaseExceptionGroup[TidegateError]) -> Iterator[TidegateError]:
    for each in errors.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def lease_settings(duration_s: float) -> LeaseSettings:
    """Returns the times of a lease in the proportions of Kubernetes' own controllers.

    Args:
        duration_s: How long the lease lasts after a renewal.
    """
    return LeaseSettings(
        duration_s=round(duration_s),
        renew_deadline_s=duration_s * 2 / 3,
        retry_s=min(2.0, duration_s / 7.5),
    )


def _reachable(host: str) -> str:
    """An address of this machine at which a server that listens on `host` is reached."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared only


def main() -> int:
    """Runs the router until it is told to stop; returns the exit status."""
    settings = ClusterSettings.from_command_line()
    return run(ClusterApplication, settings)


if __name__ == "__main__":
    sys.exit(main())
