"""Connects resource snapshots with the streams of proxies. It opens no sockets.

A change costs only the streams that subscribe to a changed resource.
"""

import asyncio
import time
from collections.abc import Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

from tidegate.mesh.ads.ack_waiter import AckWaiter
from tidegate.mesh.ads.connections import Connection, SubscriptionIndex
from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.snapshot import InlinedSnapshot, ResourceSnapshot, SnapshotView
from tidegate.mesh.ads.status import AckReport, ProxyId, ProxyStatus, XdsVariant
from tidegate.mesh.ads.stream import ProxyStream
from tidegate.mesh.ads.variant import ProxyLimits, VariantRules, XdsRequest
from tidegate.mesh.ads.watched_type import Acknowledgement
from tidegate.mesh.resources import Change, ProxyKind, ResourceKey, Resources

__all__ = ["Distribution"]


class Distribution:
    """The resources served to each proxy kind, and what each connected proxy has of them.

    Use it from the event loop only. A proxy kind is served nothing before its first `apply`. That
    first change must hold all resources: a proxy that reconnects loses whatever is missing.

        distribution.apply(ProxyKind.ENVOY, Change(put=resources))
        report = await distribution.acknowledged({ProxyKind.ENVOY: keys}, deadline_s=10)

    Args:
        limits: Limits on what proxies may ask for.
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
        self._indexes = {each: SubscriptionIndex() for each in self._views}
        # In the order in which the proxies connected.
        self._connections: dict[Connection, None] = {}
        self._stream_numbers = count(1)
        self._disconnected = asyncio.Event()
        self._ack_waiters: set[AckWaiter] = set()

    def apply(self, proxy_kind: ProxyKind, change: Change) -> None:
        """Serves a change to the proxies that subscribe to its resources. Never waits.

        Args:
            proxy_kind: The proxy kind whose resources change.
            change: All resources the first time, from then on the differences.
        """
        is_first = not self._snapshots[proxy_kind].loaded
        changed = self._snapshots[proxy_kind].apply(change)
        affected: dict[Connection, None] = {}
        if is_first:
            affected = dict.fromkeys(
                each for each in self._connections if each.identity.proxy_kind is proxy_kind
            )
        for (of, variant), view in self._views.items():
            if of is proxy_kind:
                index = self._indexes[of, variant]
                for key in view.visible_keys(changed):
                    for connection in index.subscribers(key):
                        connection.stream.resource_changed(key)
                        affected[connection] = None
        for connection in affected:
            connection.wakeup.set()
            self._notify_ack_waiters(connection, may_have_rejected=False)

    def served(self, proxy_kind: ProxyKind) -> Resources:
        """The resources served now, as a live, read-only view."""
        return self._snapshots[proxy_kind].served

    def proxies(self) -> tuple[ProxyStatus, ...]:
        """Every connected proxy, in the order in which they connected."""
        return tuple(each.status() for each in self._connections)

    def proxy_gone(self) -> Coroutine[Any, Any, bool]:
        """Waits until a proxy disconnects. The wait begins with the call."""
        return self._disconnected.wait()

    async def acknowledged(
        self, keys: Mapping[ProxyKind, Collection[ResourceKey]], deadline_s: float
    ) -> AckReport:
        """Waits until every connected proxy has acknowledged the resources under some keys.

        A proxy needs only the resources that it subscribes to, and a proxy that disconnects is no
        longer waited for. A cluster counts as acknowledged once its endpoints are too: the proxy
        has then warmed it.

        Args:
            keys: The keys to wait for, by proxy kind. A proxy acknowledges a key that is no longer
                served by removing the resource.
            deadline_s: The longest wait, in seconds.

        Returns:
            The report, as soon as all proxies have acknowledged or one has rejected, otherwise at
            the deadline.
        """
        ack_waiter = AckWaiter(keys, self._connections.keys)
        self._ack_waiters.add(ack_waiter)
        try:
            return await ack_waiter.wait(deadline_s)
        finally:
            self._ack_waiters.discard(ack_waiter)

    @contextmanager
    def connected(self, identity: NodeIdentity, rules: VariantRules) -> Iterator[Connection]:
        """Serves a proxy while the context is open.

        Args:
            identity: The proxy.
            rules: The rules of its xDS variant.
        """
        view_key = (identity.proxy_kind, identity.variant)
        proxy = ProxyId(identity.node, next(self._stream_numbers))
        stream = ProxyStream(identity.proxy_kind, self._views[view_key], rules, self.limits)
        connection = Connection(proxy, identity, stream, time.time())
        self._connections[connection] = None
        try:
            yield connection
        finally:
            del self._connections[connection]
            self._indexes[view_key].remove(connection)
            for ack_waiter in self._ack_waiters:
                ack_waiter.remove(connection)
            disconnected, self._disconnected = self._disconnected, asyncio.Event()
            disconnected.set()

    def receive(self, connection: Connection, request: XdsRequest) -> Acknowledgement | None:
        """Processes a request of a proxy.

        Returns:
            The ACK or NACK, if the request answers the response in flight.

        Raises:
            RefusedRequestError: The proxy asks for more than the limits allow.
        """
        ack, delta = connection.stream.receive(request, time.time())
        identity = connection.identity
        index = self._indexes[identity.proxy_kind, identity.variant]
        index.update(connection, request.type, delta)
        connection.wakeup.set()
        self._notify_ack_waiters(connection, may_have_rejected=ack is not None and not ack.accepted)
        return ack

    def _notify_ack_waiters(self, connection: Connection, *, may_have_rejected: bool) -> None:
        for ack_waiter in self._ack_waiters:
            ack_waiter.update(connection, may_have_rejected=may_have_rejected)
