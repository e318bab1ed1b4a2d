"""Leader election: of all replicas, one works.

    elector = LeaseElector(client, "tidegate", identity=pod_name)
    await elector.run(work)

The elector stops the work before it loses the lease, and holds the lease until the work has
stopped. On shutdown it stops the work first and then empties the lease, so that another replica
leads within one `retry_s`. A process that was paused (SIGSTOP, a suspended machine) finds on waking
that its time is over: `LeaseElector.is_leader` is false at once, before anything else runs.

A lease does not fence: a write that is on its way arrives even if the lease is lost. So writes also
name the version or the uid that they stand on, and pass `KubeClient.fenced`.
"""

import asyncio
import datetime as dt
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tidegate.errors import TidegateError
from tidegate.kube.client import KubeClient
from tidegate.kube.errors import AlreadyExistsError, ConflictError, KubeError, NotFoundError
from tidegate.kube.lease_record import (
    LeaseSettings,
    Move,
    Observed,
    leads_until_s,
    next_move,
    observe,
)
from tidegate.kube.metrics import lead_status
from tidegate.kube.resources import LEASES, Lease
from tidegate.runtime.logging import get_logger

__all__ = ["LeaseElector", "LeaseLostError", "uptime_s"]

_log = get_logger(__name__)

_RELEASED_S: Final = 1
_RELEASE_S: Final = 3.0


class LeaseLostError(TidegateError):
    """Another replica leads, or may lead by now."""


def uptime_s() -> float:
    """The time since the machine started; it goes on while the machine is suspended."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class LeaseElector:
    """Competes for a lease.

    Args:
        client: Calls the server.
        name: The lease's name.
        namespace: The lease's namespace; empty for the client's own.
        identity: This replica's name; no other process may have it, also none before it.
        manager: The field manager.
        settings: The times.
        clock: Gives seconds; it must never go back, nor stand still.

    Attributes:
        identity: As above.
        predecessor: Who held the lease when this process took it, and had not given it back; empty
            if nobody.
    """

    def __init__(
        self,
        client: KubeClient,
        name: str,
        *,
        identity: str,
        namespace: str = "",
        manager: str = "tidegate",
        settings: LeaseSettings | None = None,
        clock: Callable[[], float] = uptime_s,
    ) -> None:
        self.identity = identity
        self.predecessor = ""
        self._client = client
        self._name = name
        self._namespace = namespace or client.namespace
        self._manager = manager
        self._settings = settings or LeaseSettings()
        self._clock = clock
        self._lease: Lease | None = None
        self._observed: Observed | None = None
        self._leads_until_s = float("-inf")
        # Whether our name may be in the lease.
        self._may_hold = False

    @property
    def is_leader(self) -> bool:
        """Whether this process leads now."""
        return self._clock() < self._leads_until_s

    @property
    def holder(self) -> str:
        """The identity in the lease as it was read last; empty if nobody holds it."""
        return self._observed.spec.holder_identity if self._observed else ""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Waits for the lease, and works while it holds it.

        Args:
            work: The work. It is cancelled when the lease is about to be lost, and must end within
                the rest of the lease's duration.

        Raises:
            LeaseLostError: The lease was lost; the work has ended. Run it again to compete again.
        """
        lead_status(self._name, lambda: self.is_leader)
        try:
            await self._acquire()
            _log.info("leads", lease=self._name, identity=self.identity)
            await self._work(work)
        finally:
            await self._release()

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        async def working() -> None:
            await work()

        task = asyncio.create_task(working())
        renewing = asyncio.create_task(self._renew_until_lost())
        try:
            await asyncio.wait({task, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The lease is renewed until the work has stopped.
            task.cancel()
            await asyncio.wait({task})
            renewing.cancel()
            await asyncio.wait({renewing})
            failure = None if task.cancelled() else task.exception()
        if not renewing.cancelled():
            renewing.result()
            to = f" to {self.holder}" if self.holder not in ("", self.identity) else ""
            raise LeaseLostError(
                f"{self.identity} has lost the lease {self._namespace}/{self._name}{to}"
            ) from failure
        if failure is not None:
            raise failure

    async def _acquire(self) -> None:
        told = ""
        while not await self._took():
            if self.holder != told:
                told = self.holder
                _log.info("waits for the lease", lease=self._name, holder=told)
            # Half of `retry_s`: after a release the next leader starts within that time.
            await asyncio.sleep(self._settings.retry_s / 2 * random.uniform(0.8, 1.0))  # noqa: S311

    async def _took(self) -> bool:
        """Looks at the lease, and takes it if it is free."""
        try:
            async with asyncio.timeout(self._settings.renew_deadline_s / 2):
                await self._read()
                if next_move(self._observed, self.identity, self._clock()) is Move.WAIT:
                    return False
                # A name of ours that this process wrote is no predecessor.
                was_own = self._may_hold and self.holder == self.identity
                predecessor = "" if was_own else self.holder
                await self._write()
                self.predecessor = predecessor
        except (AlreadyExistsError, ConflictError):
            return False  # somebody else was faster
        except (KubeError, TimeoutError) as error:
            _log.warning("cannot take the lease", lease=self._name, error=_told(error))
            return False
        return self.is_leader

    async def _renew_until_lost(self) -> None:
        retry_s = self._settings.retry_s
        while (left_s := self._leads_until_s - self._clock()) > 0:
            await asyncio.sleep(min(retry_s, left_s))
            left_s = self._leads_until_s - self._clock()
            try:
                async with asyncio.timeout(min(left_s, self._settings.renew_deadline_s / 2)):
                    await self._renew()
            except (KubeError, TimeoutError) as error:
                _log.warning("cannot renew the lease", lease=self._name, error=_told(error))
        _log.warning("the lease is lost", lease=self._name, identity=self.identity)

    async def _renew(self) -> None:
        try:
            await self._write()
        except (AlreadyExistsError, ConflictError, NotFoundError):
            # Another holder, or a renewal of ours whose answer was lost, or an edit of somebody.
            await self._read()
            if self._lease is not None and self.holder != self.identity:
                self._leads_until_s = float("-inf")
                return
            await self._write()

    async def _read(self) -> None:
        try:
            lease = await self._client.get(LEASES, self._name, self._namespace)
        except NotFoundError:
            self._lease = None
        else:
            self._keep(lease)

    async def _write(self) -> None:
        """Writes this process's name into the lease, unless the lease has changed."""
        began_s = self._clock()
        spec = self._lease.spec if self._lease else None
        renewed = spec is not None and spec.holder_identity == self.identity
        now = _micro_time()
        transitions = spec.lease_transitions if spec else 0
        body: dict[str, Any] = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._settings.duration_s,
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": transitions if renewed or spec is None else transitions + 1,
        }
        if renewed and spec is not None and spec.acquire_time is not None:
            body["acquireTime"] = _micro_time(spec.acquire_time)
        self._may_hold = True
        self._keep(await self._put(body))
        self._leads_until_s = leads_until_s(began_s, self._settings)

    async def _put(self, spec: dict[str, Any]) -> Lease:
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        body = {"metadata": metadata, "spec": spec}
        if self._lease is None:
            return await self._client.create(LEASES, body, manager=self._manager)
        had = self._lease.metadata
        metadata |= {
            "resourceVersion": had.resource_version,
            "labels": had.labels,
            "annotations": had.annotations,
        }
        return await self._client.replace(LEASES, body, manager=self._manager)

    def _keep(self, lease: Lease) -> None:
        self._lease = lease
        self._observed = observe(self._observed, lease.spec, self._clock())

    async def _release(self) -> None:
        """Empties the lease if our name is in it, so that another replica leads at once."""
        self._leads_until_s = float("-inf")
        if not self._may_hold:
            return
        try:
            async with asyncio.timeout(_RELEASE_S):
                # A write of ours may have been cut short: only the server knows the version.
                await self._read()
                if self._lease is None or self.holder != self.identity:
                    return
                now = _micro_time()
                spec = {
                    "holderIdentity": "",
                    "leaseDurationSeconds": _RELEASED_S,
                    "acquireTime": now,
                    "renewTime": now,
                    "leaseTransitions": self._lease.spec.lease_transitions,
                }
                self._keep(await self._put(spec))
        except (KubeError, TimeoutError) as error:
            _log.warning("cannot release the lease", lease=self._name, error=_told(error))
        else:
            self._may_hold = False
            _log.info("released the lease", lease=self._name)


def _told(error: BaseException) -> str:
    return str(error) or "no answer in time"


def _micro_time(time_at: dt.datetime | None = None) -> str:
    at = time_at or dt.datetime.now(dt.UTC)
    return at.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
