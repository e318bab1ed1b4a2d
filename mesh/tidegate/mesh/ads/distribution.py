"""What is served, and who has it: worlds and streams brought together. No sockets here.

A change reaches the streams that ask for what it touches, and no other is looked at.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import count

from tidegate.mesh.ads.ack_waiter import AckWaiter
from tidegate.mesh.ads.connections import Connection, Watchers
from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.snapshot import InlinedSnapshot, ResourceSnapshot, SnapshotView
from tidegate.mesh.ads.status import AckReport, ProxyId, ProxyStatus, XdsVariant
from tidegate.mesh.ads.stream import ProxyStream
from tidegate.mesh.ads.variant import ProxyLimits, VariantRules, XdsRequest
from tidegate.mesh.ads.watched_type import Acknowledgement
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

    def __init__(self, limits: ProxyLimits | None = None) -> None:
        self.limits = limits or ProxyLimits()
        self._snapshots = {each: ResourceSnapshot() for each in ProxyKind}
        self._views: dict[tuple[ProxyKind, XdsVariant], SnapshotView] = {
            (proxy_kind, variant): self._snapshots[proxy_kind]
            for proxy_kind in ProxyKind
            for variant in XdsVariant
        }
        self._views[ProxyKind.ENVOY, XdsVariant.SOTW] = InlinedSnapshot(
            self._snapshots[ProxyKind.ENVOY]
        )
        self._watchers = {each: Watchers() for each in self._views}
        # Connections in the order in which they came.
        self._connections: dict[Connection, None] = {}
        self._stream_numbers = count(1)
        self._ack_waiters: set[AckWaiter] = set()

    def apply(self, proxy_kind: ProxyKind, change: Change) -> None:
        """Serves a change: proxies that ask for what it touches are sent it. Never waits.

        Args:
            proxy_kind: whose world it is.
            change: all there is the first time, from then on what is different.
        """
        is_first = not self._snapshots[proxy_kind].loaded
        touched = self._snapshots[proxy_kind].apply(change)
        wakeup: dict[Connection, None] = {}
        if is_first:
            wakeup = dict.fromkeys(
                each for each in self._connections if each.identity.proxy_kind is proxy_kind
            )
        for (of, variant), view in self._views.items():
            if of is proxy_kind:
                watchers = self._watchers[of, variant]
                for key in view.seen(touched):
                    for connection in watchers.of(key):
                        connection.stream.changed(key)
                        wakeup[connection] = None
        for connection in wakeup:
            connection.wakeup.set()
            self._notify_ack_waiters(connection, refused=False)

    def served(self, proxy_kind: ProxyKind) -> Resources:
        """What is served now; a live, read-only view."""
        return self._snapshots[proxy_kind].served

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """Everybody who is connected, in the order in which they came."""
        return tuple(each.status() for each in self._connections)

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
        ack_waiter = AckWaiter(keys, self._connections.keys)
        self._ack_waiters.add(ack_waiter)
        try:
            return await ack_waiter.wait(deadline_s)
        finally:
            self._ack_waiters.discard(ack_waiter)

    @contextmanager
    def connected(self, identity: NodeIdentity, rules: VariantRules) -> Iterator[Connection]:
        """Counts a proxy in while its stream is open.

        Args:
            identity: who it is.
            rules: in which it asks.
        """
        place = (identity.proxy_kind, identity.variant)
        proxy = ProxyId(identity.node, next(self._stream_numbers))
        stream = ProxyStream(identity.proxy_kind, self._views[place], rules, self.limits)
        connection = Connection(proxy, identity, stream, time.time())
        self._connections[connection] = None
        try:
            yield connection
        finally:
            del self._connections[connection]
            self._watchers[place].forget(connection)
            for ack_waiter in self._ack_waiters:
                ack_waiter.gone(connection)

    def receive(self, connection: Connection, request: XdsRequest) -> Acknowledgement | None:
        """Takes a request of a proxy in.

        Returns:
            What it said of a response, if that was in flight.

        Raises:
            RefusedRequestError: it asks for more than it may.
        """
        ack, delta = connection.stream.receive(request, time.time())
        identity = connection.identity
        watchers = self._watchers[identity.proxy_kind, identity.variant]
        watchers.update(connection, request.type, delta)
        connection.wakeup.set()
        self._notify_ack_waiters(connection, refused=ack is not None and not ack.accepted)
        return ack

    def _notify_ack_waiters(self, connection: Connection, *, refused: bool) -> None:
        for ack_waiter in self._ack_waiters:
            ack_waiter.moved(connection, refused=refused)
