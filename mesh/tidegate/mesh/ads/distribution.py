"""What is served, and who has it: worlds and streams brought together. No sockets here.

A change reaches the streams that ask for what it touches, and no other is looked at.
"""

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

from tidegate.mesh.ads.ack_waiter import AckWaiter
from tidegate.mesh.ads.connections import Connection, Watchers
from tidegate.mesh.ads.identity import Identity
from tidegate.mesh.ads.snapshot import InlinedSnapshot, ResourceSnapshot, View
from tidegate.mesh.ads.status import AckReport, Protocol, ProxyId, ProxyStatus
from tidegate.mesh.ads.stream import ProxyStream
from tidegate.mesh.ads.variant import Limits, Request, XdsVariant
from tidegate.mesh.ads.watched_type import Answer
from tidegate.mesh.resources import Change, ProxyKind, ResourceKey, Resources

__all__ = ["Distribution"]


class Distribution:
    """What is served to each proxy kind, and what each connected proxy has of it.

    Use it from the event loop only. Nothing is served to a proxy kind before its first `apply`,
    which must hold all there is: a proxy that comes back would lose what is missing.

        distribution.apply(ProxyKind.ENVOY, Change(put=resources))
        report = await distribution.acknowledged({ProxyKind.ENVOY: keys}, deadline_s=10)

    Args:
        limits: on what a proxy may ask for.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._worlds = {each: ResourceSnapshot() for each in ProxyKind}
        self._views: dict[tuple[ProxyKind, Protocol], View] = {
            (proxy_kind, protocol): self._worlds[proxy_kind]
            for proxy_kind in ProxyKind
            for protocol in Protocol
        }
        self._views[ProxyKind.ENVOY, Protocol.SOTW] = InlinedSnapshot(self._worlds[ProxyKind.ENVOY])
        self._watchers = {each: Watchers() for each in self._views}
        # Connections in the order in which they came.
        self._connections: dict[Connection, None] = {}
        self._stream_numbers = count(1)
        self._gone = asyncio.Event()
        self._quorums: set[AckWaiter] = set()

    def apply(self, proxy_kind: ProxyKind, change: Change) -> None:
        """Serves a change: proxies that ask for what it touches are sent it. Never waits.

        Args:
            proxy_kind: whose world it is.
            change: all there is the first time, from then on what is different.
        """
        is_first = not self._worlds[proxy_kind].loaded
        touched = self._worlds[proxy_kind].apply(change)
        stirred: dict[Connection, None] = {}
        if is_first:
            stirred = dict.fromkeys(
                each for each in self._connections if each.identity.proxy_kind is proxy_kind
            )
        for (of, protocol), view in self._views.items():
            if of is proxy_kind:
                watchers = self._watchers[of, protocol]
                for key in view.seen(touched):
                    for connection in watchers.of(key):
                        connection.stream.changed(key)
                        stirred[connection] = None
        for connection in stirred:
            connection.stirred.set()
            self._tell_quorums(connection, refused=False)

    def served(self, proxy_kind: ProxyKind) -> Resources:
        """What is served now; a live, read-only view."""
        return self._worlds[proxy_kind].served

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """Everybody who is connected, in the order in which they came."""
        return tuple(each.status() for each in self._connections)

    def proxy_gone(self) -> Coroutine[Any, Any, bool]:
        """Waits until a proxy disconnects. The wait begins with the call."""
        return self._gone.wait()

    async def acknowledged(
        self, keys: Mapping[ProxyKind, Collection[ResourceKey]], deadline_s: float
    ) -> AckReport:
        """Waits until every connected proxy has what is served under some keys.

        A proxy that does not ask for a key need not have it, and one that goes away is not waited
        for. A cluster is acknowledged when its endpoints are, too: it is warm then.

        Args:
            keys: what to ask about; a key that is not served any more is acknowledged by those who
                have dropped it.
            deadline_s: for how long to wait, in seconds.

        Returns:
            At once when all have acknowledged or one has refused, else at the deadline.
        """
        quorum = AckWaiter(keys, self._connections.keys)
        self._quorums.add(quorum)
        try:
            return await quorum.reached(deadline_s)
        finally:
            self._quorums.discard(quorum)

    @contextmanager
    def connected(self, identity: Identity, dialect: XdsVariant) -> Iterator[Connection]:
        """Counts a proxy in while its stream is open.

        Args:
            identity: who it is.
            dialect: in which it asks.
        """
        place = (identity.proxy_kind, identity.protocol)
        proxy = ProxyId(identity.node, next(self._stream_numbers))
        stream = ProxyStream(identity.proxy_kind, self._views[place], dialect, self.limits)
        connection = Connection(proxy, identity, stream, time.time())
        self._connections[connection] = None
        try:
            yield connection
        finally:
            del self._connections[connection]
            self._watchers[place].forget(connection)
            for quorum in self._quorums:
                quorum.gone(connection)
            gone, self._gone = self._gone, asyncio.Event()
            gone.set()

    def receive(self, connection: Connection, request: Request) -> Answer | None:
        """Takes a request of a proxy in.

        Returns:
            What it said of a response, if that was in flight.

        Raises:
            RefusedRequestError: it asks for more than it may.
        """
        answer, interest = connection.stream.receive(request, time.time())
        identity = connection.identity
        watchers = self._watchers[identity.proxy_kind, identity.protocol]
        watchers.update(connection, request.type, interest)
        connection.stirred.set()
        self._tell_quorums(connection, refused=answer is not None and not answer.accepted)
        return answer

    def _tell_quorums(self, connection: Connection, *, refused: bool) -> None:
        for quorum in self._quorums:
            quorum.moved(connection, refused=refused)
