"""Connected proxies, and an index of their subscriptions by resource."""

import asyncio
from collections.abc import Set as AbstractSet
from typing import Final

from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.status import ProxyId, ProxyStatus
from tidegate.mesh.ads.stream import ProxyStream
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.resources import ResourceKey, ResourceType

__all__ = ["Connection", "SubscriptionIndex"]

_NO_CONNECTIONS: Final[frozenset["Connection"]] = frozenset()


class Connection:
    """One proxy's stream, shared by the `Distribution` and the servicer that writes to it.

    Attributes:
        proxy: The proxy's node id and stream number.
        identity: The proxy's identity.
        stream: The protocol state of the stream.
        wakeup: Set when there may be something to send.
    """

    __slots__ = ("_since", "identity", "proxy", "stream", "wakeup")

    def __init__(
        self, proxy: ProxyId, identity: NodeIdentity, stream: ProxyStream, since: float
    ) -> None:
        self.proxy = proxy
        self.identity = identity
        self.stream = stream
        self.wakeup = asyncio.Event()
        self._since = since

    def status(self) -> ProxyStatus:
        """The state of the proxy, for display."""
        watched_types = self.stream.watched_types.items()
        return ProxyStatus(
            proxy=self.proxy,
            proxy_kind=self.identity.proxy_kind,
            variant=self.identity.variant,
            user_agent=self.identity.user_agent,
            peer=self.identity.peer,
            connected_since=self._since,
            types={
                type_: each.status() for type_, each in watched_types if each.subscription.started
            },
        )


class SubscriptionIndex:
    """Which connections subscribe to which resources of one view."""

    def __init__(self) -> None:
        self._by_key: dict[ResourceKey, set[Connection]] = {}
        self._of_type: dict[ResourceType, set[Connection]] = {each: set() for each in ResourceType}

    def subscribers(self, key: ResourceKey) -> AbstractSet[Connection]:
        """The connections that subscribe to a resource."""
        return self._of_type[key.type] | self._by_key.get(key, _NO_CONNECTIONS)

    def update(self, connection: Connection, type_: ResourceType, delta: SubscriptionDelta) -> None:
        """Applies a change of one connection's subscription."""
        for name in delta.subscribed:
            self._by_key.setdefault(ResourceKey(type_, name), set()).add(connection)
        for name in delta.unsubscribed:
            self._remove(connection, ResourceKey(type_, name))
        if delta.wildcard_subscribed:
            self._of_type[type_].add(connection)
        if delta.wildcard_unsubscribed:
            self._of_type[type_].discard(connection)

    def remove(self, connection: Connection) -> None:
        """Removes a connection that has closed."""
        for type_, watched in connection.stream.watched_types.items():
            self._of_type[type_].discard(connection)
            for name in watched.subscription.names:
                self._remove(connection, ResourceKey(type_, name))

    def _remove(self, connection: Connection, key: ResourceKey) -> None:
        connections = self._by_key.get(key)
        if connections is not None:
            connections.discard(connection)
            if not connections:
                del self._by_key[key]
