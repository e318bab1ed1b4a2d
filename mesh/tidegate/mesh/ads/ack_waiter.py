"""Waiting until all proxies have what is served, at a cost in proportion to what they answer."""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping

from tidegate.mesh.ads.connections import Connection
from tidegate.mesh.ads.status import AckOutcome, AckReport, ProxyAck
from tidegate.mesh.resources import ProxyKind, ResourceKey

__all__ = ["AckWaiter"]


class AckWaiter:
    """One wait for acknowledgement. Proxies may come and go meanwhile.

    Args:
        keys: what has to be acknowledged, by proxy kind.
        connections: gives who is connected now.
    """

    def __init__(
        self,
        keys: Mapping[ProxyKind, Collection[ResourceKey]],
        connections: Callable[[], Collection[Connection]],
    ) -> None:
        self._keys = {proxy_kind: tuple(asked) for proxy_kind, asked in keys.items()}
        self._connections = connections
        self._left: dict[Connection, list[ResourceKey]] = {}
        self._rejecting: set[Connection] = set()
        self._moved = asyncio.Event()
        for connection in connections():
            self.moved(connection, refused=True)

    def moved(self, connection: Connection, *, refused: bool = False) -> None:
        """Takes note that a proxy has come, answered, or asked for something else.

        Args:
            connection: the proxy.
            refused: whether it may have refused something.
        """
        left = self._left.get(connection)
        if left is None:
            left = list(self._keys.get(connection.identity.proxy_kind, ()))
        # Only the last key is looked at: an answer costs what it achieves.
        while left and _outcome(connection, left[-1]) is AckOutcome.DONE:
            left.pop()
        if not left:
            self.gone(connection)
            return
        self._left[connection] = left
        if refused and any(_outcome(connection, key) is AckOutcome.REJECTED for key in left):
            self._rejecting.add(connection)
            self._moved.set()

    def gone(self, connection: Connection) -> None:
        """Takes note that a proxy need not be waited for any more."""
        self._left.pop(connection, None)
        self._rejecting.discard(connection)
        self._moved.set()

    async def wait(self, deadline_s: float) -> AckReport:
        """Waits until nobody is waited for, somebody has refused, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while not self._is_decided():
                    self._moved.clear()
                    await self._moved.wait()
        members = [each for each in self._connections() if each.identity.proxy_kind in self._keys]
        return AckReport(tuple(self._ack_of(each) for each in members))

    def _is_decided(self) -> bool:
        if self._left or self._rejecting:
            return bool(self._rejecting)
        # What was acknowledged may have changed once more since.
        for connection in self._connections():
            self.moved(connection, refused=True)
        return not self._left or bool(self._rejecting)

    def _ack_of(self, connection: Connection) -> ProxyAck:
        outcomes = [connection.stream.outcome(key) for key in self._asked(connection)]
        waiting = dict.fromkeys(key for each, key in outcomes if each is AckOutcome.WAITING)
        refused = dict.fromkeys(key.type for each, key in outcomes if each is AckOutcome.REJECTED)
        rejections = [connection.stream.watched_types[each].rejection() for each in refused]
        outcome = AckOutcome.WAITING if waiting else AckOutcome.DONE
        return ProxyAck(
            proxy=connection.proxy,
            proxy_kind=connection.identity.proxy_kind,
            outcome=AckOutcome.REJECTED if refused else outcome,
            waiting=tuple(waiting),
            rejections=tuple(each for each in rejections if each),
        )

    def _asked(self, connection: Connection) -> tuple[ResourceKey, ...]:
        return self._keys[connection.identity.proxy_kind]


def _outcome(connection: Connection, key: ResourceKey) -> AckOutcome:
    return connection.stream.outcome(key)[0]
