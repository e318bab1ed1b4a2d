"""Who is connected, and who asks for what: so that a change finds its streams without a search."""

import asyncio
from collections.abc import Set as AbstractSet
from typing import Final

from tidegate.mesh.ads.identity import NodeIdentity
from tidegate.mesh.ads.status import ProxyId, ProxyStatus
from tidegate.mesh.ads.stream import ProxyStream
from tidegate.mesh.ads.subscription import SubscriptionDelta
from tidegate.mesh.resources import ResourceKey, ResourceType

__all__ = ["Connection", "Watchers"]

_NOBODY: Final[frozenset["Connection"]] = frozenset()


class Connection:
    """One proxy's stream, between what is served and the shell that writes to it.

    Attributes:
        proxy: its node id and stream.
        identity: who it is.
        stream: what it has and is owed.
        wakeup: set when there may be something to send.
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
        """How the proxy is, for display."""
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


class Watchers:
    """Who asks for which resources of one view."""

    def __init__(self) -> None:
        self._by_key: dict[ResourceKey, set[Connection]] = {}
        self._of_type: dict[ResourceType, set[Connection]] = {each: set() for each in ResourceType}

    def of(self, key: ResourceKey) -> AbstractSet[Connection]:
        """Everybody who asks for a resource."""
        return self._of_type[key.type] | self._by_key.get(key, _NOBODY)

    def update(self, who: Connection, type_: ResourceType, delta: SubscriptionDelta) -> None:
        """Takes in what has become different about what somebody asks for."""
        for name in delta.subscribed:
            self._by_key.setdefault(ResourceKey(type_, name), set()).add(who)
        for name in delta.unsubscribed:
            self._remove(who, ResourceKey(type_, name))
        if delta.wildcard_subscribed:
            self._of_type[type_].add(who)
        if delta.wildcard_unsubscribed:
            self._of_type[type_].discard(who)

    def forget(self, who: Connection) -> None:
        """Takes note that somebody has gone."""
        for type_, watched in who.stream.watched_types.items():
            self._of_type[type_].discard(who)
            for name in watched.subscription.names:
                self._remove(who, ResourceKey(type_, name))

    def _remove(self, who: Connection, key: ResourceKey) -> None:
        watchers = self._by_key.get(key)
        if watchers is not None:
            watchers.discard(who)
            if not watchers:
                del self._by_key[key]
