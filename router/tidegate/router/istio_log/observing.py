"""Waits until a written split is in force, and watches the records of its host for that."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tidegate.mesh.v1 import mesh_pb2
from tidegate.router.istio_log.host_calls import KEPT_S, HostCalls
from tidegate.router.istio_log.in_force import sighting_of
from tidegate.router.sources.record_streams import RecordStreams
from tidegate.runtime.logging import get_logger
from tidegate.traffic.observing import NotServedError, Sighting, WrittenChange

__all__ = ["ProxyObserver"]

_log = get_logger(__name__)

# How often calls are looked at while a change is awaited.
_LOOK_S: Final = 0.1


class ProxyObserver:
    """Implements `TrafficObserver` by the access log of Istio's proxies.

    It remembers the recent calls of every host that somebody listens to, so that it knows which
    proxies send calls when a change is written. It is the tap of the `RecordStreams` that it gets.

    A proxy that goes on with old routes after the settle time is waited for without end: whoever
    awaits a change says how long.

    Args:
        clock: Gives the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._hosts: dict[str, HostCalls] = {}
        self._streams: RecordStreams | None = None

    def use(self, streams: RecordStreams) -> None:
        """Listens to these streams from now on."""
        self._streams = streams

    def receive(self, host: str, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        """Notes records of a host."""
        calls = self._hosts.get(host)
        if calls is None:
            calls = self._hosts[host] = HostCalls()
        now_s = self._clock()
        for record in records:
            calls.add(record, now_s)
        if not calls.awaited:
            calls.forget_before(now_s - KEPT_S)

    def forget(self, host: str) -> None:
        """Forgets a host to which nobody listens any more."""
        self._hosts.pop(host, None)

    async def in_force(self, change: WrittenChange) -> Sighting:
        """Returns once a change is in force, or is taken to be; see `TrafficObserver`.

        Raises:
            NotServedError: Calls fail because a proxy knows no healthy server or no cluster of a
                version that gets a share only after the change.
        """
        with self._listening(change.host):
            calls = self._hosts.setdefault(change.host, HostCalls())
            calls.awaited += 1
            try:
                return await self._sighting(change, calls)
            except NotServedError as error:
                _log.warning("a change is not served", host=change.host, reason=str(error))
                raise
            finally:
                calls.awaited -= 1

    async def _sighting(self, change: WrittenChange, calls: HostCalls) -> Sighting:
        while True:
            began_s = time.monotonic()
            sighting = sighting_of(change, calls.by_proxy(), self._clock())
            took_s = time.monotonic() - began_s
            if sighting is not None:
                _log.info(
                    "a change is in force",
                    host=change.host,
                    revision=change.revision,
                    known=sighting.known.value,
                    after_s=round(sighting.since_s - change.written_s, 3),
                    detail=sighting.detail,
                )
                return sighting
            # A busy host must not keep the router from its other work.
            await asyncio.sleep(max(_LOOK_S, 5 * took_s))

    @contextlib.contextmanager
    def _listening(self, host: str) -> Iterator[None]:
        """Lets records of a host come although nobody counts them."""
        if self._streams is None:
            yield
            return
        listener = _Silent()
        self._streams.listen(host, listener)
        try:
            yield
        finally:
            self._streams.leave(host, listener)


class _Silent:
    """Listens, so that the tap sees the records of a host."""

    def receive(self, records: Sequence[mesh_pb2.RequestRecord]) -> None:
        pass

    def lose(self, count: int) -> None:
        pass
