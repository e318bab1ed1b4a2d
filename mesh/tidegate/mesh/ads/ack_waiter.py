"""Waits until every proxy has acknowledged some resources.

The cost of a wait grows with the number of ACKs, not with proxies times resources.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping

from tidegate.mesh.ads.connections import Connection
from tidegate.mesh.ads.status import AckOutcome, AckReport, ProxyAck
from tidegate.mesh.resources import ProxyKind, ResourceKey

__all__ = ["AckWaiter"]


class AckWaiter:
    """One wait for acknowledgements. Proxies may connect and disconnect meanwhile.

    Args:
        keys: The resources to be acknowledged, by proxy kind.
        connections: Returns the proxies that are connected now.
    """

    def __init__(
        self,
        keys: Mapping[ProxyKind, Collection[ResourceKey]],
        connections: Callable[[], Collection[Connection]],
    ) -> None:
        self._keys = {proxy_kind: tuple(wanted) for proxy_kind, wanted in keys.items()}
        self._connections = connections
        self._unacknowledged: dict[Connection, list[ResourceKey]] = {}
        self._rejecting: set[Connection] = set()
        self._changed = asyncio.Event()
        for connection in connections():
            self.update(connection, may_have_rejected=True)

    def update(self, connection: Connection, *, may_have_rejected: bool = False) -> None:
        """Checks a proxy that connected, answered a response or changed its subscription.

        Args:
            connection: The proxy.
            may_have_rejected: Whether the proxy may have rejected something.
        """
        keys = self._unacknowledged.get(connection)
        if keys is None:
            keys = list(self._keys.get(connection.identity.proxy_kind, ()))
        # Checks the last key only, so that the cost of an ACK is the number of keys it settles.
        while keys and _outcome(connection, keys[-1]) is AckOutcome.DONE:
            keys.pop()
        if not keys:
            self.remove(connection)
            return
        self._unacknowledged[connection] = keys
        if may_have_rejected and any(
            _outcome(connection, key) is AckOutcome.REJECTED for key in keys
        ):
            self._rejecting.add(connection)
            self._changed.set()

    def remove(self, connection: Connection) -> None:
        """Stops waiting for a proxy."""
        self._unacknowledged.pop(connection, None)
        self._rejecting.discard(connection)
        self._changed.set()

    async def wait(self, deadline_s: float) -> AckReport:
        """Waits until every proxy has acknowledged, one has rejected, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not self._is_decided():
                    self._changed.clear()
                    await self._changed.wait()
        members = [each for each in self._connections() if each.identity.proxy_kind in self._keys]
        return AckReport(tuple(self._ack_of(each) for each in members))

    def _is_decided(self) -> bool:
        if self._unacknowledged or self._rejecting:
            return bool(self._rejecting)
        # An acknowledged resource may have changed again since.
        for connection in self._connections():
            self.update(connection, may_have_rejected=True)
        return not self._unacknowledged or bool(self._rejecting)

    def _ack_of(self, connection: Connection) -> ProxyAck:
        outcomes = [connection.stream.outcome(key) for key in self._keys_of(connection)]
        waiting = dict.fromkeys(key for each, key in outcomes if each is AckOutcome.WAITING)
        rejected_types = dict.fromkeys(
            key.type for each, key in outcomes if each is AckOutcome.REJECTED
        )
        rejections = [connection.stream.watched_types[each].rejection() for each in rejected_types]
        outcome = AckOutcome.WAITING if waiting else AckOutcome.DONE
        return ProxyAck(
            proxy=connection.proxy,
            proxy_kind=connection.identity.proxy_kind,
            outcome=AckOutcome.REJECTED if rejected_types else outcome,
            waiting=tuple(waiting),
            rejections=tuple(each for each in rejections if each),
        )

    def _keys_of(self, connection: Connection) -> tuple[ResourceKey, ...]:
        return self._keys[connection.identity.proxy_kind]


def _outcome(connection: Connection, key: ResourceKey) -> AckOutcome:
    return connection.stream.outcome(key)[0]
